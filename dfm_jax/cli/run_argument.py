"""The argument --run: a folder of this machine, or the address of one on an object store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec

if TYPE_CHECKING:
    from dfm_jax.storage.folders import Folder as RunFolder
else:

    def _folder(words: list[str]) -> Any:
        if "://" not in words[0]:
            return Path(words[0])
        from dfm_jax.storage.folders import run_folder  # imports jax, which --help does not await

        return run_folder(words[0])

    RunFolder = Annotated[
        Any,
        PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=_folder,
            is_instance=lambda value: hasattr(value, "read_bytes"),
            str_from_instance=lambda value: [str(value)],
        ),
        tyro.conf.arg(name="run"),
    ]
