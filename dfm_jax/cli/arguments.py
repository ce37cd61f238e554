"""Arguments that several commands take: the folder of a run, and whether freed memory is kept."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from dfm_jax.storage.folders import Folder, run_folder


def check_run(words: Sequence[str]) -> None:
    """Refuse an address that is none in one line, where the parser would print a whole page."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == "--run":
            run_folder(value if equals else after)


if TYPE_CHECKING:
    RunFolder = Folder
else:
    RunFolder = Annotated[
        Any,
        PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: run_folder(words[0]),
            is_instance=lambda value: hasattr(value, "read_bytes"),
            str_from_instance=lambda value: [str(value)],
        ),
        tyro.conf.arg(name="run"),
    ]

KeepBuffers = Annotated[
    bool,
    tyro.conf.arg(
        help="Keep freed memory for the next buffers. "
        "This is faster on a CPU, and takes more memory."
    ),
]
