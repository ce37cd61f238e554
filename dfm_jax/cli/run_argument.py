"""The argument --run: a folder of this machine, or the address of one on an object store."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec


def as_folder(words: Sequence[str]) -> Any:
    """The folder that the word of --run names; ValueError for an address that is none."""
    if "://" not in words[0]:
        return Path(words[0])
    from dfm_jax.storage.folders import run_folder  # not before it is needed: --help is awaited

    return run_folder(words[0])


def check_run(words: Sequence[str]) -> None:
    """Refuse an address that is none in one line, where the parser would print a whole page."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == "--run":
            as_folder([value if equals else after])


if TYPE_CHECKING:
    from dfm_jax.storage.folders import Folder as RunFolder
else:
    RunFolder = Annotated[
        Any,
        PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=as_folder,
            is_instance=lambda value: hasattr(value, "read_bytes"),
            str_from_instance=lambda value: [str(value)],
        ),
        tyro.conf.arg(name="run"),
    ]
