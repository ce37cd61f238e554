"""The programs whose compiled form shows which devices communicate, in one list for all platforms.

Nothing is allocated. A program is a function and the shapes of its arguments,

    jax.jit(program.fn).lower(*program.shapes).compile()

and the devices may belong to a topology that is only described, and not on this machine.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dfm_jax.checks import require
from dfm_jax.mixture import mix_over_devices
from dfm_jax.models import TransformerConfig, transformer, transformer_decoder
from dfm_jax.parallel import Placement, independent, make_mesh, sharded_step, state_shardings
from dfm_jax.sampling import Sample, sample_autoregressive
from dfm_jax.training.batches import Batch, MultimodalBatch, PictureBatch
from dfm_jax.training.config import OptimizerConfig, TrainConfig, hyperparameters, shape_of
from dfm_jax.training.fit import init_and_step
from dfm_jax.training.losses import next_token_losses
from dfm_jax.training.state import TrainState, init_state, make_optimizer
from dfm_jax.training.step import TrainStep, make_train_step, until_its_end
from experiments.multimodal.network import Sight
from experiments.multimodal.training import task_of

# Without a mask, so that the devices divide every axis that is cut: a sharded dense whose table
# they do not divide gathers whole batches where it should gather parameters.
TINY = TransformerConfig(num_tokens=256, width=32, num_layers=2, num_heads=2, ffn_width=64)


class Program(NamedTuple):
    """A function and the shapes that it is compiled for."""

    fn: Callable[..., Any]
    shapes: tuple[Any, ...]


def programs(
    devices: Sequence[Any],
    *,
    model: TransformerConfig = TINY,
    num_sequences: int = 2,
    num_positions: int = 32,
    micro_batches: int = 1,
) -> dict[str, Program]:
    """Experts, one per device or per pair, the dense model over all devices, and the mixture.

    Args:
        devices: An even number of devices of any platform.
        model: The network of an expert, and of the dense model.
        num_sequences: The number of sequences in a batch, for each device.
        num_positions: The number of tokens of a sequence.
        micro_batches: The number of parts of a batch, in memory one at a time.

    Raises:
        ValueError: unless the number of devices is even.
    """
    count = len(devices)
    rule = "`devices` must hold an even number of devices, a pair for each expert that spans two"
    require(count >= 2 and count % 2 == 0, rule, count, name="len(devices)")
    experts, dense = (make_mesh({axis: count}, devices=devices) for axis in ("expert", "data"))
    pairs = make_mesh({"expert": count // 2, "data": 2}, devices=devices)
    step, state = train_step(model, micro_batches)
    one = state, _batch(num_sequences, num_positions), _key()
    pair = state, _batch(2 * num_sequences, num_positions), _key()
    whole = state, _batch(count * num_sequences, num_positions), _key()
    draw, asked = sampler(model, num_sequences, num_positions)
    found = {}
    for backend in ("shard_map", "pmap"):
        on = partial(independent, mesh=experts, backend=backend)
        found[f"expert step, {backend}"] = Program(on(step), stacked(one, count))
        found[f"expert sampler, {backend}"] = Program(on(draw), stacked(asked, count))
    spread = independent(step, pairs, data_args=(1,))
    found["expert × data step"] = Program(spread, stacked(pair, count // 2))
    places: dict[str, Placement] = {"data-parallel": "replicated", "sharded": "sharded"}
    for name, placement in places.items():
        fn = sharded_step(step, dense, state, placement=placement, donate=False)
        found[f"dense step, {name}"] = Program(fn, whole)
    probs = jax.ShapeDtypeStruct((num_positions, model.num_tokens), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    mixed = (*stacked((number, number, probs), count), number)
    found["mixing step"] = Program(mixing_step(experts), mixed)
    return found


def study_step(config: TrainConfig, devices: Sequence[Any]) -> Program:
    """An update of `language`: runs of one member that differ in seed or rate, one on each chip."""
    shape, mesh = shape_of(config), make_mesh(len(devices), devices=devices)
    init, step = init_and_step(shape)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    values = {name: jax.eval_shape(jnp.asarray, x) for name, x in hyperparameters(config).items()}
    state = jax.eval_shape(init, _key(), values)
    one = state, _batch(config.batch_size, config.num_positions), _key(), number, number
    fn = independent(until_its_end(step), mesh, donate_args=(0,))
    return Program(fn, stacked(one, len(devices)))


def picture_step(config: TrainConfig, sight: Sight, devices: Sequence[Any]) -> Program:
    """An update of `multimodal`: runs of one member, one on each chip."""
    shape, mesh = shape_of(config), make_mesh(len(devices), devices=devices)
    init, step = init_and_step(shape, task_of(config.model, sight))
    values = {name: jax.eval_shape(jnp.asarray, x) for name, x in hyperparameters(config).items()}
    text = _batch(config.batch_size, config.num_positions)
    seen = (sight.num_patches, sight.num_features) if sight.scale is None else (96, 96, 3)
    dtype = jnp.float32 if sight.scale is None else jnp.uint8
    pictures = jax.ShapeDtypeStruct((config.batch_size, *seen), dtype)
    one = jax.eval_shape(init, _key(), values), PictureBatch(pictures, *text), _key()
    return Program(independent(step, mesh, donate_args=(0,)), stacked(one, len(devices)))


def system_step(config: TrainConfig, devices: Sequence[Any]) -> Program:
    """An update of a config with `pictures`, its state and batch split over all devices."""
    shape, mesh = shape_of(config), make_mesh({"data": len(devices)}, devices=devices)
    init, step = init_and_step(shape)
    values = {name: jax.eval_shape(jnp.asarray, x) for name, x in hyperparameters(config).items()}
    state = jax.eval_shape(init, _key(), values)
    lies = state_shardings(state, mesh, "sharded")
    fn = sharded_step(step, mesh, state, placement="sharded", donate=False)
    return Program(fn, (jax.tree.map(_placed, state, lies), _conversations(config), _key()))


def _placed(leaf: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _conversations(config: TrainConfig) -> MultimodalBatch:
    """The shapes of a batch of packed conversations with their pictures."""
    pictures, shape = config.pictures, (config.batch_size, config.num_positions)
    assert pictures is not None
    size = pictures.processor.size
    seen = (config.batch_size, pictures.max_pictures, size, size, 3)
    return MultimodalBatch(
        tokens=jax.ShapeDtypeStruct(shape, jnp.int32),
        learnt=jax.ShapeDtypeStruct(shape, jnp.bool_),
        segments=jax.ShapeDtypeStruct(shape, jnp.int32),
        weights=jax.ShapeDtypeStruct(shape, jnp.float32),
        pixels=jax.ShapeDtypeStruct(seen, jnp.uint8),
    )


def train_step(model: TransformerConfig, micro_batches: int = 1) -> tuple[TrainStep, TrainState]:
    """One update of a language model, and the shapes of its state."""
    network, optimizer = transformer(model), make_optimizer(OptimizerConfig(), num_steps=100)
    start = model.num_tokens if model.states > model.num_tokens else None
    loss_function = next_token_losses(network, start=start)
    step = make_train_step(loss_function, optimizer, num_micro_batches=micro_batches)
    begin = partial(init_state, network=network, optimizer=optimizer)
    return step, jax.eval_shape(begin, _key())


def sampler(
    model: TransformerConfig, num_sequences: int, num_positions: int
) -> tuple[Callable[..., Sample], tuple[Any, ...]]:
    """Draws with a cache and top-k, in a loop that ends when every row has: data decide when."""

    def draw(key: Any, params: Any, prompts: Any, lengths: Any) -> Sample:
        return sample_autoregressive(
            key,
            params,
            transformer_decoder(model),
            prompts,
            lengths,
            max_new=num_positions // 2,
            top_k=min(40, model.num_tokens),
            stop_tokens=(0,),
        )

    prompts = jax.ShapeDtypeStruct((num_sequences, num_positions // 2), jnp.int32)
    lengths = jax.ShapeDtypeStruct((num_sequences,), jnp.int32)
    params = jax.eval_shape(transformer(model).init, _key())
    return draw, (_key(), params, prompts, lengths)


def mixing_step(mesh: Any) -> Callable[..., Any]:
    """(log p_t^k, log w_k, u^k, log p_{t−1}) → Σ_k r_k u^k and log p_t, an expert a device."""
    runs, whole = PartitionSpec(mesh.axis_names[0]), PartitionSpec()

    def mix(log_p_t: Any, log_prior: Any, values: Any, bound: Any) -> Any:
        return mix_over_devices(log_prior, log_p_t, values, bound=bound)

    return jax.shard_map(mix, mesh=mesh, in_specs=(runs, runs, runs, whole), out_specs=whole)


def stacked(shapes: Any, count: int) -> Any:
    """The shapes of as many runs along a leading axis."""

    def taller(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)

    return jax.tree.map(taller, shapes)


def _batch(num_sequences: int, num_positions: int) -> Batch:
    shape = (num_sequences, num_positions)
    return Batch(jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_))


def _key() -> Any:
    return jax.eval_shape(jax.random.key, 0)
