"""The seam of training: a task is a small tuple of pure functions, and anything that is one trains.

`train`, `sweep`, `launch`, `evaluate`, `sample` and the ensemble know a task and nothing else. The
transformer's two objectives are tasks, and so is a function of your own,

    def task(config: TrainConfig) -> Task

named in the config as `task="my_module:task"`; docs/guides/network.md has three of them.
"""

import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import jax

from dfm_jax.checks import require
from dfm_jax.interfaces import Losses, Task, uncached_decoder
from dfm_jax.models import Network, VisionLanguage, transformer, transformer_denoiser
from dfm_jax.models import transformer_decoder as cached_decoder
from dfm_jax.objectives import router_loss
from dfm_jax.sampling import denoiser_of
from dfm_jax.schedules import linear, masked
from dfm_jax.training.config import TrainConfig, check_objective, shape_of
from dfm_jax.training.losses import (
    answer_losses,
    masked_losses,
    next_token_losses,
    uniform_losses,
)
from dfm_jax.types import Table


def next_token_task(network: Network, *, num_tokens: int, start: int | None = None) -> Task:
    """A causal network by its exact likelihood, one term per token.   [A4, S1]

    With `start`, the id that stands before every sequence, commonly V, the first token is predicted
    too and the losses sum to −log p̂(x). The network is also the sampler: it reads its prefix again
    for every token, which a `decoder` with a cache of your own makes quick (`Task._replace`).

    Args:
        network: row i of its logits is the distribution of the token behind x^i, [N, V].
        num_tokens: V.
        start: an id that the network can read; None: the first token is given, and does not count.
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
    """A bidirectional network by the bound of a grid: masked diffusion and any order.   [L5, P5]

    Args:
        network: row i of its logits is the distribution of x_1^i given x_t, [N, V]; it reads the
            mask, id V.
        table: κ[t, i] of the grid, for sequences of N.
        time_conditioned: whether `network.apply` is given t.
    """
    return Task(
        init=network.init,
        losses=masked_losses(network, table, time_conditioned=time_conditioned),
        measure="bound",
        draws=True,
        denoiser=denoiser_of(network.apply, time_conditioned=time_conditioned),
    )


def uniform_task(network: Network, *, end: float, time_conditioned: bool = True) -> Task:
    """A bidirectional network by the evidence bound of a uniform source, up to t = `end`.   [L2]

    What is measured is that integral alone: no bound on −log p̂ without the last step's part.
    """
    return Task(
        init=network.init,
        losses=uniform_losses(network, end=end, time_conditioned=time_conditioned),
        measure="loss",
        draws=True,
        denoiser=denoiser_of(network.apply, time_conditioned=time_conditioned),
    )


def answer_task(network: VisionLanguage) -> Task:
    """A network that reads a picture and a question, by the likelihood of the answer.   [A5]

    An example is a row of `PictureBatch`.
    """
    return Task(init=network.init, losses=answer_losses(network), measure="exact")


def router_task(network: Network) -> Task:
    """A router by −log ρ̂_k(x), k the part that the example is of.   [D11]

    Its examples are `(x, part)`: the network reads x and gives the logits of ρ̂, [K].
    """

    def losses(params: Any, example: Any, key: Any = None) -> Losses:
        x, part = example
        nats = router_loss(network.apply(params, x, key=key), part)[None]
        return Losses(nats, jax.numpy.ones(1, bool))

    return Task(init=network.init, losses=losses, measure="loss")


def task_of(config: TrainConfig) -> Task:
    """The task of a config: the function that it names, else the transformer of its objective.

    The same task for configs of one shape, so that what was compiled for it is found again.

    Raises:
        ValueError: if the function cannot be had or gives no task, or the transformer cannot be
            trained by its objective.
    """
    return _task_of(shape_of(config))


@cache
def _task_of(shape: TrainConfig) -> Task:
    if shape.task is not None:
        return _own_task(shape)
    check_objective(shape)
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
    """The function of `MODULE:FUNCTION`, imported.

    Raises:
        ValueError: naming what is not there.
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
