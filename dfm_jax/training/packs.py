"""Pack short rows into sequences of N tokens, so that little of a batch is padding."""

import jax
import numpy as np
from jaxtyping import Int

from dfm_jax.checks import check_count, require
from dfm_jax.training.batches import row_indices
from dfm_jax.types import typed

OPEN_PACKS = 64  # that wait for a row which fits; so rows that are far apart share a pack seldom


@typed
def pack_rows(
    lengths: Int[np.ndarray, " R"],
    pictures: Int[np.ndarray, " R"],
    *,
    num_positions: int,
    max_pictures: int,
    seed: int,
    open_packs: int = OPEN_PACKS,
) -> list[np.ndarray]:
    """The rows of each pack: each row is in one pack, of at most N tokens and I pictures.

    The rows are taken in an order that the seed draws. Each goes into the first open pack that has
    room for it. If none has, a new pack is opened; if too many are open, the oldest is closed.

    Args:
        lengths: The tokens of each row.
        pictures: The pictures of each row.
        num_positions: N.
        max_pictures: I.
        seed: The seed of the order.
        open_packs: How many packs are open at a time.

    Raises:
        ValueError: if a row alone is too long, or has too many pictures.
    """
    check_count("open_packs", open_packs)
    for name, values, most in (
        ("lengths", lengths, num_positions),
        ("pictures", pictures, max_pictures),
    ):
        top = int(values.max(initial=0))
        require(top <= most, f"`{name}` must be at most {most}", top)
    if len(lengths) == 0:
        return []
    order = np.asarray(row_indices(jax.random.key(seed), 0, len(lengths), len(lengths)))
    room = np.zeros((0, 2), np.int64)  # tokens and pictures that still fit into each open pack
    packs: list[list[int]] = []
    done: list[list[int]] = []
    for row in order.tolist():
        needs = np.array([lengths[row], pictures[row]], np.int64)
        fits = np.flatnonzero((room >= needs).all(axis=1))
        if len(fits) == 0:
            if len(packs) == open_packs:
                done.append(packs.pop(0))
                room = room[1:]
            packs.append([])
            room = np.concatenate([room, [[num_positions, max_pictures]]])
            fits = [len(packs) - 1]
        packs[fits[0]].append(row)
        room[fits[0]] -= needs
    return [np.array(pack) for pack in done + packs]
