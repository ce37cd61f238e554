"""L2, L3: bounds on the likelihood in continuous time, for models of all-mask sources."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, objectives, schedules, velocities
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.types import Array

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2  # exact up to degree 23 on [0, 1]


def subsets(case: Case) -> np.ndarray:
    """All ways to mask a sequence; True is masked: [2^N, N]."""
    n = case.shape.num_positions
    return np.array(np.meshgrid(*[[False, True]] * n, indexing="ij")).reshape(n, -1).T


def masked_states(case: Case) -> np.ndarray:
    """Every data sequence under every subset: [V^N, 2^N, N]."""
    return np.where(subsets(case)[None], case.shape.num_tokens, case.tokens[:, None])


def at_states(case: Case, values: np.ndarray) -> np.ndarray:
    """Look values per state up at `masked_states`: [V^N, 2^N, …]."""
    radix = case.shape.num_states ** np.arange(case.shape.num_positions)[::-1]
    return values[masked_states(case) @ radix]


def _any_order(log_probs: Array, tokens: Array, states: Array, *, mask_id: int) -> Array:
    """Σ over subsets and positions of `any_order_loss`, for every data sequence: [V^N]."""

    def at(rows: Array, x_1: Array, x_t: Array) -> Array:
        return jnp.sum(objectives.any_order_loss(rows, x_1, x_t, mask_id=mask_id))

    each = jax.vmap(jax.vmap(at, in_axes=(0, None, 0)))(log_probs, tokens, states)
    return jnp.sum(each, axis=-1)


def _order_log_probs(case: Case, probs: np.ndarray) -> np.ndarray:
    """log p̂ of every data sequence under every order, by hand: [N!, V^N]."""
    n, radix = (
        case.shape.num_positions,
        case.shape.num_states ** np.arange(case.shape.num_positions)[::-1],
    )
    rows = []
    for order in permutations(range(n)):
        state, total = np.full_like(case.tokens, case.shape.num_tokens), 0.0
        for i in order:
            total = total + fields.log(probs[state @ radix, i, case.tokens[:, i]])
            state[:, i] = case.tokens[:, i]
        rows.append(total)
    return np.stack(rows)


def _integrated(
    log_probs: Array,
    tokens: Array,
    states: Array,
    masked: Array,
    exponent: Array,
    pace: Array,
    nodes: Array,
    node_weights: Array,
) -> Array:
    """∫ E[Σ_i L2 | X_1 = x_1] dt by Gauss nodes in time, κ_t = t^a per position: [V^N]."""

    def at_time(t: Array) -> Array:
        kappa = schedules.polynomial(exponent).kappa(t)
        mass = jnp.prod(jnp.where(masked, 1 - kappa, kappa), axis=-1)  # [2^N]

        def at(rows: Array, x_1: Array, x_t: Array) -> Array:
            loss = objectives.generalised_kl_loss(
                rows, x_1, x_t, t, schedules.polynomial(pace * exponent)
            )
            return jnp.sum(loss)

        loss = jax.vmap(jax.vmap(at, in_axes=(0, None, 0)))(log_probs, tokens, states)
        return jnp.sum(mass[None] * jnp.where(mass[None] > 0, loss, 0.0), axis=-1)

    return jnp.einsum("t,tx->x", node_weights, jax.lax.map(at_time, nodes))


def _integral(
    cases: Cases, run: Run, log_probs: np.ndarray, exponents: np.ndarray, pace: float = 1.0
) -> np.ndarray:
    count = len(cases)
    return run(
        _integrated,
        log_probs,
        fields.tokens(cases),
        cases.each(masked_states),
        cases.each(subsets),
        exponents,
        np.full(count, pace),
        np.broadcast_to(_NODES, (count, 12)),
        np.broadcast_to(_WEIGHTS, (count, 12)),
    )


def _one_clock(case: Case, exponent: float = 1.0) -> np.ndarray:
    return np.full(case.shape.num_positions, exponent)


def model_probs(case: Case) -> np.ndarray:
    """A time-free model, full support; revealed tokens carried over: [Z, N, V]."""
    return _carry_over(case, case.denoiser)


def _carry_over(case: Case, probs: np.ndarray) -> np.ndarray:
    v = case.shape.num_tokens
    revealed = case.states < v
    point = np.eye(v)[np.where(revealed, case.states, 0)]
    return np.where(revealed[..., None], point, probs)


def _exact_model(case: Case) -> np.ndarray:
    """q(v | revealed tokens), any law where q gives them probability 0: [Z, N, V]."""
    n = case.shape.num_positions
    free = case.masked._replace(context=np.zeros(n, bool))
    half = case.token_path(np.full(n, 0.5))
    posterior, _, support = exact.posteriors(free, half)
    return np.where(support[:, None, None], posterior, model_probs(case))


def _token_bounds(
    posterior: Array,
    x_1: Array,
    x_t: Array,
    t: Array,
    family: Array,
    exponent: Array,
    *,
    num_states: int,
) -> tuple[Array, Array]:
    """L2's two forms at every pair (x_1, x_t): [V^N, 2^N, N] each."""
    schedule = fields.schedule_of(family, exponent)

    def at(rows: Array, one: Array, now: Array) -> tuple[Array, Array]:
        loss = objectives.generalised_kl_loss(jnp.log(rows), one, now, t, schedule)
        u = velocities.mixture_velocity(now, one, t, schedule, num_states=num_states)
        u_hat = velocities.posterior_to_velocity(rows, now, t, schedule, num_states=num_states)
        return loss, objectives.generalised_kl(u, u_hat, now)

    return jax.vmap(jax.vmap(at, in_axes=(0, None, 0)))(posterior, x_1, x_t)


