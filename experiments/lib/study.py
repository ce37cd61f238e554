"""The driver of all studies: presets, a folder, cells that survive an interruption, exit status."""

import ast
import contextlib
import functools
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import tyro
from rich.console import Console

import dfm_jax
from dfm_jax.allocator import keep_buffers
from dfm_jax.checks import check_seed
from dfm_jax.cli import check_given_once
from dfm_jax.data import Corpus
from dfm_jax.durable import write_file
from dfm_jax.json_text import read_json
from dfm_jax.training.stopping import ExitStatus
from dfm_jax.training.trouble import ended

Config = TypeVar("Config")
STOPPED = ExitStatus.SIGINT


def parsed(presets: Mapping[str, Config], prog: str, args: Sequence[str] | None = None) -> Config:
    """The parsed command line: values start from `--preset`, and other options override them."""
    args = sys.argv[1:] if args is None else list(args)
    with refused(prog):
        check_given_once(args)
    first = next(iter(presets))
    choice = make_dataclass("Choice", [("preset", Literal[tuple(presets)], first)])
    # The preset is read first, so that --help shows the values it stands for.
    chosen, _ = tyro.cli(choice, args=args, prog=prog, return_unknown_args=True, add_help=False)
    default = presets[chosen.preset]
    examples = [f"{prog} --preset {name}" for name in presets]
    examples.append(f"{prog} --preset {first} --out here")
    help_text = described(type(default).__doc__ or "", examples)
    config = tyro.cli(type(default), args=args, prog=prog, default=default, description=help_text)
    with refused(prog):
        if (seed := getattr(config, "seed", None)) is not None:
            check_seed("seed", seed)
    return config


@contextlib.contextmanager
def refused(prog: str) -> Iterator[None]:
    """In this context, a refused value ends like an unknown option: with one line and status 2."""
    try:
        yield
    except ValueError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def described(words: str, examples: Sequence[str]) -> str:
    """The first words of `--help`, with commands to copy."""
    return "\n    ".join([f"{inspect.cleandoc(words)}\n\nFor example:", *examples])


def exit_status(prog: str, run: Callable[[], bool]) -> int:
    """0 if every claim holds, 1 if one fails; 2, 75, 130 and 143 as for the commands.

    2 means an input that cannot be used, 75 trouble that may pass, 130 and 143 a signal.
    """
    go_on = "stopped; the same command goes on from here"
    return ended(lambda: prog, lambda: 0 if run() else 1, stopped=go_on)


def main_of(
    prog: str,
    presets: Mapping[str, Config],
    run: Callable[[Config, Console], bool],
    check: Callable[[Config], None] | None = None,
) -> Callable[..., int]:
    """The command of a study: read and check the options, make the folder, run the study.

    Args:
        prog: The command, for messages.
        presets: Named configs; the first is the default.
        run: A function that measures, writes and prints, and returns whether every claim holds.
        check: A function that refuses values outside their domain.
    """

    def main(args: Sequence[str] | None = None) -> int:
        """0 if every claim holds, 1 if one fails, 2 for input that cannot be used, 130 stopped."""
        config: Any = parsed(presets, prog, args)
        if args is None:
            keep_buffers()  # as commands of the package do

        def whole() -> bool:
            if check is not None:
                check(config)
            config.out.mkdir(parents=True, exist_ok=True)
            return run(config, Console())

        return exit_status(prog, whole)

    return main


def have_cpu_devices(count: int) -> None:
    """Make so many virtual devices of the host, unless jax has its devices already."""
    with contextlib.suppress(RuntimeError):  # the backend is up, and has what it has
        jax.config.update("jax_num_cpu_devices", count)


