"""The ledger as a page: which statement, where it lives, what breaks it."""

import ast
import inspect
import re
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

from dfm_jax.theory.statement import SECTIONS, in_order

MATHEMATICS = (
    "schedules",
    "paths",
    "velocities",
    "steps",
    "experts",
    "gates",
    "objectives",
    "samplers",
    "accounting",
)
_CITATION = re.compile(r"\[((?:[A-Z]\d+[ab]?)(?:(?:, |–)[A-Z]\d+[ab]?)*)\]")


def cited_labels(docstring: str) -> set[str]:
    """The labels that a docstring cites, as in `[D4, D13]`; S7a and S7b are parts of S7."""
    labels = set()
    for group in _CITATION.findall(docstring):
        if "–" not in group:  # a range belongs to a module's caption
            labels |= {label.rstrip("ab") for label in group.split(", ")}
    return labels


def citations() -> dict[str, list[str]]:
    """Label → the functions of the mathematics whose docstrings cite it, as `module.function`."""
    found = defaultdict(list)
    for module in MATHEMATICS:
        for source in _files(module):
            for node in ast.parse(source.read_text("utf-8")).body:
                public = isinstance(node, ast.FunctionDef | ast.ClassDef)
                if public and not node.name.startswith("_"):
                    for label in cited_labels(ast.get_docstring(node) or ""):
                        found[label].append(f"{module}.{node.name}")
    return dict(found)


def _files(module: str) -> list[Path]:
    """The source of a module, or of all modules of a package."""
    spec = find_spec(f"dfm_jax.{module}")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"dfm_jax.{module} has no source")
    source = Path(spec.origin)
    return sorted(source.parent.glob("*.py")) if spec.submodule_search_locations else [source]


def equations() -> str:
    """EQUATIONS.md: every statement with its functions, its residual and its falsifier."""
    where, section = citations(), ""
    lines = [
        "# The equation ledger",
        "",
        "Written by `python -m dfm_jax equations --out EQUATIONS.md`.",
        "`python -m dfm_jax verify` runs every row.",
        "The falsifier is the same statement with one hypothesis broken: it must fail.",
    ]
    for statement in in_order():
        if SECTIONS[statement.label[0]] != section:
            section = SECTIONS[statement.label[0]]
            lines += ["", f"## {section}", ""]
            lines += ["| | statement | kind | source | functions | falsifier | residual |"]
            lines += ["|---|---|---|---|---|---|---|"]
        residual = statement.residual
        home = (inspect.getmodule(residual) or residual).__name__.removeprefix("dfm_jax.")
        functions = ", ".join(f"`{name}`" for name in where.get(statement.label, []))
        cells = (
            f"**{statement.label}**",
            statement.words.replace("|", "\\|"),
            statement.kind,
            statement.source,
            functions,
            statement.falsifier_words,
            f"`{home}.{residual.__name__}`",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
