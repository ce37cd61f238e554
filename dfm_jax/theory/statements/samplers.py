"""S1–S5: samplers, as distributions on exact posteriors."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, samplers, schedules, steps, velocities
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases, kappa
from dfm_jax.theory.runs import Run
from dfm_jax.theory.setups import (
    chain,
    chain_of,
    one_by_one,
    order_table,
    two_at_once,
    two_step_table,
)
from dfm_jax.theory.statement import gap, statement, worst
from dfm_jax.theory.statements.paths import one_pair
from dfm_jax.theory.statements.steps import step_probs
from dfm_jax.theory.statements.velocities import backward_field, forward_field, on_support
from dfm_jax.types import Array


def push(probs: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Push a distribution through several steps, by enumeration."""
    for kernel in kernels:
        probs = exact.push_forward(probs, kernel)
    return probs


def _sequence_probs(tokens: Array, next_probs: Array) -> Array:
    def at(x: Array, rows: Array) -> Array:
        return samplers.autoregressive_log_prob(x, jnp.log(rows))

    return jnp.exp(jax.vmap(at)(tokens, next_probs))


def _next_probs(case: Case) -> np.ndarray:
    return case.conditionals(case.data)


def _previous_only(case: Case) -> np.ndarray:
    """q(X^t = v), the prefix forgotten."""
    v, n, _ = case.shape
    rows = np.stack([exact.marginal(case.data, (t,), v, n) for t in range(n)])
    return np.broadcast_to(rows, (len(case.tokens), n, v))


@statement(
    "S1",
    "autoregressive: log q̂(x | c) = Σ_t log q̂(x^t | x^{<t}, c), exact by Q5",
    source="own",
    kind="identity",
    falsifier="next-token distributions that forget the prefix",
    next_probs=_previous_only,
)
def autoregressive(cases: Cases, run: Run, *, next_probs=_next_probs) -> np.ndarray:
    """The data distribution itself, and the distribution of any model's ancestral samples."""
    probs = run(_sequence_probs, fields.tokens(cases), cases.each(next_probs))
    model = cases.each(lambda c: c.conditionals(c.model_parts[0]))
    return worst(
        gap(probs, cases.each(lambda c: c.data)),
        gap(run(_sequence_probs, fields.tokens(cases), model), cases.each(_ancestral)),
    )


def _ancestral(case: Case) -> np.ndarray:
    return exact.sequence_probs(case.conditionals(case.model_parts[0]))


@statement(
    "S2",
    "the exact finite step for any κ grid; the joint sample is exact for one-position steps",
    source="own",
    kind="identity",
    falsifier="two positions at once",
    setup=two_at_once,
)
def exact_step_sampler(cases: Cases, run: Run, *, setup=one_by_one) -> np.ndarray:
    """From source to data: one pair on a free grid ends at x_1; all pairs one by one end at q."""
    v, n, _ = cases.shape
    s = cases.shape.num_states
    token_probs, posteriors, table = chain_of(cases, setup)
    kernels = run(step_probs, posteriors, fields.states(cases), table)
    ends = np.stack(
        [push(probs[0], kernel) for probs, kernel in zip(token_probs, kernels, strict=True)]
    )

    def pair_posterior(case: Case) -> np.ndarray:
        x_1 = np.eye(v)[one_pair(case)[1]]
        return np.broadcast_to(x_1, (2, len(case.states), *x_1.shape))

    own = run(
        step_probs, cases.each(pair_posterior), fields.states(cases), cases.each(two_step_table)
    )

    def pair_end(index: int, case: Case) -> np.ndarray:
        x_0, x_1 = one_pair(case)
        start = (case.states == x_0).all(axis=1).astype(float)
        end = (case.states == x_1).all(axis=1).astype(float)
        return np.abs(push(start, own[index]) - end).max()

    data = cases.each(lambda c: exact.embed(c.data, v, s, n))
    return worst(gap(ends, data), cases.each_numbered(pair_end))


