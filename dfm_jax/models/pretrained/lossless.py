"""Tokenizers: text to ids and back, and the rule that nothing is lost on the way.

A number of nats per byte is one of a text only if its ids are a code of that text: decoding them
gives every character again, and encoding twice gives the same ids. A tokenizer that lower-cases,
normalises, drops or draws is none; what it does to a text is refused when it does it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dfm_jax.checks import require


class Tokenizer(NamedTuple):
    """Text to ids and back; V ids in all. `decode(encode(text))` is the text."""

    encode: Callable[[str], bytes | Sequence[int] | Int[np.ndarray, " N"]]
    """The ids, without one that begins or ends a text. A special token's name is that token."""
    decode: Callable[[Sequence[int]], str]
    """The text, special tokens by their names; ids that mean nothing become U+FFFD."""
    num_tokens: int
    special: Mapping[str, int] = {}  # the names that are never cut
    backend: Any = None  # the `tokenizers.Tokenizer` behind it, if there is one


def lossless_ids(text: str, tokenizer: Tokenizer) -> Int[np.ndarray, " N"]:
    """The ids of a text, of which it can be had back.

    Raises:
        ValueError: if an id is not in [0, V), or a character does not come back; naming the first
            and its offset.
    """
    encoded, num = tokenizer.encode(text), tokenizer.num_tokens
    if isinstance(encoded, bytes):  # as they are: nothing is decoded, so surrogates may stand
        ids, back = np.frombuffer(encoded, np.uint8), encoded.decode("utf-8", "surrogatepass")
    else:
        ids = np.asarray(encoded) if len(encoded) else np.empty(0, np.int32)
        kind = f"{ids.dtype} in {ids.ndim} dimensions"
        rule = "`encode` of a tokenizer must give a list of integers"
        require(ids.dtype.kind in "iu" and ids.ndim == 1, rule, kind)
        outside = ids[(ids < 0) | (ids >= num)][:1]
        rule = f"`encode` of a tokenizer must give ids in [0, {num - 1}], its V being {num}"
        require(outside.size == 0, f"{rule}; one of them", outside.sum())
        back = tokenizer.decode(ids.tolist())
    if back != text:
        at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), None)
        at = min(len(text), len(back)) if at is None else at
        here, there = (repr(s[at]) if at < len(s) else "the end" for s in (text, back))
        raise ValueError(
            f"a tokenizer must give every character of a text back; at character {at} stands "
            f"{here}, and {there} comes back. One that drops, normalises or lower-cases is no code "
            "of the text, and nats per byte would be of another one."
        )
    return ids


def check_repeats(text: str, ids: Int[np.ndarray, " N"], tokenizer: Tokenizer) -> None:
    """Encoding the text once more gives the same ids.

    Raises:
        ValueError: if it does not.
    """
    encoded = tokenizer.encode(text)
    again = np.frombuffer(encoded, np.uint8) if isinstance(encoded, bytes) else np.asarray(encoded)
    rule = "`encode` of a tokenizer must give a text the same ids each time, and not draw them"
    require(np.array_equal(again, ids), f"{rule}; the number of ids", [len(ids), len(again)])
