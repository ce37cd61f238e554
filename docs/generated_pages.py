"""Pages made of the code before each build: a page a room, the map of equations, the commands."""

import contextlib
import importlib
import io
import os
import pkgutil
from pathlib import Path
from unittest import mock

from dfm_jax import cli
from dfm_jax.theory import LEDGER
from dfm_jax.theory.ledger import citations
from dfm_jax.theory.proofs import main_theorem, proof_of, proved
from dfm_jax.theory.proofs.tie import TIES
from dfm_jax.theory.statement import in_order

# From the bottom of the house to its top, as imports point.
LAYERS = (
    *("allocator", "types", "checks", "durable", "exact", "boundary", "interfaces"),
    *("schedules", "paths", "velocities", "steps", "markov", "mixture", "clustering"),
    *("objectives", "samplers", "accounting"),
    *("fast", "sampling", "likelihoods", "comparison", "parallel", "json_text", "theory"),
    *(
        "json_types",
        "storage",
        "models",
        "data",
        "partition",
        "scoring",
        "training",
        "launch",
    ),
)
COMMANDS = (
    *((name,) for name in cli.COMMANDS),
    *(("launch", where) for where in ("local", "slurm", "jobset")),
)
HELP_WIDTH = 88


def write_pages(folder: Path) -> None:
    """All of them, into a folder that git ignores."""
    pages = {f"reference/{layer}.rst": room_page(layer) for layer in LAYERS}
    pages["equations_by_module.md"] = equations_by_module()
    pages["commands.md"] = commands()
    pages["tie.md"] = tie()
    pages["theorems.md"] = theorems()
    for name, text in pages.items():
        _write(folder / name, text)


def copy_notebooks(folder: Path) -> None:
    """The executed notebooks, from the top of the project to where Sphinx reads its pages."""
    for path in sorted((folder.parents[1] / "notebooks").glob("*.ipynb")):
        _write(folder / path.name, path.read_text("utf-8"))


def _write(path: Path, text: str) -> None:
    """A file that stays the same keeps its time: Sphinx reads it once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def room_page(layer: str) -> str:
    """The docstring of a room, then each of its modules with its public names."""
    name = f"dfm_jax.{layer}"
    module = importlib.import_module(name)
    lines = [name, "=" * len(name), "", f".. automodule:: {name}"]
    if hasattr(module, "__path__"):
        lines += ["   :no-members:"]
        for inner in _modules(module):
            lines += ["", inner, "-" * len(inner), "", f".. automodule:: {inner}"]
    return "\n".join(lines) + "\n"


def _modules(package) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    return [module.name for module in found if not module.ispkg]


def equations_by_module() -> str:
    """Which function computes which equation, room by room: the ledger read the other way."""
    functions: dict[str, list[str]] = {}
    for statement in in_order():
        for function in citations().get(statement.label, []):
            functions.setdefault(function, []).append(statement.label)
    lines = []
    layers = dict.fromkeys(function.split(".")[0] for function in functions)
    for layer in sorted(layers, key=LAYERS.index):
        lines += [f"## `{layer}`", "", "| function | equation | proof |", "|---|---|---|"]
        for function, labels in functions.items():
            if function.startswith(layer + "."):
                words = "; ".join(f"**{label}** {LEDGER[label].words}" for label in labels)
                found = ", ".join(f"`{name}`" for name in map(main_theorem, labels) if name)
                lines.append(f"| {_link(function)} | {_cell(words)} | {found} |")
        lines.append("")
    return "\n".join(lines)


def tie() -> str:
    """Which definition of the proofs is computed beside which function."""
    lines = ["| label | definition in Coq | function |", "|---|---|---|"]
    for label, definition, function, _ in TIES:
        lines.append(f"| **{label}** | `{definition}` | {_link(function)} |")
    return "\n".join(lines) + "\n"


def theorems() -> str:
    """Every theorem as Coq prints it, label by label."""
    lines = []
    words = {statement.label: statement.words for statement in in_order()}
    for label in words:
        lines += [
            f"### {label}",
            "",
            _cell(words[label]),
            "",
            f"Proof: {_cell(proof_of(label))}.",
            "",
        ]
        for theorem in proved().get(label, ()):
            classical = " Needs real analysis." if theorem.assumptions else ""
            lines += [f"`{theorem.name}` in `{theorem.file}`.{classical}", ""]
            lines += ["```coq", theorem.statement, "```", ""]
    return "\n".join(lines) + "\n"


def _link(function: str) -> str:
    layer, name = function.split(".")
    defined = getattr(importlib.import_module(f"dfm_jax.{layer}"), name)
    role = "class" if isinstance(defined, type) else "func"
    return f"{{py:{role}}}`{name} <{defined.__module__}.{name}>`"


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("*(", "\\*(").replace("_", "\\_").replace("[", "\\[")


def commands() -> str:
    """`--help` of every command, as it is printed."""
    pages = ["# Commands", "", "Every command of `python -m dfm_jax`, as its `--help` prints it."]
    for words in COMMANDS:
        title = " ".join(words)
        pages += ["", f"## `{title}`", "", "```text", help_of(words), "```"]
    return "\n".join(pages) + "\n"


def help_of(words: tuple[str, ...]) -> str:
    """What a command prints of itself, without colors."""
    printed = io.StringIO()
    plain = {"COLUMNS": str(HELP_WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    with (
        mock.patch.dict(os.environ, plain),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        cli.main([*words, "--help"])
    return printed.getvalue().rstrip()