def _euler_probs(
    posterior: Array, states: Array, t: Array, size: Array, *, family: str, num_states: int
) -> Array:
    schedule = schedules.linear() if family == "linear" else schedules.cosine()

    def at(p: Array, z: Array) -> Array:
        return samplers.euler_step_probs(p, z, t, size, schedule, num_states=num_states)

    return jax.vmap(at)(posterior, states)


@statement(
    "S3",
    "Euler: X_{t+h} ~ δ + h u; for κ_t = t it is the exact finite step of t, t + h",
    source="own",
    kind="identity",
    falsifier="another schedule",
    family="cosine",
)
def euler_step(cases: Cases, run: Run, *, family: str = "linear") -> np.ndarray:
    """The conditional distribution of one pair at t + h, through Euler's kernel; κ by hand."""
    v, n, _ = cases.shape
    s = cases.shape.num_states

    def times(case: Case) -> tuple[float, float]:
        t = case.times["inside"]
        return t, (1 - t) * case.numbers[5] / 2  # Euler's step is a distribution for cosine too

    def pair(case: Case) -> tuple[np.ndarray, ...]:
        """p_t, p_{t+h} and p_{1|t} given the pair: κ is not that of the case but of `family`."""
        x_0, x_1 = one_pair(case)
        coupling = np.zeros((s**n, v**n))
        coupling[np.ravel_multi_index(x_0, (s,) * n), np.ravel_multi_index(x_1, (v,) * n)] = 1.0
        now, size = times(case)
        values = [kappa(family, np.ones(n), when) for when in (now, now + size)]
        token_probs = [exact.marginal_path(coupling, case.token_path(value)) for value in values]
        return *token_probs, np.broadcast_to(np.eye(v)[x_1], (len(case.states), n, v))

    before, after, posterior = cases.each(pair)
    t, size = cases.each(times)
    options = {"family": family, "num_states": s}
    kernels = run(_euler_probs, posterior, fields.states(cases), t, size, **options)
    pushed = [exact.push_forward(p, kernel) for p, kernel in zip(before, kernels, strict=True)]
    return worst(gap(np.stack(pushed), after), _own_schedule_gap(cases, run))


def _own_euler_probs(
    posterior: Array, states: Array, t: Array, size: Array, family: Array, exponent: Array
) -> Array:
    schedule, num_states = fields.schedule_of(family, exponent), posterior.shape[-1] + 1

    def at(p: Array, z: Array) -> Array:
        return samplers.euler_step_probs(p, z, t, size, schedule, num_states=num_states)

    return jax.vmap(at)(posterior, states)


def _own_schedule_gap(cases: Cases, run: Run) -> np.ndarray:
    """δ + h κ̇/(1 − κ) (p̂ − δ) on the case's own schedule, any posterior."""

    def step(case: Case) -> tuple[np.ndarray, np.ndarray]:
        v, s = case.shape.num_tokens, case.shape.num_states
        speed = case.slope("inside") / (1 - case.kappa("inside"))
        size = case.numbers[5] / speed.max()
        stay = np.eye(s)[case.states]
        share = (size * speed)[:, None]
        return np.asarray(size), stay + share * (case.denoiser @ np.eye(v, s) - stay)

    size, probs = cases.each(step)
    t, *time_and_schedule = fields.time_and_schedule(cases, "inside")
    denoiser = cases.each(lambda c: c.denoiser)
    return gap(
        run(_own_euler_probs, denoiser, fields.states(cases), t, size, *time_and_schedule), probs
    )


def _final_probs(posterior: Array, states: Array, pending: Array, *, num_states: int) -> Array:
    def at(p: Array, z: Array, still: Array) -> Array:
        return samplers.final_step_probs(p, z, still, num_states=num_states)

    return jax.vmap(at)(posterior, states, pending)


