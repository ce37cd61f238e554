"""Whether two ways to label the same rows agree."""

import jax.numpy as jnp
from jax.scipy.special import entr

from dfm_jax.checks import require
from dfm_jax.types import ArrayLike, Int, Scalar, typed


@typed
def normalized_mutual_information(
    first: Int[ArrayLike, " R"], second: Int[ArrayLike, " R"]
) -> Scalar:
    """NMI = 2 I(A; B) / (H(A) + H(B)), in [0, 1]; 1 if both have a single cluster.

    Labels count from 0; which number a cluster has does not matter.

    Raises:
        ValueError: if there is no row, or a label is negative.
    """
    first, second = jnp.asarray(first), jnp.asarray(second)
    require(first.size > 0, "`first` must hold a label; their number", first.size)
    for name, labels in (("first", first), ("second", second)):
        require(labels >= 0, f"`{name}` must hold labels from 0 on", labels)
    width = int(second.max()) + 1
    size = (int(first.max()) + 1) * width
    joint = jnp.bincount(first * width + second, length=size).reshape(-1, width) / first.size
    entropies = entr(joint.sum(0)).sum() + entr(joint.sum(1)).sum()
    information = entropies - entr(joint).sum()
    return jnp.where(entropies > 0, 2 * information / jnp.where(entropies > 0, entropies, 1), 1.0)
