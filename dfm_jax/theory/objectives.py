"""L1–L5: what is minimised, and what the minimum means."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, objectives, schedules, steps
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.steps import laws_of, velocities_of
from dfm_jax.types import Array


def _cross_entropies(log_probs: Array, tokens: Array) -> Array:
    """−log p̂^i(x_1^i | z) for every state and data sequence: [Z, V^N, N]."""
    at = jax.vmap(objectives.cross_entropy_loss, in_axes=(None, 0))
    return jax.vmap(at, in_axes=(0, None))(log_probs, tokens)


def _any_weight(case: Case) -> np.ndarray:
    """ω(t, z, i) > 0: [Z, 1, N]."""
    return 0.5 + case.denoiser[:, None, :, 0]


def _weight_of_data(case: Case) -> np.ndarray:
    """A weight that depends on x_1: [Z, V^N, N]."""
    return 0.5 + 2.0 * (case.tokens == 0)[None] + 0 * case.denoiser[:, :1, :1]


def state_data_law(case: Case, coupling: exact.Coupling, kappa: np.ndarray) -> np.ndarray:
    """P(X_t = z, X_1 = x_1) by enumeration: [Z, V^N]."""
    at, joint = case.token_path(kappa), exact.dense(coupling)
    columns = []
    for j, mass in enumerate(joint.sum(axis=0)):
        column = np.zeros_like(joint)
        column[:, j] = joint[:, j]
        columns.append(exact.marginal_path(column / mass, at) * mass if mass else joint[:, 0] * 0)
    return np.stack(columns, axis=1)


@statement(
    "L1",
    "−Σ_i E ω log p̂_{1|t}^i(X_1^i | X_t): excess = Σ ω E KL(p_{1|t} ‖ p̂) for any ω(t, z, i) > 0",
    source="DFM",
    kind="identity",
    falsifier="a weight that depends on x_1",
    weight=_weight_of_data,
)
def cross_entropy(cases: Cases, run: Run, *, weight=_any_weight) -> np.ndarray:
    """Model minus truth under the joint law of (X_t, X_1), against the expected KL."""
    log_model = cases.each(lambda c: np.log(c.denoiser))
    log_truth = cases.each(lambda c: fields.log(c.posterior("inside")))
    loss = run(_cross_entropies, log_model, fields.tokens(cases))
    best = run(_cross_entropies, log_truth, fields.tokens(cases))
    joint = cases.each(lambda c: state_data_law(c, c.coupling, c.kappa("inside")))
    seen = (joint > 0)[..., None]
    more = np.where(seen, loss, 0.0) - np.where(seen, best, 0.0)
    got = np.sum(joint[..., None] * cases.each(weight) * more, axis=(1, 2, 3))

    def truth(case: Case) -> np.ndarray:
        apart = exact.kl(case.posterior("inside"), case.denoiser)  # [Z, N]
        omega = _any_weight(case)[:, 0]
        return np.sum(case.path("inside")[:, None] * omega * apart)

    return gap(got, cases.each(truth))


# ── time-free models of an all-mask source ───────────────────────────────────────────────────────

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


def _model(case: Case) -> np.ndarray:
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
    return np.where(support[:, None, None], posterior, _model(case))


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
    from dfm_jax import velocities

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
    log_model = cases.each(lambda c: fields.log(at_states(c, _model(c))))
    clock = cases.each(lambda c: _one_clock(c, 2.0))
    data = cases.each(lambda c: c.data)
    tight = _integral(cases, run, log_exact, clock, pace)
    bound = _integral(cases, run, log_model, clock, pace)
    true_nll = -cases.each(lambda c: fields.log(c.data))
    model_nll = cases.each(lambda c: -_log_mean(_order_log_probs(c, _model(c))))
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
    log_model = cases.each(lambda c: fields.log(at_states(c, _model(c))))
    closed = run(
        _any_order,
        log_model,
        fields.tokens(cases),
        cases.each(masked_states),
        mask_id=cases.shape.num_tokens,
    )
    orders = cases.each(lambda c: _order_log_probs(c, _model(c)))
    average = -orders.mean(axis=1)
    nll = np.stack([-_log_mean(rows) for rows in orders])
    square = cases.each(lambda c: _one_clock(c, 2.0))
    return worst(
        gap(closed, average),
        gap(_integral(cases, run, log_model, cases.each(exponents)), average),
        gap(_integral(cases, run, log_model, square), average),
        excess(nll, average),
    )


def _entropy_bregman(a: Array, b: Array) -> Array:
    return objectives.bregman_divergence(lambda x: jnp.sum(x * jnp.log(x)), a, b)


def _bregman_sides(weights: Array, parts: Array, model: Array, *, target_first: bool) -> Array:
    mean = jnp.einsum("k,kv->v", weights, parts)

    def distance(a: Array, b: Array) -> Array:
        return _entropy_bregman(a, b) if target_first else _entropy_bregman(b, a)

    each = jax.vmap(distance, in_axes=(0, None))
    left = jnp.dot(weights, each(parts, model))
    return left - distance(mean, model) - jnp.dot(weights, each(parts, mean))


@statement(
    "L4",
    "Σ_k r_k D(u_k, v) = D(Σ_k r_k u_k, v) + Σ_k r_k D(u_k, Σ_j r_j u_j), targets first",
    source="own use",
    kind="identity",
    falsifier="targets in the second argument",
    target_first=False,
)
def bregman(cases: Cases, run: Run, *, target_first: bool = True) -> np.ndarray:
    """For the negative entropy, whose divergence is the generalised KL, at unnormalised points."""
    parts = cases.each(lambda c: 0.5 + 2 * c.router[0, 0][:, None] * c.denoiser[1, 0][None])
    return np.abs(
        run(
            _bregman_sides,
            cases.each(lambda c: c.weights),
            parts + cases.each(lambda c: np.arange(len(c.weights))[:, None] * c.numbers[3]),
            cases.each(lambda c: 0.3 + c.denoiser[0, 0]),
            target_first=target_first,
        )
    )


def _grid_loss(
    log_probs: Array, tokens: Array, states: Array, masked: Array, table: Array, *, mask_id: int
) -> Array:
    """Σ_t Σ_i λ_t^i E[1[X_t^i = m] (−log p̂^i(x_1^i | X_t))] for every data sequence: [V^N]."""

    def at_step(t: Array) -> Array:
        mass = jnp.prod(jnp.where(masked, 1 - table[t], table[t]), axis=-1)
        size = steps.step_size(table, t)

        def at(rows: Array, x_1: Array, x_t: Array) -> Array:
            return jnp.sum(objectives.step_loss(rows, x_1, x_t, size, mask_id=mask_id))

        loss = jax.vmap(jax.vmap(at, in_axes=(0, None, 0)))(log_probs, tokens, states)
        return jnp.sum(jnp.where(mass[None] > 0, mass[None] * loss, 0.0), axis=-1)

    return jnp.sum(jax.lax.map(at_step, jnp.arange(table.shape[0] - 1)), axis=0)


def _ordered(case: Case) -> np.ndarray:
    return np.asarray(schedules.any_order(case.order), np.float64)


def _paired(case: Case) -> np.ndarray:
    table = _ordered(case)
    table[1] = table[min(2, len(table) - 1)]
    return table


def _free_grid(case: Case) -> np.ndarray:
    inner = case.kappa("inside")
    return np.stack([0 * inner, 0.4 * inner, inner, 0 * inner + 1])


@statement(
    "L5",
    "−log p̂_T(x_1) ≤ Σ_t Σ_i λ_t^i E[1[X_t^i = m] (−log p̂^i(x_1^i | X_t))]; "
    "equality for one-position steps",
    source="own use",
    kind="inequality",
    falsifier="equality with two positions at once",
    table_of=_paired,
)
def finite_grid_bound(cases: Cases, run: Run, *, table_of=_ordered) -> np.ndarray:
    """p̂_T by pushing the model's own steps forward from all masks, on two grids."""
    v, n, _ = cases.shape
    s = cases.shape.num_states

    def model_nll(table: np.ndarray) -> np.ndarray:
        probs = cases.each(_model)
        stacked = np.repeat(probs[:, None], table.shape[1] - 1, axis=1)
        velocity = run(velocities_of, stacked, fields.states(cases), table)
        kernels = run(laws_of, velocity, fields.states(cases))
        rows = []
        for kernel in kernels:
            law = np.zeros(s**n)
            law[-1] = 1.0
            for step in kernel:
                law = exact.push_forward(law, step)
            rows.append(-fields.log(law.reshape((s,) * n)[(slice(v),) * n].reshape(-1)))
        return np.stack(rows)

    def loss(table: np.ndarray) -> np.ndarray:
        log_model = cases.each(lambda c: fields.log(at_states(c, _model(c))))
        return run(
            _grid_loss,
            log_model,
            fields.tokens(cases),
            cases.each(masked_states),
            cases.each(subsets),
            table,
            mask_id=v,
        )

    one_by_one, grid = cases.each(table_of), cases.each(_free_grid)
    order = cases.each(_ordered)
    return worst(gap(model_nll(one_by_one), loss(order)), excess(model_nll(grid), loss(grid)))