def _one_left(case: Case) -> int:
    """A row of `order_table` whose last position has not begun, or is halfway."""
    return 2 * (case.shape.num_positions - 1) + int(case.numbers[4] > 0.5)


def _two_left(case: Case) -> int:
    return max(_one_left(case) - 2, 0)


@statement(
    "S4",
    "the last step draws all unfinished positions from p_{1|t}: joint exact if at most one is left",
    source="own",
    kind="identity",
    falsifier="two positions left",
    row_of=_two_left,
)
def final_step(cases: Cases, run: Run, *, row_of=_one_left) -> np.ndarray:
    """From p_t of a table row: masks pending under an all-mask source, κ^i < 1 under any source."""
    v, n, _ = cases.shape
    s = cases.shape.num_states
    data = cases.each(lambda c: exact.embed(c.data, v, s, n))
    residuals = []
    for masked in (True, False):

        def truth(case: Case, masked: bool = masked) -> tuple[np.ndarray, ...]:
            coupling = case.masked if masked else case.coupling
            row = order_table(case)[row_of(case)]
            row = np.where(case.context, 1.0, row) if masked else row
            token_probs, posteriors = chain(case, coupling, np.stack([row, np.ones_like(row)]))
            pending = case.states == v if masked else np.broadcast_to(row < 1, case.states.shape)
            undefined = (token_probs[0] == 0)[:, None, None]
            return token_probs[0], np.where(undefined, np.eye(v)[0], posteriors[0]), pending

        probs, posterior, pending = cases.each(truth)
        kernel = run(_final_probs, posterior, fields.states(cases), pending, num_states=s)
        end = np.stack([exact.push_forward(p, k) for p, k in zip(probs, kernel, strict=True)])
        residuals.append(gap(end, data))
    return worst(*residuals)


def _corrector(forward: Array, backward: Array, beta: Array) -> Array:
    each = jax.vmap(lambda u, v: velocities.corrected_velocity(u, v, beta, beta))
    return each(forward, backward)


def _one_position_probs(velocity: Array, states: Array, size: Array) -> Array:
    """One-position steps at every position: [N, Z, N, S]."""

    def at(position: Array) -> Array:
        return jax.vmap(lambda u, z: samplers.one_position_step_probs(u, z, position, size))(
            velocity, states
        )

    return jax.vmap(at)(jnp.arange(states.shape[1]))


def _all_position_probs(velocity: Array, states: Array, size: Array) -> Array:
    """The product step, every position at once, N times: [N, Z, N, S]."""
    probs = jax.vmap(steps.step_probs)(size * velocity, states)
    return jnp.broadcast_to(probs, (states.shape[1], *probs.shape))


@statement(
    "S5",
    "correctors (α = β) at frozen t: one-position or I + hG steps keep p_t exactly",
    source="own",
    kind="identity",
    falsifier="all positions at once",
    step=_all_position_probs,
)
def corrector_steps(cases: Cases, run: Run, *, step=_one_position_probs) -> np.ndarray:
    """Every position alone, and a uniformly drawn one: p_t comes back."""
    probs = cases.each(lambda c: c.path("inside"))
    forward = on_support(cases, "inside", forward_field(cases, run, "inside"))
    backward = on_support(cases, "inside", backward_field(cases, run, "inside"))
    corrector = run(_corrector, forward, backward, cases.each(lambda c: c.numbers[5]))
    # h |u| < 1, rounding included; a source that is the data has no corrector, u = 0.
    size = 0.9 / np.maximum(np.abs(corrector).reshape(len(cases), -1).max(axis=1), 1.0)
    kernels = run(step, corrector, fields.states(cases), size)
    after = np.stack(
        [[exact.push_forward(p, k) for k in rows] for p, rows in zip(probs, kernels, strict=True)]
    )
    return worst(gap(after, probs[:, None]), gap(after.mean(axis=1), probs))
