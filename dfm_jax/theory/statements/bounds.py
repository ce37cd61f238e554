"""L3: all orders at once; and the integral over time that it and L2 are about."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, objectives, schedules
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.types import Array

# Gauss nodes on [0, 1]: exact for polynomials up to degree 17.
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(9)
NODES, NODE_WEIGHTS = (NODES + 1) / 2, NODE_WEIGHTS / 2


def subsets(case: Case) -> np.ndarray:
    """All ways to mask positions; True is masked: [2^N, N]."""
    n = case.shape.num_positions
    return np.array(np.meshgrid(*[[False, True]] * n, indexing="ij")).reshape(n, -1).T


def masked_states(case: Case) -> np.ndarray:
    """Every data sequence under every subset: [V^N, 2^N, N]."""
    return np.where(subsets(case)[None], case.shape.num_tokens, case.tokens[:, None])


def radix(case: Case) -> np.ndarray:
    """x @ radix is the number of the state x."""
    return case.shape.num_states ** np.arange(case.shape.num_positions)[::-1]


def at_states(case: Case, values: np.ndarray) -> np.ndarray:
    """Look values per state up at `masked_states`: [V^N, 2^N, …]."""
    return values[masked_states(case) @ radix(case)]


def model_probs(case: Case) -> np.ndarray:
    """A time-free model, full support, revealed tokens carried over: [Z, N, V]."""
    v = case.shape.num_tokens
    revealed = case.states < v
    point = np.eye(v)[np.where(revealed, case.states, 0)]
    return np.where(revealed[..., None], point, case.denoiser)


def exact_probs(case: Case) -> np.ndarray:
    """q(v | revealed tokens); any law where q gives them probability 0: [Z, N, V]."""
    n = case.shape.num_positions
    free = case.masked._replace(context=np.zeros(n, bool))
    posterior, _, support = exact.posteriors(free, case.token_path(np.full(n, 0.5)))
    return np.where(support[:, None, None], posterior, model_probs(case))


def given_context(case: Case) -> np.ndarray:
    """q(x | c) at every sequence, c its own context; 0 where q(x) = 0: [V^N]."""
    same = (case.tokens[:, None] == case.tokens[None])[:, :, case.context].all(axis=-1)
    mass = same @ case.data
    return np.divide(case.data, mass, out=np.zeros_like(mass), where=mass > 0)


def _any_order(
    log_probs: Array, tokens: Array, states: Array, masked: Array, context: Array
) -> Array:
    """Σ over subsets of the free positions and over positions of `any_order_loss`: [V^N]."""

    def at(rows: Array, x_1: Array, x_t: Array) -> Array:
        return jnp.sum(objectives.any_order_loss(rows, x_1, x_t, context))

    each = jax.vmap(jax.vmap(at, in_axes=(0, None, 0)))(log_probs, tokens, states)
    free = ~jnp.any(masked & context[None], axis=-1)
    return jnp.sum(jnp.where(free[None], each, 0.0), axis=-1)


def by_orders(case: Case, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every order of the free positions, by hand: mean of −log p̂, and −log of the mean: [V^N]."""
    rows = []
    for order in permutations(np.flatnonzero(~case.context)):
        state = np.where(case.context, case.tokens, case.shape.num_tokens)
        total = np.zeros(len(case.tokens))
        for i in order:
            total = total + fields.log(probs[state @ radix(case), i, case.tokens[:, i]])
            state[:, i] = case.tokens[:, i]
        rows.append(total)
    log_probs = np.stack(rows)
    return -log_probs.mean(axis=0), -fields.log(np.exp(log_probs).mean(axis=0))


def _integrated(
    log_probs: Array,
    tokens: Array,
    states: Array,
    masked: Array,
    context: Array,
    exponent: Array,
    pace: Array,
    nodes: Array,
    node_weights: Array,
) -> Array:
    """∫ E[Σ_i L2 | X_1 = x_1] dt for all masks and κ_t^i = t^{a_i} outside the context: [V^N]."""
    clock = schedules.schedule_with_context(schedules.polynomial(exponent), context)
    weight = schedules.schedule_with_context(schedules.polynomial(pace * exponent), context)

    def at_time(t: Array) -> Array:
        kappa = clock.kappa(t)
        mass = jnp.prod(jnp.where(masked, 1 - kappa, kappa), axis=-1)  # [2^N]

        def at(rows: Array, x_1: Array, x_t: Array) -> Array:
            return jnp.sum(objectives.generalised_kl_loss(rows, x_1, x_t, t, weight))

        loss = jax.vmap(jax.vmap(at, in_axes=(0, None, 0)))(log_probs, tokens, states)
        return jnp.sum(mass[None] * jnp.where(mass[None] > 0, loss, 0.0), axis=-1)

    return jnp.einsum("t,tx->x", node_weights, jax.lax.map(at_time, nodes))


def integral(
    cases: Cases, run: Run, log_probs: np.ndarray, exponents: np.ndarray, pace: float = 1.0
) -> np.ndarray:
    """∫ E[Σ_i L2 | x_1] dt of a model at `masked_states`, under t^a position by position: [V^N]."""
    count = len(cases)
    return run(
        _integrated,
        log_probs,
        fields.tokens(cases),
        cases.each(masked_states),
        cases.each(subsets),
        cases.each(lambda c: c.context),
        exponents,
        np.full(count, pace),
        np.broadcast_to(NODES, (count, len(NODES))),
        np.broadcast_to(NODE_WEIGHTS, (count, len(NODES))),
    )


def one_clock(case: Case, exponent: float = 1.0) -> np.ndarray:
    """The same exponent everywhere."""
    return np.full(case.shape.num_positions, exponent)


def _own_clocks(case: Case) -> np.ndarray:
    """A κ for each position: the integral is then another average over orders."""
    return 1.0 + 2.0 * np.arange(case.shape.num_positions)


@statement(
    "L3",
    "all masks, time-free p̂, one κ: ∫ L2 dt = any-order NLL for every κ, by a!(M−1)!/N!; "
    "≥ −log p̂_1(x_1)",
    source="own",
    kind="identity",
    falsifier="a κ for each position",
    exponents=_own_clocks,
)
def any_order(cases: Cases, run: Run, *, exponents=one_clock) -> np.ndarray:
    """The closed weights, the integral over time, and all orders by hand, given the context."""
    log_model = cases.each(lambda c: fields.log(at_states(c, model_probs(c))))
    log_exact = cases.each(lambda c: fields.log(at_states(c, exact_probs(c))))

    def closed(log_probs: np.ndarray) -> np.ndarray:
        return run(
            _any_order,
            log_probs,
            fields.tokens(cases),
            cases.each(masked_states),
            cases.each(subsets),
            cases.each(lambda c: c.context),
        )

    average, nll = cases.each(lambda c: by_orders(c, model_probs(c)))
    square = cases.each(lambda c: one_clock(c, 2.0))
    truth = cases.each(given_context)
    return worst(
        gap(closed(log_model), average),
        gap(integral(cases, run, log_model, cases.each(exponents)), average),
        gap(integral(cases, run, log_model, square), average),
        excess(nll, closed(log_model)),
        gap(closed(log_exact), -fields.log(truth), truth > 0),  # all orders agree: equality
    )
