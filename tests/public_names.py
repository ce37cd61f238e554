"""The public names of a tree, read from its text: python tests/public_names.py FOLDER.

A module is a line, `module: name name …`: its functions, classes and constants without a leading
underscore; of a package also what its `__init__` imports from its own modules, or as the same name.
`names_of_0_1.txt` is that of version 0.1, commit 949110c.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path


def defined(body: list[ast.stmt]) -> Iterator[str]:
    """The names that stand at the top of a module."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (name for target in targets for name in ast.walk(target))
            yield from (name.id for name in names if isinstance(name, ast.Name))
        elif isinstance(node, ast.If | ast.Try):
            yield from defined(node.body)


def exported(body: list[ast.stmt], package: str, names: dict[str, set[str]]) -> Iterator[str]:
    """What an `__init__` imports from the modules below it, or as the same name."""
    for node in body:
        if isinstance(node, ast.If):
            yield from exported(node.body, package, names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                if alias.name == "*":
                    yield from names[module]
                elif alias.asname == alias.name or f"{module}.".startswith(f"{package}."):
                    yield alias.asname or alias.name


def public_names(root: Path) -> dict[str, set[str]]:
    """Module, by its whole name → its public names."""
    trees = {}
    for path in sorted((root / "dfm_jax").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        trees[name.removesuffix(".__init__")] = (
            name.endswith(".__init__"),
            ast.parse(path.read_text("utf-8")),
        )
    names = {module: set(defined(tree.body)) for module, (_, tree) in trees.items()}
    for module, (is_package, tree) in trees.items():
        if is_package:
            names[module] |= set(exported(tree.body, module, names))
    return {module: {name for name in of if name[0] != "_"} for module, of in names.items()}


def read_names(path: Path) -> dict[str, set[str]]:
    """What this script has written."""
    lines = (line.partition(":") for line in path.read_text("utf-8").splitlines())
    return {module: set(names.split()) for module, _, names in lines}


if __name__ == "__main__":
    for module, names in sorted(public_names(Path(sys.argv[1])).items()):
        print(f"{module}: {' '.join(sorted(names))}".rstrip())
