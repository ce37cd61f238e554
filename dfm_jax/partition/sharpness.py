"""The sharpness T of the soft route, fitted to the experts to which rows were assigned."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.boundary import widened
from dfm_jax.checks import check_interval, require
from dfm_jax.clustering import cosine_scores
from dfm_jax.data.manifest import read_manifest
from dfm_jax.json_types import as_type
from dfm_jax.partition.assign import Rule
from dfm_jax.types import Array, ArrayLike, Bool, Float, Int, Number, typed

MAX_SHARPNESS = 100.0
_HALVINGS = 40  # of [0, 100]: more than float32 can tell apart
_ROWS = 2**13  # whose scores are computed at a time


class FittedSharpness(NamedTuple):
    """The best T, the mean log-likelihood of a row there, and whether T is an end of the search.

    At the upper end the likelihood still rises: the rows are assigned too sharply for a softmax.
    """

    sharpness: Float[Array, ""]
    log_likelihood: Float[Array, ""]  # nats
    at_bound: Bool[Array, ""]


@typed
def fit_sharpness(
    scores: Float[ArrayLike, "R K"], labels: Int[ArrayLike, " R"], high: Number = MAX_SHARPNESS
) -> FittedSharpness:
    """argmax_{0 ≤ T ≤ b} ℓ(T): the T under which hard assignments are most likely.

        ℓ(T) = (1/R) Σ_i log p_i(k_i),   p_i(k) = exp(T s_ik) / Σ_j exp(T s_ij)
        ∂²ℓ/∂T² = −(1/R) Σ_i Var_{k ~ p_i}(s_ik)

    s_ik = ⟨c_k, f_i⟩ are the cosines of row i, and k_i its expert. ℓ is concave, so the zero of its
    slope, found by bisection, is its maximum; 1/√(−R ∂²ℓ/∂T²) is its standard error. Rows that all
    are at their nearest centroid have no finite maximum: then T is the upper end. So T measures how
    far balance moved rows from their nearest centroids. Source: McFadden (1974), the conditional
    logit.

    Args:
        scores: s, the cosine of each row with each centroid.
        labels: k_i, the expert of each row, in [0, K).
        high: b, the largest T that is tried.

    Raises:
        ValueError: if there is no row; if a score is not finite; if a label is not in [0, K); if b
            is not positive.
    """
    scores, labels = widened(scores), jnp.asarray(labels)
    num_experts = scores.shape[1]
    require(scores.shape[0] > 0, "`scores` must hold a row", scores.shape, name="scores.shape")
    require(jnp.isfinite(scores), "`scores` must be finite", scores)
    within = (labels >= 0) & (labels < num_experts)
    require(within, f"`labels` must lie in [0, {num_experts - 1}]", labels)
    check_interval("high", high, 0.0, jnp.inf, ends="()")
    return _fitted(scores, labels, jnp.asarray(high, scores.dtype))


@jax.jit
def _fitted(scores: Array, labels: Array, high: Array) -> FittedSharpness:
    # Gaps to the own score: at the nearest centroid none is negative, and so no term of the slope.
    gaps = jnp.take_along_axis(scores, labels[:, None], axis=1) - scores

    def log_likelihood(sharpness: Array) -> Array:
        return -jax.nn.logsumexp(-sharpness * gaps, axis=1).mean()

    slope = jax.grad(log_likelihood)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        rises = slope(middle) > 0
        return jnp.where(rises, middle, ends[0]), jnp.where(rises, ends[1], middle)

    low = jnp.zeros_like(high)
    inside = jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))[0]
    rises_to_the_end, falls = slope(high) >= 0, slope(low) <= 0
    best = jnp.where(rises_to_the_end, high, jnp.where(falls, low, inside))
    return FittedSharpness(best, log_likelihood(best), rises_to_the_end | falls)


def sharpness_record(features: np.ndarray, rule: Rule, labels: np.ndarray) -> dict[str, Any] | None:
    """The fit for the rows of a partition, as JSON takes it; None where experts have several
    centroids.

    With several, each row is at its nearest centroid, and the likelihood has no finite maximum.

    Args:
        features: The features of the rows that were clustered, [R, D].
        rule: The rule that was found.
        labels: The expert of each row, [R].
    """
    if len(rule.cluster_of) > len(np.unique(rule.cluster_of)):
        return None
    starts = range(0, len(features), _ROWS)
    scores = [np.asarray(cosine_scores(features[i : i + _ROWS], rule.clusters)) for i in starts]
    of_expert = np.concatenate(scores)[:, np.argsort(rule.cluster_of)]
    found = fit_sharpness(of_expert, labels)
    return {
        "sharpness": float(found.sharpness),
        "log_likelihood": float(found.log_likelihood),
        "at_bound": bool(found.at_bound),
    }


def recorded_sharpness(partition: Path) -> float:
    """The fitted T in the manifest of a partition.

    Raises:
        ValueError: if it is no partition, or has none.
    """
    manifest = read_manifest(partition)
    rule = "`partition` must be a folder that `partition` wrote"
    require(manifest is not None, rule, partition)
    assert manifest is not None
    said = manifest.get("sharpness")
    rule = f"`sharpness` must be a number, because {partition} has no fitted one"
    then = "Only partitions of one centroid an expert have one; `--num-fine` makes several."
    require(isinstance(said, dict), rule, "fitted", then=then)
    assert isinstance(said, dict)
    return as_type(float, said.get("sharpness"), "manifest.sharpness")
