"""Refuse, by name and before compilation, sizes that no machine of this kind can hold.

The checks use only lower bounds, so that nothing is refused that could run: the state of the
parameters, and for an update the tokens of its batch and the residual stream of one micro-batch.
Only the compiler knows how much more a program takes; if it is too much, it says so (status 75).
"""

import os
from collections.abc import Sequence
from typing import Any

import jax

from dfm_jax.interfaces import Task
from dfm_jax.models import TransformerConfig
from dfm_jax.models.multimodal import num_multimodal_parameters
from dfm_jax.models.sizes import num_parameters
from dfm_jax.training.config import TrainConfig, multimodal_config
from dfm_jax.training.state import frozen, trained
from dfm_jax.training.tasks import task_of

_FLOAT, _HALF, _TOKEN = 4, 2, 4  # bytes


def check_parameters_fit(
    model: TransformerConfig,
    *,
    copies: int = 1,
    besides: int = 0,
    devices: Sequence[Any] | None = None,
) -> None:
    """Check that so many copies of the parameters need less than all memory of the devices.

    There may be parameters `besides` those of the model, as many as a tower and a projector have.

    Raises:
        ValueError: if they need more; the message names the largest count of the model.
    """
    count = num_parameters(model) + besides
    sizes = ("width", "ffn_width", "num_layers", "num_tokens")
    name = max(sizes, key=lambda size: getattr(model, size))
    what = f"{count:.3g} parameters and {copies} copies of them"
    _check(f"model.{name}", getattr(model, name), what, count * copies * _FLOAT, devices)


def check_fits(
    config: TrainConfig,
    *,
    task: Task | None = None,
    num_runs: int = 1,
    devices: Sequence[Any] | None = None,
) -> None:
    """Check that a run, or so many runs of one shape, may fit in the memory of the devices.

    Raises:
        ValueError: if they cannot; the message names the count that is too large.
    """
    still = bool(config.optimizer.freeze or config.lora.adapts)  # some leaves have no moments
    copies = 1 + (config.ema_decay is not None) + (0 if still else 2)  # Adam has two moments
    tokens, width = num_runs * config.batch_size * config.num_positions, config.model.width
    if task is None and config.task is not None:
        task = task_of(config)
    if task is None:
        besides = 0
        if config.pictures is not None:
            whole = num_multimodal_parameters(multimodal_config(config))
            besides = whole - num_parameters(config.model)
        check_parameters_fit(
            config.model, copies=copies * num_runs, besides=besides, devices=devices
        )
    else:
        width = 0  # of a network that is not known
        shapes = jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0)))
        num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)
        what = f"{len(shapes)} arrays of parameters, {copies * num_runs} copies of each,"
        _check("the bytes of `params`", num_bytes, what, num_bytes * copies * num_runs, devices)
    if still:
        _check_moments_fit(config, task, num_runs, devices)
    stream = tokens // config.num_micro_batches * width * _HALF
    name = max(("batch_size", "num_positions"), key=lambda size: getattr(config, size))
    what = f"a batch of {config.batch_size} x {config.num_positions} tokens"
    _check(name, getattr(config, name), what, tokens * _TOKEN + stream, devices)
    steps = config.num_grid_steps
    what = f"a table of {steps} rows"
    _check("num_grid_steps", steps, what, steps * _FLOAT, devices)


def _check_moments_fit(
    config: TrainConfig, task: Task | None, num_runs: int, devices: Sequence[Any] | None
) -> None:
    """Check the parameters, their average, and two moments of what is trained, by their shapes."""
    init = (task_of(config) if task is None else task).init
    params = jax.eval_shape(init, jax.random.key(0))
    moving = trained(params, frozen(params, config.optimizer.freeze, config.lora))
    whole, part = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (params, moving)
    )
    kept = 1 + (config.ema_decay is not None)
    what = f"{kept} copies of the parameters, and two moments of what is trained, {part:.3g} bytes,"
    _check("the bytes of `params`", whole, what, num_runs * (kept * whole + 2 * part), devices)


def check_sample_fits(num_samples: int, length: int, num_states: int) -> None:
    """Check that the ids of `num_samples` texts, and one row of logits for each, fit in memory.

    Raises:
        ValueError: if they do not; the message names the count that is too large.
    """
    what = f"{num_samples} texts of {length} tokens"
    name, value = ("num_samples", num_samples) if num_samples >= length else ("max_new", length)
    num_bytes = num_samples * (length * _TOKEN + num_states * _HALF)
    _check(name, value, what, num_bytes, None)


def _check(name: str, value: int, what: str, num_bytes: int, devices: Sequence[Any] | None) -> None:
    memory = _memory(devices)
    if num_bytes > memory:
        raise ValueError(
            f"`{name}` must be small enough for the memory of {memory / 2**30:,.0f} GiB; got "
            f"{name} = {value:,}. The program needs at least {num_bytes / 2**30:,.0f} GiB for "
            f"{what}."
        )


def _memory(devices: Sequence[Any] | None) -> int:
    """The memory of the devices together; CPU devices share the memory of their host."""
    devices = jax.devices()[:1] if devices is None else devices
    limits = [_limit(device) for device in devices]
    if None in limits:
        return _host_memory() * len({device.process_index for device in devices})
    return sum(limit for limit in limits if limit is not None)


def _limit(device: Any) -> int | None:
    if device.platform == "cpu":
        return None
    local = device if device.process_index == jax.process_index() else jax.local_devices()[0]
    return (local.memory_stats() or {}).get("bytes_limit")


def _host_memory() -> int:
    """The memory of the host, with swap space if the system tells its size."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            swap = [line.split()[1] for line in file if line.startswith("SwapTotal")]
        return memory + sum(int(kilobytes) * 1024 for kilobytes in swap)
    except (OSError, ValueError):
        return memory
