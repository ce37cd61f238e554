"""The state of a run as one pytree, and the optimizer that updates it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfm_jax.checks import require
from dfm_jax.interfaces import Task
from dfm_jax.models import Network, Params, VisionLanguage
from dfm_jax.models.lora import LoraConfig, is_adapter, lies_in
from dfm_jax.training.config import OptimizerConfig, TrainConfig
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
    freeze: Sequence[str] = (),
    lora: LoraConfig | None = None,
) -> TrainState:
    """The state at step 0: fresh parameters, and their average, which starts at them.

    What `freeze` and `lora` leave as it is, see `frozen`, has no moments.

    Raises:
        ValueError: if a parameter is float16 or bfloat16: such a number loses an update of less
            than 1/256 of it, its average stands still, and Adam's b2 = 0.999 is rounded to 1.
    """
    return state_of(network.init(key), optimizer, ema=ema, freeze=freeze, lora=lora)


def state_of(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    ema: bool = False,
    freeze: Sequence[str] = (),
    lora: LoraConfig | None = None,
) -> TrainState:
    """The state at step 0 with these parameters; see `init_state`.

    Raises:
        ValueError: if a parameter is float16 or bfloat16; see `frozen`.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
        rule = "Parameters that are trained must be float32 or wider, or small updates are lost"
        then = "Keep them in float32, and compute in half precision from them."
        name = f"params{jax.tree_util.keystr(path)}.dtype"
        require(not narrow, rule, leaf.dtype.name, name=name, then=then)
    average = jax.tree.map(jnp.copy, params) if ema else None  # no buffer is donated twice
    moments = optimizer.init(trained(params, frozen(params, freeze, lora)))
    return TrainState(jnp.zeros((), jnp.int32), params, moments, average)


def state_options(config: TrainConfig) -> dict[str, Any]:
    """The options of `init_state` and `state_of` for a run of this config."""
    kept = config.ema_decay is not None
    return {"ema": kept, "freeze": config.optimizer.freeze, "lora": config.lora}


def frozen(params: Params, freeze: Sequence[str], lora: LoraConfig | None = None) -> Any:
    """Which leaves are not trained: those whose path begins with an entry of `freeze`.

    A path is the names of the leaf's place, such as `layers_0/mlp/up_proj/kernel`. An entry is such
    names from the outermost on: `layers_0`, or `layers_0/mlp`. In each name `*` stands for any
    characters. With targets in `lora` only its adapters are trained, and what lies in its `train`.

    Raises:
        ValueError: if an entry is not a part of the network; if nothing is left to train; if
            `freeze` names something that `lora` trains.
    """
    adapts = lora is not None and lora.adapts
    extra = lora.train if lora is not None else ()
    used: set[tuple[str, str]] = set()

    def in_parts(names: Sequence[str], option: str, parts: Sequence[str]) -> bool:
        found = {(option, part) for part in parts if lies_in(names, part)}
        used.update(found)
        return bool(found)

    def is_frozen(path: tuple, leaf: Array) -> bool:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        still, moves = in_parts(names, "freeze", freeze), in_parts(names, "lora.train", extra)
        moves = moves or (adapts and is_adapter(names))
        rule = f"`freeze` must not name what `lora` trains, such as {'/'.join(names)}"
        require(not (still and moves), rule, tuple(freeze))
        return still or (adapts and not moves)

    tree = jax.tree_util.tree_map_with_path(is_frozen, params)
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    outermost = {jax.tree_util.keystr(path[:1], simple=True): None for path, _ in paths}
    for option, entries in (("freeze", freeze), ("lora.train", extra)):
        for entry in entries:
            rule = f"`{option}` must name parts of the network, which has {', '.join(outermost)}"
            require((option, entry) in used, rule, entry)
    nothing = all(jax.tree.leaves(tree))
    rule = "`freeze` must leave a part of the network that is trained"
    require(not (freeze and nothing), rule, tuple(freeze))
    rule = "`params` must have adapters if `lora` has targets, see `with_adapters`"
    require(not (adapts and nothing), rule, list(outermost))
    return tree


def trained(params: Params, stays: Any) -> Params:
    """The parameters with None in the place of each leaf that stays as it is; see `frozen`."""
    return jax.tree.map(lambda leaf, still: None if still else leaf, params, stays)


def with_trained(params: Params, moving: Params) -> Params:
    """The parameters with other values of the leaves that are trained; the reverse of `trained`."""
    return jax.tree.map(lambda leaf, new: leaf if new is None else new, params, moving)


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
