"""Guards over the source text: what may import what, how named, how typed.

A guard takes a `Source` and yields complaints. Each is run over the files of the project, and over
bad sources that it must complain about: a guard that cannot fail guards nothing.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# The house from the foundation up: a room may import the rooms before it. `__init__`, which
# names what is public, and `__main__` stand above all of them. Of a package that spans two layers
# a module may have a place of its own, `mixture.posterior`; the rest stands where the package does.
LAYERS = (
    *("_renamed", "allocator", "types", "checks", "durable", "exact", "boundary", "interfaces"),
    *("schedules", "paths", "velocities", "steps", "markov"),
    *("mixture.posterior", "mixture.gates", "clustering"),
    *("objectives", "samplers", "accounting"),
    *(
        "fast",
        "sampling",
        "mixture",
        "likelihoods",
        "comparison",
        "parallel",
        "json_text",
        "theory",
        "json_types",
        "storage",
        "models",
        "data",
        "partition",
        "scoring",
        "training",
        "launch",
        "cli",
    ),
)
MATHEMATICS = LAYERS[LAYERS.index("schedules") : LAYERS.index("accounting") + 1]
# The only foreign packages of a room; a room that is not listed may import any that is not
# reserved for another.
ALLOWED = {
    "_renamed": set(),
    "allocator": set(),
    "types": {"jax", "numpy", "jaxtyping", "beartype"},
    "checks": {"jax", "numpy"},
    "exact": {"numpy"},
    "boundary": {"jax"},
    "durable": set(),
    "interfaces": {"jax"},
    "fast": {"jax"},
    "likelihoods": {"jax"},
    "comparison": {"jax", "numpy", "scipy"},
    "sampling": {"jax", "numpy"},
    "mixture": {"jax", "numpy"},
    "parallel": {"jax", "numpy"},
    "json_text": set(),
    "scoring": set(),
    "storage": {"obstore"},
    **{layer: {"jax", "numpy"} for layer in MATHEMATICS},
}
RESERVED = {"flax": "models", "optax": "training", "orbax": "training"}
READERS_OF_PICTURES = {"Image.open", "PIL.Image.open", "pillow().open"}
READERS_OF_JSON = {"json.load", "json.loads", "json.JSONDecoder"}
FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "manager"}


class Source(NamedTuple):
    """The text of one file and its path from the root of the project."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def layer(self) -> str:
        """`schedules` for dfm_jax/schedules.py, `theory` for dfm_jax/theory/ledger.py."""
        return layer_of(Path(self.path).with_suffix("").parts[1:])


def layer_of(parts: Sequence[str]) -> str:
    """The room of a module by its names below `dfm_jax`: its own, or that of its package."""
    own = ".".join(parts[:2])
    return own if own in LAYERS else parts[0]


# ── the guards ──────────────────────────────────────────────────────────────────────────────────


