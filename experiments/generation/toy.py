"""The exact distance of a sampler's distribution from the data, on a small space.   [S1–S5, Q6]

Posteriors are exact, so only the sampler is measured. Its distribution is that of the source,
pushed through the step distributions from which it draws, in float64.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, schedules
from dfm_jax.sampling.corrected import corrected_rows
from dfm_jax.sampling.euler import euler_jump_probs
from dfm_jax.sampling.jumps import Run, revealed, start, step_rows
from dfm_jax.schedules import Schedule
from dfm_jax.steps import step_size
from dfm_jax.types import Array

V, N = 2, 4
S = V + 1
BETA = 0.5  # of steps back, from the second step on


class Posterior(NamedTuple):
    """log p_{1|t} at one time and every state, the parameters of `_denoiser`."""

    log_posterior: Array  # [Z, N, V]


def _denoiser(params: Posterior, x_t: Array, t: Array) -> Array:
    return params.log_posterior[jnp.sum(x_t * S ** np.arange(N)[::-1])]


class Toy(NamedTuple):
    """A data distribution over V^N sequences, and one source."""

    data: np.ndarray  # [V^N]
    source: np.ndarray  # [N, S]

    @property
    def masked(self) -> bool:
        """Whether the source is masks; revealed tokens are then kept."""
        return bool(np.all(self.source[:, V] == 1))

    @property
    def coupling(self) -> exact.FactoredCoupling:
        """The coupling, in which X_0 and X_1 are independent."""
        return exact.FactoredCoupling(
            data=self.data, source_tokens=self.source, context=np.zeros(N, bool)
        )

    def path(self, kappa: np.ndarray) -> np.ndarray:
        """p_t at κ_t [N]: [Z]."""
        return exact.marginal_path(self.coupling, exact.mixture_token_path(kappa, V, S))

    def posterior(self, kappa: np.ndarray) -> Posterior:
        """p_{1|t} at κ_t [N]."""
        found = exact.posteriors(self.coupling, exact.mixture_token_path(kappa, V, S))[0]
        with np.errstate(divide="ignore"):
            return Posterior(jnp.asarray(np.log(found)))

    def distance(self, probs: np.ndarray) -> float:
        """TV of a distribution and the data; the mask is one of the states."""
        return float(exact.total_variation(probs, exact.embed(self.data, V, S, N)))


def toys(seed: int) -> dict[str, Toy]:
    """One data distribution, whose neighbors in a sequence tend to agree, from two sources."""
    rng = np.random.default_rng(seed)
    tokens = exact.states(V, N)
    agree = (tokens[:, 1:] == tokens[:, :-1]).sum(axis=1)
    weights = np.exp(0.8 * agree + 0.5 * rng.normal(size=len(tokens)))
    uniform = np.r_[np.full(V, 1 / V), 0.0]
    sources = {"masked": np.eye(S)[V], "uniform": uniform}
    return {
        name: Toy(weights / weights.sum(), np.tile(row, (N, 1))) for name, row in sources.items()
    }


def rows_of(toy: Toy, name: str, steps: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """TV of every sampler after T steps."""
    named_schedules = {"linear": schedules.linear(), "cosine": schedules.cosine()}
    for kind, schedule in named_schedules.items():
        for count in steps:
            table = np.asarray(schedules.masked(schedule, count, N), np.float64)
            yield _row(name, f"exact step, {kind}", count, toy, on_table(toy, table))
    for count in steps:
        times = np.linspace(0, 1, count + 1)
        probs = by_euler(toy, named_schedules["cosine"], times)
        yield _row(name, "Euler, cosine", count, toy, probs)
        probs = corrected(toy, named_schedules["cosine"], times)
        yield _row(name, f"Euler, cosine, β = {BETA:g}", count, toy, probs)
    for blocks in ([0] * N, [0, 0, 1, 1], [0, 0, 1, 2], list(range(N))):
        table = np.asarray(schedules.blocks(blocks), np.float64)
        yield _row(name, "blocks", max(blocks) + 1, toy, on_table(toy, table))


def _row(source: str, sampler: str, steps: int, toy: Toy, probs: np.ndarray) -> dict[str, Any]:
    return {"source": source, "sampler": sampler, "steps": steps, "tv": toy.distance(probs)}


def on_table(toy: Toy, table: np.ndarray) -> np.ndarray:
    """The distribution of `sampling.sample_on_table`."""
    wide = jnp.asarray(table)
    jump_probs = np.stack([step_size(wide, t) for t in range(len(table) - 1)])
    return _pushed(toy, jump_probs, table[:-1])


def by_euler(toy: Toy, schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """The distribution of `sampling.sample_euler`."""
    jump_probs = np.asarray(euler_jump_probs(schedule, jnp.asarray(times), jnp.zeros(N, bool)))
    return _pushed(toy, jump_probs, _kappas(schedule, times[:-1]))


def corrected(toy: Toy, schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """The distribution of `sampling.sample_corrected`.

    A step whose rates would not give a distribution is made without steps back.
    """
    probs, fixed = toy.path(np.zeros(N)), jnp.zeros(N, bool)
    run = Run(_denoiser, S, toy.masked, "clear", 1)

    def rows(params: Posterior, row: tuple[Array, ...], states: Array) -> Array:
        def at(z: Array) -> Array:
            source = jnp.asarray(toy.source)
            options = {"schedule": schedule, "run": run}
            return corrected_rows(params, start(z), source, fixed, row, **options)[0]

        return jax.vmap(at)(states)

    compiled, states = jax.jit(rows), jnp.asarray(exact.states(S, N))
    sizes = np.diff(times)
    kappas, slopes = _kappas(schedule, times[:-1]), _slopes(schedule, times[:-1])
    for index, (size, kappa) in enumerate(zip(sizes, kappas, strict=True)):
        k, slope, ends = kappa[0], slopes[index], times[index + 1] == 1
        possible = k > 0 and not ends
        possible = possible and size * slope * ((1 + BETA) / (1 - k) + BETA / k) <= 1
        beta, inner = (BETA, times[index]) if possible else (0.0, 0.5)
        row = tuple(jnp.asarray(v) for v in (size, times[index], inner, beta, ends))
        if ends:  # the rate has no end there, and is not asked for
            return _pushed(toy, np.ones((1, N)), kappas[index:], probs)
        probs = exact.push_forward(probs, np.asarray(compiled(toy.posterior(kappa), row, states)))
    return probs


def _kappas(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    values = np.asarray(jax.vmap(schedule.kappa)(jnp.asarray(times)))
    return np.repeat(values[:, None], N, axis=1)


def _slopes(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    return np.asarray(jax.vmap(jax.grad(schedule.kappa))(jnp.asarray(times)))


@jax.jit
def _probs(params: Posterior, states: Array, jump_prob: Array, carried: Array) -> Array:
    run = Run(_denoiser, S, True, "clear", 1)

    def at(z: Array) -> Array:
        # A source that holds tokens carries nothing over: neither tokens nor what p̂ says of them.
        free = jnp.where(carried & revealed(z, run), 0.0, jump_prob)
        return step_rows(params, start(z), free, jnp.zeros(()), run._replace(carry_over=False))[0]

    return jax.vmap(at)(states)


def _pushed(
    toy: Toy, jump_probs: np.ndarray, kappas: np.ndarray, probs: np.ndarray | None = None
) -> np.ndarray:
    probs = toy.path(np.zeros(N)) if probs is None else probs
    states, carried = jnp.asarray(exact.states(S, N)), jnp.asarray(toy.masked)
    for jump_prob, kappa in zip(jump_probs, kappas, strict=True):
        rows = _probs(toy.posterior(kappa), states, jnp.asarray(jump_prob), carried)
        probs = exact.push_forward(probs, np.asarray(rows))
    return probs
