"""Gates from features of the context: laws that stay as they are along the sequence.   [D8]"""

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_interval, require
from dfm_jax.paths import HIGHEST
from dfm_jax.types import ArrayLike, Float, Number, Weights, typed


@typed
def centroid_gate(
    features: Float[ArrayLike, " D"], centroids: Float[ArrayLike, "K D"], temperature: Number
) -> Weights:
    """A gate by direction: softmax of the cosine between the features and each centroid.

        ρ_k ∝ exp(⟨f, c_k⟩ / (‖f‖ ‖c_k‖ τ))

    τ → 0 is the nearest centroid (`hard_gate` of this), the paper's rule. Source: DAG, DDM.

    Raises:
        ValueError: if τ ≤ 0, or a vector has length 0 and so no direction.
    """
    check_interval("temperature", temperature, 0.0, jnp.inf, ends="()")
    lengths = jnp.linalg.norm(centroids, axis=-1)
    length = jnp.linalg.norm(features)
    require(length > 0, "`features` must not be the zero vector: it has no direction", length)
    require(lengths > 0, "`centroids` must not hold a zero vector", lengths)
    cosines = jnp.matmul(centroids, features, precision=HIGHEST) / (lengths * length)
    return jax.nn.softmax(cosines / temperature)
