"""The state of a run as one pytree, and the optimizer that updates it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfm_jax.checks import require
from dfm_jax.interfaces import Task
from dfm_jax.models import Network, Params, VisionLanguage
from dfm_jax.training.config import OptimizerConfig
from dfm_jax.types import Array, ArrayLike, Float, Int, Key, typed


class TrainState(NamedTuple):
    """Everything that changes in a run. `step` counts the updates; `ema` is None if none is kept.

    It holds no keys: the key of a step is `fold_in(key, step)`.
    """

    step: Int[ArrayLike, "*R"]
    params: Params
    optimizer: Any
    ema: Params | None


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """AdamW, whose peak rate η, weight decay, W and S are values in its state, not constants.

        g ← g · min(1, max_norm / ‖g‖),  ‖g‖ over all leaves
        θ ← θ − η_s (m̂ / (√v̂ + ε) + decay · θ),  decay for matrices only

    So runs that differ in these values share one program: use `with_hyperparameters`, then
    `jax.vmap`. The norm is clipped before the moments are computed. Source: Loshchilov & Hutter
    (1711.05101).
    """

    def adamw(
        learning_rate: Array, weight_decay: Array, warmup_steps: Array, num_steps: Array
    ) -> optax.GradientTransformation:
        def negative_rate(step: ArrayLike) -> Array:
            end = config.final_fraction
            return -learning_rate * learning_rate_shape(step, warmup_steps, num_steps, end)

        clip = optax.clip_by_global_norm(config.max_norm) if config.max_norm else optax.identity()
        return optax.chain(
            clip,
            optax.scale_by_adam(config.b1, config.b2, config.epsilon),
            # Masked means: added where True. Where False the update passes through as it came.
            optax.add_decayed_weights(weight_decay, mask=is_matrix),
            optax.scale_by_schedule(negative_rate),
        )

    return optax.inject_hyperparams(adamw)(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        num_steps=config.decay_steps or num_steps,
    )


@typed
def learning_rate_shape(
    step: Int[ArrayLike, ""],
    warmup_steps: Int[ArrayLike, ""],
    num_steps: Int[ArrayLike, ""],
    final_fraction: float,
) -> Float[Array, ""]:
    """η_s / η, the share of the peak rate in update s = 0, 1, …

    (s + 1) / W                              s < W, the warm-up
    f + (1 − f)(1 + cos(π a)) / 2            a = (s − W) / (S − W), up to s = S
    """
    warmup, end = jnp.asarray(warmup_steps), final_fraction
    rising = (jnp.asarray(step) + 1) / jnp.maximum(warmup, 1)
    length = jnp.maximum(jnp.asarray(num_steps) - warmup, 1)
    passed = jnp.clip((jnp.asarray(step) - warmup) / length, 0.0, 1.0)
    falling = end + (1 - end) * (1 + jnp.cos(jnp.pi * passed)) / 2
    return jnp.where(jnp.asarray(step) < warmup, rising, falling)


def is_matrix(params: Params) -> Any:
    """Which leaves decay: those with two axes or more, such as embeddings and stacked layers.

    A vector that a scan has stacked also has two axes; its name, `scale` or `bias`, excludes it.
    """

    def decays(path: tuple, leaf: Array) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True) if path else ""
        return leaf.ndim >= 2 and name not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(decays, params)


def init_state(
    key: Key,
    network: Network | VisionLanguage | Task,
    optimizer: optax.GradientTransformation,
    *,
    ema: bool = False,
) -> TrainState:
    """The state at step 0: fresh parameters, and their average, which starts at them.

    Raises:
        ValueError: if a parameter is float16 or bfloat16: such a number loses an update of less
            than 1/256 of it, its average stands still, and Adam's b2 = 0.999 is rounded to 1.
    """
    return state_of(network.init(key), optimizer, ema=ema)


def state_of(
    params: Params, optimizer: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
    """The state at step 0 with these parameters; see `init_state`.

    Raises:
        ValueError: if a parameter is float16 or bfloat16.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
        rule = "Parameters that are trained must be float32 or wider, or small updates are lost"
        then = "Keep them in float32, and compute in half precision from them."
        name = f"params{jax.tree_util.keystr(path)}.dtype"
        require(not narrow, rule, leaf.dtype.name, name=name, then=then)
    average = jax.tree.map(jnp.copy, params) if ema else None  # no buffer is donated twice
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def with_hyperparameters(state: TrainState, **values: Array) -> TrainState:
    """The state with other values of `learning_rate` (the peak), `weight_decay` and lengths.

    Raises:
        ValueError: if there is no hyperparameter of that name.
    """
    known = state.optimizer.hyperparams
    for name in values:
        if name not in known:
            rule = f"Each name in `values` must be one of {', '.join(known)}"
            raise ValueError(f"{rule}; got name = {name!r}.")
    alike = {name: jnp.full_like(known[name], value) for name, value in values.items()}
    optimizer = state.optimizer._replace(hyperparams={**known, **alike})
    return state._replace(optimizer=optimizer)
