"""L2: the evidence bound in continuous time, of any model from any source."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, objectives, velocities
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.statements.bounds import (
    NODE_WEIGHTS,
    NODES,
    at_states,
    by_orders,
    exact_probs,
    given_context,
    integral,
    model_probs,
    one_clock,
)
from dfm_jax.theory.statements.objectives import state_data_law
from dfm_jax.types import Array


def _both_forms(
    posterior: Array, tokens: Array, states: Array, t: Array, family: Array, exponent: Array
) -> tuple[Array, Array]:
    """L2's two forms at every state and data sequence: [Z, V^N, N] each."""
    schedule, num_states = fields.schedule_of(family, exponent), posterior.shape[-1] + 1

    def at(rows: Array, z: Array, x_1: Array) -> tuple[Array, Array]:
        loss = objectives.generalised_kl_loss(jnp.log(rows), x_1, z, t, schedule)
        u = velocities.mixture_velocity(x_1, z, t, schedule, num_states=num_states)
        u_hat = velocities.posterior_to_velocity(rows, z, t, schedule, num_states=num_states)
        return loss, objectives.generalised_kl(u, u_hat, z)

    over_data = jax.vmap(at, in_axes=(None, None, 0))
    return jax.vmap(over_data, in_axes=(0, 0, None))(posterior, states, tokens)


def _rough_denoiser(case: Case) -> np.ndarray:
    """A posterior that, in hard cases, gives some tokens probability 0: L2 may be +∞."""
    if case.generic:
        return case.denoiser
    top = np.where(case.denoiser == case.denoiser.max(axis=-1, keepdims=True), 1.0, 0.0)
    return np.where(case.denoiser[..., :1] > 0.5, top, case.denoiser)


END = 0.8  # where the process stops: the rates of a wrong model grow without end


def _given_data(case: Case, t: float) -> np.ndarray:
    """P(X_t = z | x_1) for κ_t = t, 0 where x_1 has mass 0: [Z, V^N]."""
    joint = state_data_law(case, np.full(case.shape.num_positions, t))
    return np.divide(joint, case.data, out=np.zeros_like(joint), where=case.data > 0)


def _last_draw(case: Case, posterior: np.ndarray) -> np.ndarray:
    """Π_i p̂^i(x_1^i | z), S4: [Z, V^N]."""
    here = np.take_along_axis(posterior[:, None], case.tokens[None, :, :, None], axis=-1)
    return np.prod(here[..., 0], axis=-1)


def _exact_model(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """p_{1|t} at the nodes and at END, and p_END, which V5 generates from the source's law."""
    n = case.shape.num_positions
    times = [case.token_path(np.full(n, t)) for t in (*(END * NODES), END)]
    posteriors = np.stack([exact.posteriors(case.coupling, at)[0] for at in times])
    return posteriors, exact.marginal_path(case.coupling, times[-1])


def _wrong_model(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A time-free p̂, and where its rates bring the source's law: in units of −log(1 − t), p̂ − δ."""
    v = case.shape.num_tokens
    rates = case.denoiser @ np.eye(v, v + 1) - np.eye(v + 1)[case.states]
    end = exact.evolve(exact.source_law(case.coupling), rates, -np.log(1 - END))
    return np.broadcast_to(case.denoiser, (len(NODES) + 1, *case.denoiser.shape)), end


def _any_source_bound(cases: Cases, run: Run) -> np.ndarray:
    """The bound of the process left at END, any source and coupling, at every x_1 the data have.

    −log p̂(x_1) ≤ ∫ E[Σ_i L2 | x_1] dt + E[−log p̂(x_1 | X_END) | x_1] + KL(π(x_0 | x_1) ‖ p)
    """
    times = (*(END * NODES), END)
    given = [
        cases.each(lambda c, t=t: c.remembered((_given_data, t), lambda: _given_data(c, t)))
        for t in times
    ]

    def dependence(case: Case) -> np.ndarray:
        return exact.kl(_given_data(case, 0.0).T, exact.source_law(case.coupling))

    residuals = []
    for model in (_exact_model, _wrong_model):
        posteriors, end = cases.each(lambda c, m=model: c.remembered(m, lambda: m(c)))
        bound = cases.each(dependence)
        for number, (t, weight) in enumerate(zip(END * NODES, END * NODE_WEIGHTS, strict=True)):
            clock = cases.each(lambda c, t=t: (t, 0, one_clock(c)))
            sequences = fields.tokens(cases), fields.states(cases)
            loss, _ = run(_both_forms, posteriors[:, number], *sequences, *clock)
            loss = np.where(given[number] > 0, loss.sum(axis=-1), 0.0)
            bound += weight * np.sum(given[number] * loss, axis=1)
        last = cases.each_numbered(lambda i, c, p=posteriors: _last_draw(c, p[i, -1]))
        at_last = fields.log(np.where(given[-1] > 0, last, 1.0))
        nll = -fields.log(np.einsum("iz,izx->ix", end, last))
        seen = cases.each(lambda c: c.data) > 0
        residuals.append(excess(nll, bound - np.sum(given[-1] * at_last, axis=1), seen))
    return worst(*residuals)


@statement(
    "L2",
    "−κ̇/(1−κ) [p̂(z^i) − δ_{x_1^i}(z^i) + (1 − δ) log p̂(x_1^i)] = Σ_{v≠z^i} [u log(u/û) − u + û]; "
    "if X_0 ⊥ X_1 and the model starts from the same p: −log p̂_1(x_1) ≤ ∫ E[Σ_i of it | x_1] dt, a "
    "dependent coupling adds KL(π(x_0 | x_1) ‖ p); tight for the exact model with one fixed x_0",
    source="FMG",
    kind="inequality",
    falsifier="the weight of another schedule",
    pace=1.5,
)
def generalised_kl(cases: Cases, run: Run, *, pace: float = 1.0) -> np.ndarray:
    """The two forms at all states; masks: tight, and a bound; any coupling and model: a bound."""
    log_exact = cases.each(lambda c: fields.log(at_states(c, exact_probs(c))))
    log_model = cases.each(lambda c: fields.log(at_states(c, model_probs(c))))
    clock = cases.each(lambda c: one_clock(c, 2.0))
    truth = cases.each(given_context)
    _, model_nll = cases.each(lambda c: by_orders(c, model_probs(c)))
    direct, bregman = run(
        _both_forms,
        cases.each(_rough_denoiser),
        fields.tokens(cases),
        fields.states(cases),
        *fields.clock(cases, "early"),
    )
    return worst(
        gap(direct, bregman),
        gap(integral(cases, run, log_exact, clock, pace), -fields.log(truth), truth > 0),
        excess(model_nll, integral(cases, run, log_model, clock, pace)),
        _any_source_bound(cases, run),
    )
