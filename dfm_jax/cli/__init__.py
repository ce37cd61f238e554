"""The command line: python -m dfm_jax COMMAND; a module for each family of commands.

A command is a frozen dataclass whose `run` returns the exit status. It joins `_COMMANDS` under the
name that it is called by; its module imports what is heavy inside `run`.
"""

import sys
from typing import Annotated, Any, Union

import tyro

from dfm_jax.cli.launch import Launch
from dfm_jax.cli.partition import Partition, Route
from dfm_jax.cli.score import Score
from dfm_jax.cli.sweep import Sweep
from dfm_jax.cli.training import Evaluate, Gather, Sample, Train
from dfm_jax.cli.verification import Equations, Verify
from dfm_jax.data.packages import MissingDataError

_PROG = "python -m dfm_jax"
_COMMANDS = {
    "verify": Verify,
    "equations": Equations,
    "partition": Partition,
    "route": Route,
    "train": Train,
    "evaluate": Evaluate,
    "sample": Sample,
    "gather": Gather,
    "score": Score,
    "sweep": Sweep,
    "launch": Launch,
}


def main(args: list[str] | None = None) -> int:
    """Parse the command line and run it; bad values end in one line and exit status 2."""
    kinds: Any = Union[  # noqa: UP007, made of a table
        tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in _COMMANDS.items())
    ]
    command = tyro.cli(kinds, prog=_PROG, args=args, config=(tyro.conf.OmitSubcommandPrefixes,))
    name = next(name for name, kind in _COMMANDS.items() if kind is type(command))
    try:
        return command.run()
    except (ValueError, OSError, MissingDataError) as error:
        print(f"{_PROG} {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
