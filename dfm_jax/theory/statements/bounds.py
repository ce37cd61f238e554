"""L2, L3, L5, A4: bounds of log-likelihoods: by orders, in continuous time, on schedule tables."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, objectives, schedules, steps, velocities
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, unbroken, worst
from dfm_jax.theory.statements.objectives import state_data_probs
from dfm_jax.theory.statements.steps import probs_of, velocities_of
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
    """q(v | revealed tokens); any distribution where q gives them probability 0: [Z, N, V]."""
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
    time_and_schedule = schedules.schedule_with_context(schedules.polynomial(exponent), context)
    weight = schedules.schedule_with_context(schedules.polynomial(pace * exponent), context)

    def at_time(t: Array) -> Array:
        kappa = time_and_schedule.kappa(t)
        mass = jnp.prod(jnp.where(masked, 1 - kappa, kappa), axis=-1)  # [2^N]

        def at(rows: Array, x_1: Array, x_t: Array) -> Array:
            return jnp.sum(objectives.generalized_kl_loss(rows, x_1, x_t, t, weight))

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


def one_exponent(case: Case, exponent: float = 1.0) -> np.ndarray:
    """The same exponent everywhere."""
    return np.full(case.shape.num_positions, exponent)


def _own_exponents(case: Case) -> np.ndarray:
    """A κ for each position: the integral is then another average over orders."""
    return 1.0 + 2.0 * np.arange(case.shape.num_positions)


@statement(
    "L3",
    "all masks, time-free p̂, one κ: ∫ L2 dt = any-order NLL for every κ, by a!(M−1)!/N!; "
    "≥ −log p̂_1(x_1)",
    source="RADD",
    kind="identity",
    falsifier="a κ for each position",
    exponents=_own_exponents,
)
def any_order(cases: Cases, run: Run, *, exponents=one_exponent) -> np.ndarray:
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
    square = cases.each(lambda c: one_exponent(c, 2.0))
    truth = cases.each(given_context)
    return worst(
        gap(closed(log_model), average),
        gap(integral(cases, run, log_model, cases.each(exponents)), average),
        gap(integral(cases, run, log_model, square), average),
        excess(nll, closed(log_model)),
        gap(closed(log_exact), -fields.log(truth), truth > 0),  # all orders agree: equality
    )


# ── A4, L5: losses on schedule tables ─────────────────────────────────────────────────────────────


def _losses(log_probs: Array, x_1: Array, table: Array, *, weighted: bool) -> Array:
    """Σ_i of `step_loss` at every step of one sequence; log_probs [T, N, V]."""

    def at(t: Array) -> Array:
        x_t = jnp.where(table[t] == 1, x_1, log_probs.shape[-1])
        size = steps.step_size(table, t) if weighted else jnp.ones_like(table[t])
        return jnp.sum(objectives.step_loss(log_probs[t], x_1, x_t, size))

    return jax.vmap(at)(jnp.arange(table.shape[0] - 1))


def prompted(case: Case, table: Array | np.ndarray) -> np.ndarray:
    """`with_context` for the case's own context."""
    return np.asarray(schedules.with_context(table, case.context), np.float64)


