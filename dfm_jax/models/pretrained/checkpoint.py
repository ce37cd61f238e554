"""The checkpoint that readers return, and the comparison of two lists of tensors."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from dfm_jax.checks import require

_SHOWN = 3  # names in one part of a refusal


class Checkpoint(NamedTuple):
    """A checkpoint on disk; only its names and shapes are in memory.

    Tensors have their Hugging Face names and the shapes that they have there: matrices are [out,
    in], and the rows of q and k are ordered for rotation by halves.
    """

    config: Any  # TransformerConfig, MultimodalConfig or VisionConfig
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]  # one tensor by name; dequantized, if it was quantized
    path: Path  # of the file or folder
    metadata: Mapping[str, Any]  # all that it says about itself, as it says it
    token_ids: Mapping[str, Any] = {}  # bos, eos, pad, unk: an id, several, or none
    generation: Mapping[str, Any] | None = None  # its generation_config.json, if it has one


TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def check_token_ids(ids: Mapping[str, Any], num_tokens: int, source: Path | str) -> None:
    """Check that `ids` is an id below V, a list of such ids, or None."""
    for name, value in ids.items():
        each = value if isinstance(value, list) else [] if value is None else [value]
        good = all(type(i) is int and 0 <= i < num_tokens for i in each)
        rule = f"`{name}` of {source} must hold ids in [0, {num_tokens - 1}]"
        require(good, rule, value)


def check_tensors(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    source: Path | str,
) -> None:
    """Refuse `source` unless it holds exactly the expected tensors, in the expected shapes."""
    wrong = [
        f"{name} {list(found[name])} for {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    parts = {
        "missing": [name for name in expected if name not in found],
        "unknown": [name for name in found if name not in expected],
        "wrong in shape": wrong,
    }
    for kind, names in parts.items():
        more = f" ({len(names)} in all)" if names[_SHOWN:] else ""
        rule = f"{source} must hold the tensors that its config names"
        require(not names, rule, names[:_SHOWN], name=f"{kind}{more}")


def imported(module: str) -> ModuleType:
    """Import a package of the extra `hf`; this happens only if a file needs it.

    Raises:
        ImportError: if it is not installed; the message has the command that installs it.
    """
    if find_spec(module) is None:
        message = (
            f"This file needs the package `{module}`, which is not installed: "
            "`pip install 'dfm_jax[hf]'`."
        )
        raise ImportError(message, name=module)
    return import_module(module)
