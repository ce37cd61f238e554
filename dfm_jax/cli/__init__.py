"""The command line, python -m dfm_jax COMMAND, with one module for each family of commands.

A command is a frozen dataclass whose `run` returns the exit status. The table `COMMANDS` gives it
the name by which it is called. Its module does heavy imports inside `run`.
"""

import inspect
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro

from dfm_jax.allocator import keep_buffers, peak_memory
from dfm_jax.cli.answer import Answer
from dfm_jax.cli.arguments import check_run
from dfm_jax.cli.compare_answers import CompareAnswers
from dfm_jax.cli.compare_runs import CompareRuns
from dfm_jax.cli.doctor import Doctor
from dfm_jax.cli.launch import Launch
from dfm_jax.cli.partition import Partition, Route
from dfm_jax.cli.plan import Plan
from dfm_jax.cli.questions import Questions
from dfm_jax.cli.report import Report
from dfm_jax.cli.score import Score
from dfm_jax.cli.status import Status
from dfm_jax.cli.sweep import Sweep
from dfm_jax.cli.training import Evaluate, Export, MakeEnsemble, Sample, Train
from dfm_jax.cli.verification import Equations, Verify
from dfm_jax.training.stopping import listen
from dfm_jax.training.trouble import ended

# ── The words of a command line before they are parsed: an option is given once ───────────────────


def check_given_once(words: Sequence[str]) -> None:
    """Refuse an option that is given twice; the parser would silently take the last one.

    Several values of one option follow its name: `--set seed=1 model.width=96`.

    Raises:
        ValueError: if an option is given twice, or together with its opposite.
    """
    names = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"`{name}` must be given once, with all its values after it; got {name} "
                f"{names.count(name)} times."
            )
        if (opposite := f"--no-{name.removeprefix('--')}") in names:
            raise ValueError(f"At most one of `{name}` and `{opposite}` must be given; got both.")


_PROG = "python -m dfm_jax"
COMMANDS = {
    "doctor": Doctor,
    "verify": Verify,
    "equations": Equations,
    "partition": Partition,
    "route": Route,
    "plan": Plan,
    "train": Train,
    "evaluate": Evaluate,
    "sample": Sample,
    "make-ensemble": MakeEnsemble,
    "export": Export,
    "questions": Questions,
    "answer": Answer,
    "score": Score,
    "compare-runs": CompareRuns,
    "compare-answers": CompareAnswers,
    "sweep": Sweep,
    "launch": Launch,
    "status": Status,
    "report": Report,
}
_RENAMED = {"gather": "make-ensemble"}  # commands of version 0.1


_DESCRIPTION = """Decentralized autoregressive generation as discrete flow matching.

Examples:
    python -m dfm_jax doctor                 what this machine has
    python -m dfm_jax verify                 every statement, by enumeration: half a minute
    python -m dfm_jax train --help           the options of a command, and examples
"""


def parsed(args: list[str]) -> Any:
    """The command that these words name, not yet run; if none, SystemExit with the reason."""
    if args and args[0] in _RENAMED:
        line = f"The command is {_RENAMED[args[0]]} since version 0.2; got {args[0]}."
        print(f"{_PROG}: {line}", file=sys.stderr)
        raise SystemExit(2)
    try:
        check_given_once(args)
        check_run(args)
    except ValueError as error:
        print(f"{_PROG} {args[0]}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    listed = not args or args[0] in ("-h", "--help")  # each command in its first sentence
    kinds: Any = Union[  # noqa: UP007, made of a table
        tuple(
            Annotated[
                kind, tyro.conf.subcommand(name, description=_summary(kind) if listed else None)
            ]
            for name, kind in COMMANDS.items()
        )
    ]
    return tyro.cli(
        kinds,
        prog=_PROG,
        description=_DESCRIPTION,
        args=args,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )


def main(args: list[str] | None = None) -> int:
    """Parse the command line and run it; an error becomes one line and an exit status.

    Given `args`, it is called by a program, whose signals and allocator are left as they are.
    """
    if args is None:
        listen()
    prog = _PROG

    def run() -> int:
        nonlocal prog
        command = parsed(sys.argv[1:] if args is None else args)
        prog += f" {next(name for name, kind in COMMANDS.items() if kind is type(command))}"
        keeps = args is None and getattr(command, "keep_buffers", False)
        if not (keeps and keep_buffers()):  # before jax allocates
            return command.run()
        status = command.run()
        if (peak := peak_memory()) is not None:
            said = f"{prog}: at most {peak / 2**30:.2f} GiB of memory, freed buffers included."
            print(said, file=sys.stderr)
        return status

    return ended(lambda: prog, run)


def _summary(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0]
