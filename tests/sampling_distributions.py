"""A space small enough to list, with exact posteriors as denoisers, and the distribution of a whole
run.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact
from dfm_jax.sampling import jumps

V, N = 2, 3
S = V + 1
STATES = exact.states(S, N)
TOKENS = exact.states(V, N)


def random_probs(seed, size=V**N):
    weights = np.random.default_rng(seed).dirichlet(np.full(size, 0.7))
    return 0.05 / size + 0.95 * weights


SOURCES = {
    "all masks": np.tile(np.eye(S)[V], (N, 1)),
    "uniform": np.tile([0.5, 0.5, 0.0], (N, 1)),
    "any distribution": np.array([random_probs(10 + i, S) for i in range(N)]),
}


class Lookup(NamedTuple):
    """The parameters of `exact_denoiser`."""

    times: Any  # [T]
    log_posterior: Any  # [T, Z, N, V]

    def at(self, t: float) -> "Lookup":
        """What `exact_denoiser` reads at t alone: of one shape, however many times there are."""
        row = np.argmin(np.abs(np.asarray(self.times) - t))
        return Lookup(self.times[row][None], self.log_posterior[row][None])


class EvaluationSet(NamedTuple):
    """A data distribution and a source; nothing of it is learned."""

    data: np.ndarray
    source: np.ndarray  # [N, S]
    context: np.ndarray  # [N]

    @property
    def coupling(self):
        return exact.FactoredCoupling(
            data=self.data, source_tokens=self.source, context=self.context
        )

    def probs(self, kappa):
        """p_t at κ [N]: [Z]."""
        return exact.marginal_path(self.coupling, exact.mixture_token_path(kappa, V, S))

    def lookup(self, times, kappas):
        """p_{1|t} at every time and state, in nats; −∞ off the support."""
        rows = [
            exact.posteriors(self.coupling, exact.mixture_token_path(kappa, V, S))[0]
            for kappa in kappas
        ]
        with np.errstate(divide="ignore"):
            return Lookup(jnp.asarray(times, float), jnp.asarray(np.log(rows), float))


def evaluation_set(name, seed=0, context=None):
    context = np.zeros(N, bool) if context is None else np.asarray(context)
    return EvaluationSet(random_probs(seed), SOURCES[name], context)


def exact_denoiser(params, x_t, t):
    """Of `Lookup` parameters: log p_{1|t}(· | x_t) at the time that is nearest."""
    row = jnp.argmin(jnp.abs(params.times - t))
    return params.log_posterior[row, rank(x_t, S)]


def rank(x, base):
    return jnp.sum(jnp.asarray(x) * base ** np.arange(N)[::-1])


def run_of(denoiser, *, carry_over, method="clear"):
    return jumps.Run(denoiser, S, carry_over, method, 2)


def probs_of_run(start, params, jump_probs, times, run):
    """Pushed through the step distributions that the sampler draws from, by enumeration: [T + 1,
    Z].
    """

    probs = [start]
    for jump_prob, t in zip(jump_probs, times, strict=True):
        here = params.at(t) if isinstance(params, Lookup) else params
        rows = np.asarray(rows_of_step(here, jump_prob, t, run=run), np.float64)
        probs.append(exact.push_forward(probs[-1], rows))
    return np.array(probs)


@partial(jax.jit, static_argnames="run")  # once for all runs of a denoiser, long and short
def rows_of_step(params, jump_prob, t, *, run):
    """The step distributions at every state."""

    def at(z):
        free = jnp.where(jumps.revealed(z, run), jnp.zeros_like(jump_prob), jump_prob)
        return jumps.step_rows(params, jumps.start(z), free, t, run)[0]

    return jax.vmap(at)(jnp.asarray(STATES))


def counts(sequences, base=S):
    sequences = np.asarray(sequences)
    return np.bincount(sequences @ base ** np.arange(N)[::-1], minlength=base**N)


def embedded(probs):
    return exact.embed(probs, V, S, N)
