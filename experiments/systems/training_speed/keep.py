"""Whether our side keeps its buffers, as a command of the package does by itself."""

import contextlib
from collections.abc import Sequence
from importlib import import_module

KEEP = "keep"


def keep_as_told(arguments: Sequence[str]) -> None:
    """Do what a command of the package does before XLA first allocates, if the argument says so."""
    assert list(arguments) in ([], [KEEP])
    if arguments:
        with contextlib.suppress(ModuleNotFoundError):
            import_module("dfm_jax.allocator").keep_buffers()
