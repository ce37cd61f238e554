"""Two sources with one interface: how states are drawn, their losses, the end.   [L2, L5]

    masked     −log p̂(x_1) ≤ Σ_t Σ_i λ_t E[1[X_t^i = m] (−log p̂^i(x_1^i | X_t, t/T))]        [L5]
    uniform    −log p̂(x_1) ≤ ∫_0^{1−ε} E Σ_i L2 dt + E Σ_i (−log p̂^i(x_1^i | X_{1−ε}, 1−ε)) [L2, S4]

κ_t = t in both. The first is a bound for the sampler of T exact finite steps (S2). The second is
one for the jump process that stops at 1 − ε and then draws every position once (S4). Bounds of
different sources must not be compared. A draw is one of J times of an image, one in each of J equal
strata, and the state at this time.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.interfaces import Losses, Network, Params, Task
from dfm_jax.objectives import cross_entropy_loss, generalized_kl_loss, router_loss, step_loss
from dfm_jax.paths import mask_source, sample_mixture
from dfm_jax.schedules import linear, masked
from dfm_jax.training.tasks import masked_task, uniform_task
from dfm_jax.types import Array, Key

Name = Literal["masked", "uniform"]


class Draws(NamedTuple):
    """States of one image: [J], with positions as the last axis of `x_t`."""

    x_t: Array  # [J, N]
    t: Array  # [J] the time that networks read
    weight: Array  # [J] of its term in the bound
    size: Array  # [J] λ of an exact step; 1 at the last draw of a uniform source; else unused
    last: Array  # [J] whether it is the last draw of every position, S4


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source, its grid and its end.

    Raises:
        ValueError: if there is no source of that name; if a count is below 1; if the end lies
            outside (0, 1).
    """

    name: Name
    num_tokens: int
    num_positions: int
    num_steps: int  # T, of the grid of the masked source, and of Euler
    epsilon: float  # the uniform source's process is left at 1 − ε
    time_conditioned: bool = True  # whether its networks read the time; from masks they need not

    def __post_init__(self) -> None:
        """Refuse values that no source can have."""
        require(self.name in ("masked", "uniform"), "`name` must be masked or uniform", self.name)
        for name in ("num_tokens", "num_positions", "num_steps"):
            check_count(name, getattr(self, name))
        check_interval("epsilon", self.epsilon, 0.0, 1.0, ends="()")

    @property
    def num_states(self) -> int:
        """S: V, plus 1 for the mask if there is one."""
        return self.num_tokens + (self.name == "masked")

    @property
    def table(self) -> Array:
        """κ[t, i] = t/T of the masked source."""
        return masked(linear(), self.num_steps, self.num_positions)

    def task(self, network: Network) -> Task:
        """The task that trains a network: one draw of its bound."""
        if self.name == "masked":
            return masked_task(network, self.table, time_conditioned=self.time_conditioned)
        end = 1 - self.epsilon
        return uniform_task(network, end=end, time_conditioned=self.time_conditioned)

    def router_task(self, network: Network) -> Task:
        """The task that trains a router by −log ρ̂_k(X_t, t), with k the part of the image.   [D11]

        An example is an image and its part, and has one loss.
        """

        def losses(params: Params, example: tuple[Array, Array], key: Key) -> Losses:
            x_1, part = example
            time_key, state_key = jax.random.split(key)
            t = self.time(time_key)
            logits = network.apply(params, self.state(state_key, x_1, t), t)
            return Losses(router_loss(logits, part)[None], jnp.ones(1, bool))

        return Task(init=network.init, losses=losses, measure="loss", draws=True)

    def start(self, key: Key) -> Array:
        """X_0: [N]."""
        shape = (self.num_positions,)
        if self.name == "masked":
            return jnp.full(shape, self.num_tokens)
        return jax.random.randint(key, shape, 0, self.num_tokens)

    def state(self, key: Key, x_1: Array, t: Array) -> Array:
        """X_t given X_1 = x_1.   [P3]"""
        source_key, path_key = jax.random.split(key)
        context = jnp.zeros(x_1.shape, bool)
        masks = self.name == "masked"
        x_0 = (
            mask_source(x_1, context, mask_id=self.num_tokens) if masks else self.start(source_key)
        )
        return sample_mixture(path_key, x_0, x_1, t)

    def time(self, key: Key) -> Array:
        """A random time for training, uniform over the times that networks read."""
        if self.name == "masked":
            return jax.random.randint(key, (), 0, self.num_steps) / self.num_steps
        return (1 - self.epsilon) * jax.random.uniform(key)

    def draws(self, key: Key, x_1: Array, num_draws: int) -> Draws:
        """One time in each of J strata, and one last draw for a uniform source.

        Σ weight · nats is unbiased for the bound.

        Raises:
            ValueError: if the J strata do not divide the steps of the masked source.
        """
        time_key, state_key = jax.random.split(key)
        inside, ends = jax.random.uniform(time_key, (num_draws,)), 1 - self.epsilon
        if self.name == "masked":
            steps = self.num_steps
            rule = f"`num_draws` must divide {steps}, the number of steps of the masked source"
            require(steps % num_draws == 0, rule, num_draws)
            width = steps // num_draws
            offset = jnp.minimum(jnp.floor(inside * width), width - 1)
            step = jnp.arange(num_draws) * width + offset
            t, weight = step / steps, jnp.full(num_draws, float(width))
            size = 1 / (steps - step)
        else:
            t = (jnp.arange(num_draws) + inside) / num_draws * ends
            t = jnp.append(t, ends)
            weight = jnp.append(jnp.full(num_draws, ends / num_draws), 1.0)
            size = jnp.ones_like(t)
        keys = jax.random.split(state_key, t.shape[0])
        x_t = jax.vmap(self.state, (0, None, 0))(keys, x_1, t)
        last = jnp.arange(t.shape[0]) == num_draws  # none of the masked source
        return Draws(x_t, t, weight, size, last)

    def nats(self, logits: Array, x_1: Array, draw: Draws) -> Array:
        """The bound's loss for one draw, before its weight, summed over positions."""
        if self.name == "masked":
            size = jnp.full(x_1.shape, draw.size)
            return jnp.sum(step_loss(logits, x_1, draw.x_t, size))
        inside = generalized_kl_loss(logits, x_1, draw.x_t, draw.t, linear())
        ends = cross_entropy_loss(logits, x_1)
        return jnp.sum(jnp.where(draw.last, ends, inside))


@partial(jax.jit, static_argnums=(0, 3))
def image_draws(source: Source, key: Key, images: Array, num_draws: int) -> Draws:
    """[D, J, …]: image d draws from `fold_in(key, d)`, the same for all variants."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(images.shape[0]))
    return jax.vmap(lambda k, x: source.draws(k, x, num_draws))(keys, images)