@statement(
    "A4",
    "Σ_t Σ_i λ_t^i (−log p̂_{1|t}^i(x_1^i | X_t)) is the next-token NLL, term by term",
    source="own",
    kind="identity",
    falsifier="without λ, every masked position counted",
    weighted=False,
)
def next_token_loss(cases: Cases, run: Run, *, weighted: bool = True) -> np.ndarray:
    """A random model on a left-to-right table, prompts included, every term read off by hand."""
    n = cases.shape.num_positions

    def draw(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x_1 = case.tokens[int(case.numbers[3] * len(case.tokens))]
        log_probs = np.log(case.denoiser[:n])
        terms = [0.0 if case.context[t] else -log_probs[t, t, x_1[t]] for t in range(n)]
        return log_probs, x_1, np.array(terms)

    log_probs, x_1, terms = cases.each(draw)
    table = cases.each(lambda c: prompted(c, schedules.left_to_right(n)))
    return gap(run(_losses, log_probs, x_1, table, weighted=weighted), terms)


def _grid_loss(
    log_probs: Array, tokens: Array, states: Array, masked: Array, table: Array
) -> Array:
    """Σ_t Σ_i λ_t^i E[1[X_t^i = m] (−log p̂^i(x_1^i | X_t))] for every data sequence: [V^N]."""

    def at_step(t: Array) -> Array:
        mass = jnp.prod(jnp.where(masked, 1 - table[t], table[t]), axis=-1)
        size = steps.step_size(table, t)

        def at(rows: Array, x_1: Array, x_t: Array) -> Array:
            return jnp.sum(objectives.step_loss(rows, x_1, x_t, size))

        loss = jax.vmap(jax.vmap(at, in_axes=(0, None, 0)))(log_probs, tokens, states)
        return jnp.sum(jnp.where(mass[None] > 0, mass[None] * loss, 0.0), axis=-1)

    return jnp.sum(jax.lax.map(at_step, jnp.arange(table.shape[0] - 1)), axis=0)


def _ordered(case: Case) -> np.ndarray:
    return prompted(case, schedules.any_order(case.order))


def _free_grid(case: Case) -> np.ndarray:
    inner = case.kappa("inside")
    return prompted(case, np.stack([0 * inner, 0.4 * inner, inner, 0 * inner + 1]))


def _all_contexts(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """All values of the context, equally likely, with masks elsewhere: [Z]; and their number."""
    v, num_contexts = case.shape.num_tokens, case.shape.num_tokens ** case.context.sum()
    start = np.where(case.context, case.states < v, case.states == v).all(axis=1)
    return start / num_contexts, num_contexts


@statement(
    "L5",
    "all masks, carry-over, any grid: "
    "−log p̂_T(x_1) ≤ Σ_t Σ_i λ_t^i E[1[X_t^i = m] (−log p̂^i(x_1^i | X_t))]; "
    "equality if every position is revealed whole in one step",
    source="own use",
    kind="inequality",
    falsifier="equality on a grid where several positions may move",
    table_of=_free_grid,
)
def finite_grid_bound(cases: Cases, run: Run, *, table_of=_ordered) -> np.ndarray:
    """p̂_T by pushing the model's own steps forward from the prompt, on two grids."""
    v, n, _ = cases.shape
    s = cases.shape.num_states

    def model_nll(table: np.ndarray) -> np.ndarray:
        probs = cases.each(model_probs)
        stacked = np.repeat(probs[:, None], table.shape[1] - 1, axis=1)
        velocity = run(velocities_of, stacked, fields.states(cases), table)
        kernels = run(probs_of, velocity, fields.states(cases))
        rows = []
        for state_probs, num_contexts, kernel in zip(
            *cases.each(_all_contexts), kernels, strict=True
        ):
            for step in kernel:
                state_probs = exact.push_forward(state_probs, step)
            on_data = state_probs.reshape((s,) * n)[(slice(v),) * n].reshape(-1)
            rows.append(-fields.log(on_data * num_contexts))
        return np.stack(rows)

    def loss(table: np.ndarray) -> np.ndarray:
        log_model = cases.each(lambda c: fields.log(at_states(c, model_probs(c))))
        return run(
            _grid_loss,
            log_model,
            fields.tokens(cases),
            cases.each(masked_states),
            cases.each(subsets),
            table,
        )

    one_by_one, grid = cases.each(table_of), cases.each(_free_grid)
    return worst(gap(model_nll(one_by_one), loss(one_by_one)), excess(model_nll(grid), loss(grid)))


# ── L2: the evidence bound in continuous time, of any model from any source ───────────────────────


def _both_forms(
    posterior: Array, tokens: Array, states: Array, t: Array, family: Array, exponent: Array
) -> tuple[Array, Array]:
    """L2's two forms at every state and data sequence: [Z, V^N, N] each."""
    schedule, num_states = fields.schedule_of(family, exponent), posterior.shape[-1] + 1

    def at(rows: Array, z: Array, x_1: Array) -> tuple[Array, Array]:
        loss = objectives.generalized_kl_loss(jnp.log(rows), x_1, z, t, schedule)
        u = velocities.mixture_velocity(x_1, z, t, schedule, num_states=num_states)
        u_hat = velocities.posterior_to_velocity(rows, z, t, schedule, num_states=num_states)
        return loss, objectives.generalized_kl(u, u_hat, z)

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
    joint = state_data_probs(case, np.full(case.shape.num_positions, t))
    return np.divide(joint, case.data, out=np.zeros_like(joint), where=case.data > 0)


def _last_draw(case: Case, posterior: np.ndarray) -> np.ndarray:
    """Π_i p̂^i(x_1^i | z), S4: [Z, V^N]."""
    here = np.take_along_axis(posterior[:, None], case.tokens[None, :, :, None], axis=-1)
    return np.prod(here[..., 0], axis=-1)


def _exact_model(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """p_{1|t} at the nodes and at END, and p_END, which V5 makes from the source distribution."""
    n = case.shape.num_positions
    times = [case.token_path(np.full(n, t)) for t in (*(END * NODES), END)]
    posteriors = np.stack([exact.posteriors(case.coupling, at)[0] for at in times])
    return posteriors, exact.marginal_path(case.coupling, times[-1])


def _wrong_model(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A p̂ without time, and the distribution to which its rates, p̂ − δ in −log(1 − t), lead."""
    v = case.shape.num_tokens
    rates = case.denoiser @ np.eye(v, v + 1) - np.eye(v + 1)[case.states]
    end = exact.evolve(exact.source_probs(case.coupling), rates, -np.log(1 - END))
    return np.broadcast_to(case.denoiser, (len(NODES) + 1, *case.denoiser.shape)), end


@unbroken
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
        return exact.kl(_given_data(case, 0.0).T, exact.source_probs(case.coupling))

    residuals = []
    for model in (_exact_model, _wrong_model):
        posteriors, end = cases.each(lambda c, m=model: c.remembered(m, lambda: m(c)))
        bound = cases.each(dependence)
        for number, (t, weight) in enumerate(zip(END * NODES, END * NODE_WEIGHTS, strict=True)):
            time_and_schedule = cases.each(lambda c, t=t: (t, 0, one_exponent(c)))
            sequences = fields.tokens(cases), fields.states(cases)
            loss, _ = run(_both_forms, posteriors[:, number], *sequences, *time_and_schedule)
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
def generalized_kl(cases: Cases, run: Run, *, pace: float = 1.0) -> np.ndarray:
    """The two forms at all states; masks: tight, and a bound; any coupling and model: a bound."""
    log_exact = cases.each(lambda c: fields.log(at_states(c, exact_probs(c))))
    log_model = cases.each(lambda c: fields.log(at_states(c, model_probs(c))))
    time_and_schedule = cases.each(lambda c: one_exponent(c, 2.0))
    truth = cases.each(given_context)
    _, model_nll = cases.each(lambda c: by_orders(c, model_probs(c)))
    direct, bregman = run(
        _both_forms,
        cases.each(_rough_denoiser),
        fields.tokens(cases),
        fields.states(cases),
        *fields.time_and_schedule(cases, "early"),
    )
    return worst(
        gap(direct, bregman),
        gap(
            integral(cases, run, log_exact, time_and_schedule, pace), -fields.log(truth), truth > 0
        ),
        excess(model_nll, integral(cases, run, log_model, time_and_schedule, pace)),
        _any_source_bound(cases, run),
    )
