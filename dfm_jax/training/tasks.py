"""Tasks, the interface of training: a task is a small tuple of pure functions, and any task trains.

`train`, `sweep`, `launch`, `evaluate`, `sample` and the ensemble use only a task. The two
objectives of the transformer are tasks. You can also write a function,

    def task(config: TrainConfig) -> Task

and name it in the config as `task="my_module:task"`; docs/guides/network.md has three examples.
"""

import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import jax

from dfm_jax.checks import require
from dfm_jax.interfaces import Losses, Params, Task, uncached_decoder
from dfm_jax.models import Network, VisionLanguage, transformer, transformer_denoiser
from dfm_jax.models import transformer_decoder as cached_decoder
from dfm_jax.models.lora import LoraConfig, scaled, with_adapters
from dfm_jax.models.multimodal import multimodal, multimodal_decoder
from dfm_jax.objectives import router_loss
from dfm_jax.sampling import denoiser_of
from dfm_jax.schedules import linear, masked
from dfm_jax.training.config import (
    TrainConfig,
    check_objective,
    multimodal_config,
    shape_of,
    without_adapters,
)
from dfm_jax.training.losses import (
    answer_losses,
    masked_losses,
    multimodal_losses,
    next_token_losses,
    uniform_losses,
)
from dfm_jax.types import Key, Table


def next_token_task(network: Network, *, num_tokens: int, start: int | None = None) -> Task:
    """Train a causal network by its exact likelihood, one loss per token.   [A4, S1]

    With `start`, an id that stands before every sequence (usually V), the first token is predicted
    too, and the losses sum to −log p̂(x). Samples are drawn from the network itself, which reads
    its whole prefix again for every token. A `decoder` with a cache is faster; set it by
    `Task._replace`.

    Args:
        network: A network whose row i of the logits [N, V] predicts the token after x^i.
        num_tokens: V.
        start: An id that the network can read. With None, the first token is given and does not
            count.
    """
    num_states = num_tokens if start is None else max(num_tokens, start + 1)
    return Task(
        init=network.init,
        losses=next_token_losses(network, start=start),
        measure="exact",
        decoder=uncached_decoder(network.apply, num_states),
        start=() if start is None else (start,),
    )


def masked_task(network: Network, table: Table, *, time_conditioned: bool = False) -> Task:
    """Train a bidirectional network by the bound of a grid: masked diffusion, any order.   [L5, P5]

    Args:
        network: A network whose row i of the logits [N, V] predicts x_1^i from x_t; it can read the
            mask, id V.
        table: κ[t, i] of the grid, for sequences of length N.
        time_conditioned: Whether `network.apply` is given t.
    """
    return Task(
        init=network.init,
        losses=masked_losses(network, table, time_conditioned=time_conditioned),
        measure="bound",
        draws=True,
        denoiser=denoiser_of(network.apply, time_conditioned=time_conditioned),
    )


def uniform_task(network: Network, *, end: float, time_conditioned: bool = True) -> Task:
    """Train a bidirectional network by the evidence bound of a uniform source.   [L2]

    The loss is only the integral up to `end`. Without the part of the last step it is not a bound
    on −log p̂.
    """
    return Task(
        init=network.init,
        losses=uniform_losses(network, end=end, time_conditioned=time_conditioned),
        measure="loss",
        draws=True,
        denoiser=denoiser_of(network.apply, time_conditioned=time_conditioned),
    )


def answer_task(network: VisionLanguage) -> Task:
    """Train a network that reads a picture and a question, by the likelihood of the answer.   [A5]

    An example is a row of `PictureBatch`.
    """
    return Task(init=network.init, losses=answer_losses(network), measure="exact")


def multimodal_task(config: TrainConfig) -> Task:
    """Train a network that reads pictures anywhere in its text: LLaVA, InternVL.   [A5]

    An example is a row of `MultimodalBatch`. The losses are those of the learnt tokens. The key
    draws what the tower drops of its layers, and the dropout of the language model.

    Raises:
        ValueError: if the config has no `pictures`, or its parts do not fit together.
    """
    sizes, pictures = multimodal_config(config), config.pictures
    assert pictures is not None
    network, weighted = multimodal(sizes), pictures.reduction != "token"
    losses = multimodal_losses(network, pictures.processor.table, weighted=weighted)
    return Task(network.init, losses, measure="exact", decoder=multimodal_decoder(sizes))


def router_task(network: Network) -> Task:
    """Train a router by −log ρ̂_k(x), where k is the part of the example.   [D11]

    Examples are pairs `(x, part)`: the network reads x and gives the logits of ρ̂, [K].
    """

    def losses(params: Any, example: Any, key: Any = None) -> Losses:
        x, part = example
        nats = router_loss(network.apply(params, x, key=key), part)[None]
        return Losses(nats, jax.numpy.ones(1, bool))

    return Task(init=network.init, losses=losses, measure="loss")


def adapted_task(task: Task, config: LoraConfig) -> Task:
    """`task` with adapters of low rank beside the kernels of its network, see `models.lora`.

    The other parameters are drawn as without adapters. It draws no samples: merge first.
    """

    def init(key: Key) -> Params:
        return with_adapters(key, task.init(key), config)

    def losses(params: Params, example: Any, key: Key | None = None) -> Losses:
        return task.losses(scaled(params, config), example, key)

    return task._replace(init=init, losses=losses, decoder=None, denoiser=None)


def task_of(config: TrainConfig) -> Task:
    """The task of a config: from the function that it names, or the transformer's own.

    Configs of one shape get the same task, so that a compiled program is found again.

    Raises:
        ValueError: if the function does not exist or does not return a task; if the objective
            cannot train the transformer.
    """
    return _task_of(shape_of(config))


@cache
def _task_of(shape: TrainConfig) -> Task:
    if shape.task is not None:
        return _own_task(shape)
    check_objective(shape)
    if shape.lora.adapts:
        return adapted_task(_task_of(without_adapters(shape)), shape.lora)
    if shape.pictures is not None:
        return multimodal_task(shape)
    model, network = shape.model, transformer(shape.model)
    if shape.objective == "autoregressive":
        start = model.num_tokens if model.states > model.num_tokens else None
        task = next_token_task(network, num_tokens=model.num_tokens, start=start)
        return task._replace(decoder=cached_decoder(model))
    table = masked(linear(), shape.num_grid_steps, shape.num_positions)
    task = masked_task(network, table, time_conditioned=model.time_conditioned)
    return task._replace(denoiser=transformer_denoiser(model))


def _own_task(shape: TrainConfig) -> Task:
    assert shape.task is not None
    task = named_function(shape.task)(shape)
    rule, kind = "`task` must name a function that returns a Task", type(task).__name__
    require(isinstance(task, Task), rule, kind, name="type of the result")
    return task


def named_function(name: str) -> Callable[..., Any]:
    """Import the function of `MODULE:FUNCTION`.

    Raises:
        ValueError: if the module or the function does not exist; the message names it.
    """
    module, _, function = name.partition(":")
    rule = "`task` must be MODULE:FUNCTION"
    require(bool(module and function.isidentifier()), rule, name)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that the module itself asks for
        raise ValueError(
            f"`task` must name a module that Python finds; got task = {name!r}. Python looked in "
            f"{', '.join(path or '.' for path in sys.path[:2])} and so on: run in the folder of "
            f"{module.partition('.')[0]}.py, or set PYTHONPATH."
        ) from error
    if not callable(getattr(found, function, None)):
        raise ValueError(f"`task` must name a function of {module}; got task = {name!r}.")
    return getattr(found, function)