def imported(source: Source) -> Iterator[str]:
    """The dotted names that a file imports, wherever in the file, relative ones resolved."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = list(Path(source.path).parent.parts)
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from dfm_jax import paths` imports the room; elsewhere the names belong to `base`.
            yield from ([f"{base}.{a.name}" for a in node.names] if base == "dfm_jax" else [base])


def imports_point_down(source: Source) -> Iterator[str]:
    layer = source.layer
    if layer in ("__init__", "__main__"):
        return
    if layer not in LAYERS:
        yield f"the room `{layer}` has no place in ROOMS"
        return
    below = set(LAYERS[: LAYERS.index(layer) + 1])
    if layer == "exact":
        below = {"exact"}
    elif layer in MATHEMATICS:
        below -= {"exact"}
    for name in imported(source):
        first, *rest = name.split(".")
        if first in ("experiments", "notebooks", "tests"):
            yield f"`{layer}` imports {first}"
        elif (
            first == "dfm_jax"
            and rest != ["__version__"]
            and (not rest or layer_of(rest) not in below)
        ):
            yield f"`{layer}` imports {name}, which is not below it"


def foreign_packages_have_their_layer(source: Source) -> Iterator[str]:
    layer = source.layer
    for name in imported(source):
        package = name.split(".")[0]
        if package in sys.stdlib_module_names or package == "dfm_jax":
            continue
        home = RESERVED.get(package)
        if (home and layer != home) or (layer in ALLOWED and package not in ALLOWED[layer]):
            yield f"`{layer}` imports {package}"


def public_names_have_docstrings(source: Source) -> Iterator[str]:
    def of(node: ast.Module | ast.ClassDef, name: str) -> Iterator[str]:
        if not ast.get_docstring(node):
            yield f"{name} has no docstring"
        for child in node.body:
            if isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
                if not ast.get_docstring(child):
                    yield f"{child.name} has no docstring"
            elif isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                yield from of(child, child.name)

    yield from of(source.tree, "the module")


def is_named_after_its_content(source: Source) -> Iterator[str]:
    for part in Path(source.path).with_suffix("").parts:
        if FORBIDDEN_NAMES & set(part.split("_")):
            yield f"the name `{part}` says nothing"


def functions_are_named_after_what_they_return(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef) and re.match(r"_*(get|compute)_", node.name):
            yield f"{node.name}: a value is a noun, a draw is `sample_a`, a factory `make_a`"


def array_kinds() -> frozenset[str]:
    """The kinds of array that dfm_jax/types.py names, and jaxtyping's own."""
    tree = ast.parse((ROOT / "dfm_jax" / "types.py").read_text())
    (kinds,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return frozenset(kinds) - {"typed"}


def names_in(node: ast.AST | None) -> set[str]:
    names = set() if node is None else {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    attributes = [] if node is None else [n for n in ast.walk(node) if isinstance(n, ast.Attribute)]
    return names | {n.attr for n in attributes}


def array_signatures_are_typed(source: Source) -> Iterator[str]:
    """Public functions whose annotations name an array are `@typed`, so the signature cannot lie.

    Not so factories, which return a `Schedule`, a `Table`, a callable or a bundle of callables, and
    refusals, `check_a(...) -> None`: they meet a user's raw values and refuse them by name.
    """
    bundles = {
        node.name
        for node in source.tree.body
        if isinstance(node, ast.ClassDef)
        and (fields := [f for f in node.body if isinstance(f, ast.AnnAssign)])
        and all("Callable" in names_in(field.annotation) for field in fields)
    }
    factories = {"Schedule", "Table", "Callable"} | bundles
    for node in source.tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith(("_", "check_")):
            continue
        returned = ast.unparse(node.returns).split("[")[0] if node.returns else ""
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        annotations = [a.annotation for a in [*arguments, node.args.vararg] if a] + [node.returns]
        mentioned = set().union(*(names_in(annotation) for annotation in annotations))
        typed = any("typed" in names_in(decorator) for decorator in node.decorator_list)
        if mentioned & array_kinds() and returned not in factories and not typed:
            yield f"{node.name} names an array in its signature and is not @typed"


def reads_json_strictly(source: Source) -> Iterator[str]:
    """`json.loads` keeps the last of two equal keys and takes NaN; the one reader refuses them."""
    if source.layer == "json_text":
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in READERS_OF_JSON:
            yield f"{ast.unparse(node)}: dfm_jax.json_text reads"
        elif isinstance(node, ast.ImportFrom) and node.module == "json":
            yield "names are imported from json: dfm_jax.json_text reads"


def opens_pictures_at_one_place(source: Source) -> Iterator[str]:
    """Else each opens them otherwise: 16 bits clipped, not upright, transparent over nothing."""
    if source.path == "dfm_jax/data/pictures.py":
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in READERS_OF_PICTURES:
            yield f"{ast.unparse(node)}: dfm_jax.data.pictures opens"


def texts_in(node: ast.AST) -> str:
    """The words of every string literal in it."""
    found = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
    return " ".join(value for value in found if isinstance(value, str))


def refuses_in_one_form(source: Source) -> Iterator[str]:
    """ "RULE; got NAME = VALUE.": of `require` the name stands in the rule, or is given."""
    kinds = (ast.Assign, ast.Raise, ast.Call)
    found = (node for node in ast.walk(source.tree) if isinstance(node, kinds))
    nodes = sorted(found, key=lambda node: (node.lineno, node.col_offset))
    assigned: dict[str, ast.AST] = {}  # what a name stands for, from above to below
    for node in nodes:
        if isinstance(node, ast.Assign):
            (target,) = node.targets[:1]
            targets, values = [target], [node.value]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                targets, values = target.elts, node.value.elts
            assigned |= {ast.unparse(a): b for a, b in zip(targets, values, strict=False)}
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            words = texts_in(node.exc)
            if re.search(r"\bmust\b", words) and "; got " not in words:
                yield f"line {node.lineno}: the message says `must`, and not `; got `"
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
            rule = assigned.get(ast.unparse(node.args[1]), node.args[1])
            named = "`" in texts_in(rule) or any(word.arg == "name" for word in node.keywords)
            if isinstance(rule, ast.Constant | ast.JoinedStr) and not named:
                yield f"line {node.lineno}: what is named `got`? The rule has no `name`"


def pins_one_version_a_line(source: Source) -> Iterator[str]:
    for line in source.text.splitlines():
        if not re.fullmatch(r"[A-Za-z0-9_.-]+==[^ ]+", line):
            yield f"`{line}` is not NAME==VERSION"


def names_no_machine(source: Source) -> Iterator[str]:
    """No address of a package index and no absolute path: both differ on the next machine."""
    index = re.compile(r"index[-_]url|find[-_]links|trusted[-_]host|registry\W+https?:")
    absolute = re.compile(r"(?<![\w.*/:~}-])/(work|root|home|tmp|opt|Users)/")
    for number, line in enumerate(source.text.splitlines(), 1):
        if index.search(line) or absolute.search(line):
            yield f"line {number}: {line.strip()[:80]}"


# ── run over the project ────────────────────────────────────────────────────────────────────────


def project_files() -> list[str]:
    """What git tracks, and what it would track if added: a guard should speak before the commit.

    In a source distribution they are those that it lists.
    """
    if not (ROOT / ".git").exists():
        text = (ROOT / "dfm_jax.egg-info" / "SOURCES.txt").read_text(encoding="utf-8")
        return sorted(path for path in text.splitlines() if not path.startswith("dfm_jax.egg-info"))
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(path for path in listed.split("\0") if path and (ROOT / path).is_file())


def sources(keep: Callable[[str], bool]) -> Iterator[Source]:
    for path in filter(keep, project_files()):
        try:
            yield Source(path, (ROOT / path).read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue  # a figure


def in_package(path: str) -> bool:
    return path.startswith("dfm_jax/") and path.endswith(".py")


def in_mathematics(path: str) -> bool:
    return in_package(path) and Source(path, "").layer in MATHEMATICS


def is_python(path: str) -> bool:
    return path.endswith(".py")


READS = {
    imports_point_down: in_package,
    foreign_packages_have_their_layer: in_package,
    public_names_have_docstrings: in_package,
    is_named_after_its_content: is_python,
    functions_are_named_after_what_they_return: is_python,
    array_signatures_are_typed: in_mathematics,
    reads_json_strictly: in_package,
    opens_pictures_at_one_place: lambda path: is_python(path) and not path.startswith("tests/"),
    refuses_in_one_form: lambda path: is_python(path) and not path.startswith("tests/"),
    pins_one_version_a_line: lambda path: path.startswith("constraints"),
    names_no_machine: lambda path: True,
}


@pytest.mark.parametrize(("guard", "reads"), READS.items(), ids=lambda fn: fn.__name__)
def test_the_project_obeys(guard, reads):
    files = list(sources(reads))
    assert files, "this guard reads no file"
    complaints = [f"{source.path}: {text}" for source in files for text in guard(source)]
    assert not complaints, "\n".join(complaints)


# ── and over sources that it must, and must not, complain about ─────────────────────────────────

BAD = {
    "upward in the mathematics": (
        imports_point_down,
        Source("dfm_jax/paths.py", "from dfm_jax.velocities import rate"),
    ),
    "upward inside a function": (
        imports_point_down,
        Source("dfm_jax/theory/ledger.py", "def f():\n    from dfm_jax import cli"),
    ),
    "upward, relative": (imports_point_down, Source("dfm_jax/paths.py", "from . import theory")),
    "from the layer of the mathematics to the package above it": (
        imports_point_down,
        Source("dfm_jax/accounting.py", "from dfm_jax.mixture import expert_posterior"),
    ),
    "upward inside a package of two layers": (
        imports_point_down,
        Source("dfm_jax/mixture/gates.py", "from dfm_jax.mixture.drawing import Draw"),
    ),
    "the mathematics sees the truth": (
        imports_point_down,
        Source("dfm_jax/paths.py", "import dfm_jax.exact.distributions"),
    ),
    "the truth sees the package": (
        imports_point_down,
        Source("dfm_jax/exact/distributions.py", "from dfm_jax.checks import require"),
    ),
    "a room imports the public names": (
        imports_point_down,
        Source("dfm_jax/cli.py", "import dfm_jax"),
    ),
    "the package sees the studies": (
        imports_point_down,
        Source("dfm_jax/cli.py", "import experiments.equality"),
    ),
    "a room without a place": (imports_point_down, Source("dfm_jax/attic.py", "")),
    "flax in data": (
        foreign_packages_have_their_layer,
        Source("dfm_jax/data/text.py", "import flax.linen as nn"),
    ),
    "optax in models": (
        foreign_packages_have_their_layer,
        Source("dfm_jax/models/tabular.py", "from optax import adam"),
    ),
    "orbax in the command line": (
        foreign_packages_have_their_layer,
        Source("dfm_jax/cli.py", "import orbax.checkpoint as ocp"),
    ),
    "jax in the truth": (
        foreign_packages_have_their_layer,
        Source("dfm_jax/exact/distributions.py", "import jax.numpy as jnp"),
    ),
    "scipy in the mathematics": (
        foreign_packages_have_their_layer,
        Source("dfm_jax/paths.py", "from scipy.special import logsumexp"),
    ),
    "a bare module": (public_names_have_docstrings, Source("dfm_jax/paths.py", "x = 1")),
    "a bare function": (
        public_names_have_docstrings,
        Source("dfm_jax/paths.py", '"""A path."""\ndef a(): ...'),
    ),
    "a bare class": (
        public_names_have_docstrings,
        Source("dfm_jax/paths.py", '"""A path."""\nclass A: ...'),
    ),
    "a bare method": (
        public_names_have_docstrings,
        Source(
            "dfm_jax/paths.py", '"""A path."""\nclass A:\n    """An a."""\n    def b(self): ...'
        ),
    ),
    "a file that says nothing": (
        is_named_after_its_content,
        Source("experiments/plot_utils.py", ""),
    ),
    "a getter": (
        functions_are_named_after_what_they_return,
        Source("experiments/a.py", "class A:\n    def _get_probs(self): ..."),
    ),
    "an argument that may lie": (
        array_signatures_are_typed,
        Source("dfm_jax/paths.py", "def probs(x: Tokens | None = None) -> float: ..."),
    ),
    "a result that may lie": (
        array_signatures_are_typed,
        Source("dfm_jax/paths.py", "@jax.jit\ndef probs(n: int) -> Float[Array, 'N S']: ..."),
    ),
    "a second reader of JSON": (
        reads_json_strictly,
        Source("dfm_jax/data/text.py", "import json\nrows = json.loads(text)"),
    ),
    "a second reader of pictures": (
        opens_pictures_at_one_place,
        Source("experiments/a.py", "import PIL.Image\npicture = PIL.Image.open(path)"),
    ),
    "a refusal without the value": (
        refuses_in_one_form,
        Source("dfm_jax/a.py", 'raise ValueError(f"`n` must be odd; it is {n}.")'),
    ),
    "a refusal that does not say what the value is of": (
        refuses_in_one_form,
        Source("experiments/a.py", 'rule = "There must be a row"\nrequire(rows, rule, 0)'),
    ),
    "a range of versions": (
        pins_one_version_a_line,
        Source("constraints.txt", "jax==0.10.2\nflax>=0.12"),
    ),
    "an absolute path": (
        names_no_machine,
        Source("README.md", "see `" + "/".join(["", "home", "someone", "x"]) + "`"),
    ),
    "a package index": (
        names_no_machine,
        Source("Makefile", "pip install --extra-" + "index" + "-url x"),
    ),
}


@pytest.mark.parametrize(("guard", "bad"), BAD.values(), ids=BAD)
def test_a_guard_complains(guard, bad):
    assert READS[guard](bad.path)
    assert list(guard(bad))


def test_every_guard_has_a_bad_source():
    assert {guard for guard, _ in BAD.values()} == set(READS)


GOOD = {
    "downward, and the version": (
        imports_point_down,
        Source("dfm_jax/cli.py", "from dfm_jax import __version__, theory\nimport dfm_jax.paths"),
    ),
    "the lower module of a package of two layers": (
        imports_point_down,
        Source("dfm_jax/accounting.py", "from dfm_jax.mixture.posterior import expert_posterior"),
    ),
    "the upper modules of that package": (
        imports_point_down,
        Source(
            "dfm_jax/mixture/drawing.py",
            "from dfm_jax.mixture.gates import bayes_gate\nfrom dfm_jax import sampling",
        ),
    ),
    "inside a room": (
        imports_point_down,
        Source(
            "dfm_jax/exact/bayes.py",
            "from dfm_jax.exact.distributions import probs\nfrom .probs import a",
        ),
    ),
    "optax in training": (
        foreign_packages_have_their_layer,
        Source("dfm_jax/training/step.py", "import optax\nimport orbax.checkpoint as ocp"),
    ),
    "a private function": (
        public_names_have_docstrings,
        Source("dfm_jax/paths.py", '"""A path."""\ndef _a(): ...'),
    ),
    "factories, refusals and typed functions": (
        array_signatures_are_typed,
        Source(
            "dfm_jax/paths.py",
            "def a(x: Tokens) -> Schedule: ...\n"
            "def b(f: Callable[[Array], Array]) -> Callable[[Array], Array]: ...\n"
            "class Gate(NamedTuple):\n    init: Callable[..., Array]\n"
            "def c(x: Tokens) -> Gate: ...\n"
            "def check_d(x: Tokens) -> None: ...\n"
            "@typed\ndef e(x: Tokens) -> Probs: ...\n"
            "def f(count: int) -> int: ...",
        ),
    ),
    "JSON that is written, and the one reader": (
        reads_json_strictly,
        Source(
            "dfm_jax/data/text.py",
            "import json\nfrom dfm_jax.json_text import read_json\ntext = json.dumps(1)",
        ),
    ),
    "refusals with the value": (
        refuses_in_one_form,
        Source(
            "dfm_jax/a.py",
            'rule, n = "There must be a row", 0\nrequire(n, rule, n, name="rows")\n'
            'require(n, f"`{name}` must be odd", n)\nrequire(n, given_rule, n)\n'
            'raise ValueError(f"`n` must be odd; got n = {n}.")',
        ),
    ),
    "an address of a paper": (
        names_no_machine,
        Source("README.md", "https://arxiv.org/abs/2601.03184 and ./" + "tmp/x"),
    ),
}


@pytest.mark.parametrize(("guard", "good"), GOOD.values(), ids=GOOD)
def test_a_guard_is_silent(guard, good):
    assert list(guard(good)) == []


# ── studies ─────────────────────────────────────────────────────────────────────────────────────


def in_circles(imports: Mapping[str, set[str]]) -> list[str]:
    """Modules that import themselves, by way of others."""

    def reached(name: str) -> set[str]:
        found, waiting = set(), list(imports[name])
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting += imports.get(one, set())
        return found

    return sorted(name for name in imports if name in reached(name))


def test_no_study_imports_in_a_circle():
    """Not for type checkers either."""
    imports = {}
    for path in (ROOT / "experiments").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found = imports.setdefault(".".join(parts).removesuffix(".__init__"), set())
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
    assert in_circles(imports) == []
    assert in_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]