def show_tables(
    name: str, markdown: Callable[[dict[str, Any]], Sequence[str]], args: Sequence[str] | None
) -> int:
    """The command `python -m experiments.NAME.report RESULT`: 0, or 2 if the file is wrong."""

    def show(result: tyro.conf.Positional[Path]) -> bool:
        """Print the tables of the README, in Markdown.

        Args:
            result: `result.json` of a run of that study.
        """
        text = result.read_bytes()
        try:
            tables = markdown(json.loads(text))
        except (ValueError, LookupError, TypeError) as error:
            rule = f"`result` must be a file that `experiments.{name}` wrote"
            raise ValueError(f"{rule}; got result = {str(result)!r}, with {error!r}.") from error
        print("\n\n".join(tables))
        return True

    prog = f"python -m experiments.{name}.report"
    example = f"{prog} experiments/results/{name}.json"
    help_text = described("Print the tables of the README, in Markdown.", [example])
    return exit_status(prog, lambda: tyro.cli(show, prog=prog, args=args, description=help_text))


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The measurements of a study so far, one JSON file per cell, so that a run can be interrupted.

    A cell is read from its file only if it was measured by the same code, on the same data, with
    the same values; otherwise it is measured again. The code is that of the study and of all that
    it imports, except parsing and display (`code_digest`).
    """

    folder: Path
    depends_on: Mapping[str, Any]  # values, versions, data: whatever a cell is a function of
    programs: tuple[str, ...]  # the modules that are started: the study, and its own processes

    def measured(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell of that name, measured if needed; it must be made of JSON values."""
        found = self.known(name)
        if found is not None:
            return found
        made_by = self._fingerprint  # before it is measured
        cell = json.loads(json.dumps(measure()))
        record = {"depends_on": made_by, "cell": cell, "sha256": _digest(cell)}
        write_file(self._path(name), json.dumps(record))  # a cell is whole, or not there
        return cell

    def known(self, name: str) -> dict[str, Any] | None:
        """The cell, if it was measured before."""
        try:
            record = read_json(self._path(name))
            if record["sha256"] != _digest(record["cell"]):
                raise ValueError("its SHA-256 is another")
            return record["cell"] if record["depends_on"] == self._fingerprint else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            print(f"{self._path(name)} cannot be read ({error!r}): measured anew", file=sys.stderr)
            return None

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    @functools.cached_property  # once a run: what is edited meanwhile is not what is running
    def _fingerprint(self) -> str:
        text = json.dumps(
            [dict(self.depends_on), code_digest(self.programs)],
            sort_keys=True,
            default=os.fspath,
        )
        return hashlib.sha256(text.encode()).hexdigest()


def _digest(cell: Any) -> str:
    return hashlib.sha256(json.dumps(cell).encode()).hexdigest()


_SHOWS = ("report", "figure", "screen")  # the last word of a module that shows what was measured
_ASKS = "dfm_jax.cli"  # the command line measures nothing


def code_digest(programs: Sequence[str]) -> str:
    """A digest of the code of some modules of the studies, and of all that they import.

    Code that never runs does not count: comments, docstrings and layout. Nor do modules that only
    show a result, and the command line.
    """
    digest = hashlib.sha256()
    for name, code in sorted(_imported(programs).items()):
        digest.update(f"{name}\n{code}\n".encode())
    return digest.hexdigest()


def _imported(programs: Sequence[str]) -> dict[str, str]:
    """The code of modules, and of all that they import from the package and the studies."""
    found: dict[str, str] = {}
    waiting = list(programs)
    while waiting:
        name = waiting.pop()
        file = _file_of(name)
        if name in found or file is None or name == _ASKS or name.startswith(f"{_ASKS}."):
            continue
        if name.rpartition(".")[2].rpartition("_")[2] in _SHOWS:
            continue
        found[name], names = _read(file.read_text("utf-8"))
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # importing a module runs its packages
        if file.name == "__init__.py" and name in programs:
            waiting.append(f"{name}.__main__")
        waiting += names
    return found


@functools.cache
def _read(source: str) -> tuple[str, list[str]]:
    """The code of a module without its prose, and the names that it may import."""
    tree, names = _without_prose(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.append(f"{node.value.id}.{node.attr}")  # dfm_jax.paths, imported so
    return ast.dump(tree), names


def _file_of(name: str) -> Path | None:
    """The file of a module of the package or the studies; None for any other module."""
    first, *rest = name.split(".")
    if first == "dfm_jax":
        folders = [Path(dfm_jax.__file__).parent]
    elif first == "experiments":
        studies = Path(__file__).parents[1]
        folders = [studies, studies / "systems"]
    else:
        return None
    for folder in folders:
        at = folder.joinpath(*rest)
        for file in (at / "__init__.py", at.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def _without_prose(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [x for x in node.body if not _is_prose(x)]
    return tree


def _is_prose(node: ast.stmt) -> bool:
    """Whether a node is a docstring, or code that only type checkers read."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def data_digest(corpora: Sequence[Corpus]) -> str:
    """A digest of every document: its domain, its name, its work and its text."""
    digest = hashlib.sha256()
    for corpus in corpora:
        for document in corpus.documents:
            digest.update(repr((corpus.domain, document)).encode())
    return digest.hexdigest()