@statement(
    "L2",
    "−κ̇/(1−κ) [p̂(z^i) − δ_{x_1^i}(z^i) + (1 − δ) log p̂(x_1^i)] = Σ_{v≠z^i} [u log(u/û) − u + û] "
    "bounds −log p̂_1(x_1); tight for the exact model of an all-mask source",
    source="FMG",
    kind="inequality",
    falsifier="the weight of another schedule",
    pace=1.5,
)
def generalised_kl(cases: Cases, run: Run, *, pace: float = 1.0) -> np.ndarray:
    """The two forms; tightness for the exact model; the bound for a random one."""
    log_exact = cases.each(lambda c: fields.log(at_states(c, _exact_model(c))))
    log_model = cases.each(lambda c: fields.log(at_states(c, model_probs(c))))
    clock = cases.each(lambda c: _one_clock(c, 2.0))
    data = cases.each(lambda c: c.data)
    tight = _integral(cases, run, log_exact, clock, pace)
    bound = _integral(cases, run, log_model, clock, pace)
    true_nll = -cases.each(lambda c: fields.log(c.data))
    model_nll = cases.each(lambda c: -_log_mean(_order_log_probs(c, model_probs(c))))
    direct, bregman = run(
        _token_bounds,
        # tokens that are not masks too: any law at any state
        cases.each(lambda c: at_states(c, c.denoiser)),
        fields.tokens(cases),
        cases.each(masked_states),
        *fields.clock(cases, "early"),
        num_states=cases.shape.num_states,
    )
    return worst(gap(direct, bregman), gap(tight, true_nll, data > 0), excess(model_nll, bound))


def _log_mean(log_values: np.ndarray) -> np.ndarray:
    top = log_values.max(axis=0)
    return top + np.log(np.mean(np.exp(log_values - top), axis=0))


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
def any_order(cases: Cases, run: Run, *, exponents=_one_clock) -> np.ndarray:
    """The closed weights, the integral over time, and all N! orders by hand."""
    log_model = cases.each(lambda c: fields.log(at_states(c, model_probs(c))))
    closed = run(
        _any_order,
        log_model,
        fields.tokens(cases),
        cases.each(masked_states),
        mask_id=cases.shape.num_tokens,
    )
    orders = cases.each(lambda c: _order_log_probs(c, model_probs(c)))
    average = -orders.mean(axis=1)
    nll = np.stack([-_log_mean(rows) for rows in orders])
    square = cases.each(lambda c: _one_clock(c, 2.0))
    return worst(
        gap(closed, average),
        gap(_integral(cases, run, log_model, cases.each(exponents)), average),
        gap(_integral(cases, run, log_model, square), average),
        excess(nll, average),
    )
