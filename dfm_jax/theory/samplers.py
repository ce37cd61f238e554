"""S1, S2, S4–S7: samplers, as laws on exact posteriors."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, gates, samplers, steps, velocities
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.paths import one_pair
from dfm_jax.theory.routing import token_log_probs
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, worst
from dfm_jax.theory.steps import (
    chain,
    chain_on_table,
    order_table,
    paired_table,
    step_laws,
    two_step_table,
)
from dfm_jax.theory.velocities import backward_field, forward_field, on_support
from dfm_jax.types import Array


def push(law: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Push a law through several steps, by enumeration."""
    for kernel in kernels:
        law = exact.push_forward(law, kernel)
    return law


def _sequence_laws(tokens: Array, next_probs: Array) -> Array:
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
    falsifier="next-token laws that forget the prefix",
    next_probs=_previous_only,
)
def autoregressive(cases: Cases, run: Run, *, next_probs=_next_probs) -> np.ndarray:
    """The data law itself, and the law of any model's ancestral samples."""
    law = run(_sequence_laws, fields.tokens(cases), cases.each(next_probs))
    model = cases.each(lambda c: c.conditionals(c.model_parts[0]))
    return worst(
        gap(law, cases.each(lambda c: c.data)),
        gap(run(_sequence_laws, fields.tokens(cases), model), cases.each(_ancestral)),
    )


def _ancestral(case: Case) -> np.ndarray:
    return exact.sequence_law(case.conditionals(case.model_parts[0]))


@statement(
    "S2",
    "the exact finite step for any κ grid; the joint sample is exact for one-position steps",
    source="own",
    kind="identity",
    falsifier="two positions at once",
    table_of=paired_table,
)
def exact_step_sampler(cases: Cases, run: Run, *, table_of=order_table) -> np.ndarray:
    """From source to data: one pair on a free grid ends at x_1; all pairs one by one end at q."""
    v, n, _ = cases.shape
    s = cases.shape.num_states
    laws, posteriors, table = chain_on_table(cases, table_of)
    kernels = run(step_laws, posteriors, fields.states(cases), table)
    ends = np.stack([push(law[0], kernel) for law, kernel in zip(laws, kernels, strict=True)])

    def pair_posterior(case: Case) -> np.ndarray:
        x_1 = np.eye(v)[one_pair(case)[1]]
        return np.broadcast_to(x_1, (2, len(case.states), *x_1.shape))

    own = run(
        step_laws, cases.each(pair_posterior), fields.states(cases), cases.each(two_step_table)
    )

    def pair_end(index: int, case: Case) -> np.ndarray:
        x_0, x_1 = one_pair(case)
        start = (case.states == x_0).all(axis=1).astype(float)
        end = (case.states == x_1).all(axis=1).astype(float)
        return np.abs(push(start, own[index]) - end).max()

    data = cases.each(lambda c: exact.embed(c.data, v, s, n))
    return worst(gap(ends, data), cases.each_numbered(pair_end))


def _final_laws(posterior: Array, states: Array, pending: Array, *, num_states: int) -> Array:
    def at(p: Array, z: Array, still: Array) -> Array:
        return samplers.final_step_law(p, z, still, num_states=num_states)

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
            laws, posteriors = chain(case, coupling, np.stack([row, np.ones_like(row)]))
            pending = case.states == v if masked else np.broadcast_to(row < 1, case.states.shape)
            undefined = (laws[0] == 0)[:, None, None]
            return laws[0], np.where(undefined, np.eye(v)[0], posteriors[0]), pending

        law, posterior, pending = cases.each(truth)
        kernel = run(_final_laws, posterior, fields.states(cases), pending, num_states=s)
        end = np.stack([exact.push_forward(p, k) for p, k in zip(law, kernel, strict=True)])
        residuals.append(gap(end, data))
    return worst(*residuals)


def _corrector(forward: Array, backward: Array, beta: Array) -> Array:
    each = jax.vmap(lambda u, v: velocities.corrected_velocity(u, v, beta, beta))
    return each(forward, backward)


def _one_position_laws(velocity: Array, states: Array, size: Array) -> Array:
    """One-position steps at every position: [N, Z, N, S]."""

    def at(position: Array) -> Array:
        return jax.vmap(lambda u, z: samplers.one_position_step_law(u, z, position, size))(
            velocity, states
        )

    return jax.vmap(at)(jnp.arange(states.shape[1]))


def _all_position_laws(velocity: Array, states: Array, size: Array) -> Array:
    """The product step, every position at once, N times: [N, Z, N, S]."""
    law = jax.vmap(steps.step_law)(size * velocity, states)
    return jnp.broadcast_to(law, (states.shape[1], *law.shape))


@statement(
    "S5",
    "correctors (α = β) at frozen t: one-position or I + hG steps keep p_t exactly",
    source="own",
    kind="identity",
    falsifier="all positions at once",
    step=_all_position_laws,
)
def corrector_steps(cases: Cases, run: Run, *, step=_one_position_laws) -> np.ndarray:
    """Every position alone, and a uniformly drawn one: p_t comes back."""
    law = cases.each(lambda c: c.path("inside"))
    forward = on_support(cases, "inside", forward_field(cases, run, "inside"))
    backward = on_support(cases, "inside", backward_field(cases, run, "inside"))
    corrector = run(_corrector, forward, backward, cases.each(lambda c: c.numbers[5]))
    # h |u| ≤ 1; a source that is the data has no corrector, u = 0.
    size = 1 / np.maximum(np.abs(corrector).reshape(len(cases), -1).max(axis=1), 1.0)
    kernels = run(step, corrector, fields.states(cases), size)
    after = np.stack(
        [[exact.push_forward(p, k) for k in rows] for p, rows in zip(law, kernels, strict=True)]
    )
    return worst(gap(after, law[:, None]), gap(after.mean(axis=1), law))


def _mixed_laws(gate: Array, laws: Array) -> Array:
    return jax.vmap(samplers.mixed_step_law, in_axes=(0, 1))(gate, laws)


def _independent_kernel(gate: Array, laws: Array, states: Array) -> Array:
    """One expert per position: the kernel of `mixed_step_law`, [Z, Z]."""
    return steps.transition_matrix(_mixed_laws(gate, laws), states)


def _shared_kernel(gate: Array, laws: Array, states: Array) -> Array:
    """One expert for all positions of a step: [Z, Z]."""

    def entry(x: Array, weights: Array, rows: Array) -> Array:
        return samplers.shared_expert_log_prob(x, jnp.log(weights), rows)

    from_z = jax.vmap(entry, in_axes=(None, 0, 1))
    return jnp.exp(jax.vmap(from_z, in_axes=(0, None, None))(states, gate, laws))


def _expert_step_laws(case: Case) -> np.ndarray:
    """Any experts' step laws, full support: [K, Z, N, S]."""
    flat = np.concatenate([case.denoiser, case.denoiser[..., :1]], axis=-1)
    flat = flat / flat.sum(axis=-1, keepdims=True)
    share = (0.2 + 0.6 * case.weights)[:, None, None, None]
    return share * flat[None] + (1 - share) * np.roll(flat, 1, axis=0)[None]


@statement(
    "S6",
    "one step of the mixed velocity = draw k^i ~ r(z, t) per position, then expert k^i's step",
    source="own",
    kind="identity",
    falsifier="one shared k for positions that move together",
    kernel=_shared_kernel,
)
def expert_per_position(cases: Cases, run: Run, *, kernel=_independent_kernel) -> np.ndarray:
    """The kernel by enumeration of all K^N draws; if one position moves, a shared k is the same."""
    gate, laws = cases.each(lambda c: c.state_router), cases.each(_expert_step_laws)
    states = fields.states(cases)

    def all_draws(case: Case) -> np.ndarray:
        # Σ over (k^1 … k^N) of Π r_{k^i} law^i_{k^i} is the product over i of the sums.
        mixed = np.einsum("zk,kzns->zns", case.state_router, _expert_step_laws(case))
        return exact.kernel(mixed)

    stay = np.eye(cases.shape.num_states)[states][:, None]
    first = np.arange(cases.shape.num_positions)[:, None] == 0
    alone = np.where(first, laws, stay)
    return worst(
        gap(run(kernel, gate, laws, states), cases.each(all_draws)),
        gap(
            run(_shared_kernel, gate, alone, states), run(_independent_kernel, gate, alone, states)
        ),
    )


def _token_wise(log_prior: Array, token_log_probs: Array, *, static: bool) -> Array:
    """log Π_t Σ_k r_k(x^{<t}) q̂_k(x^t | x^{<t}) of one sequence."""
    if static:
        rows = gates.static_gate(log_prior, token_log_probs.shape[0]).log_weights
    else:
        rows = gates.bayes_gate(log_prior, token_log_probs).log_weights
    return jnp.sum(jax.nn.logsumexp(rows[:-1] + token_log_probs, axis=-1))


def _both_laws(log_prior: Array, token_log_probs: Array, *, static: bool) -> tuple[Array, Array]:
    whole = jax.vmap(lambda rows: samplers.one_expert_log_prob(log_prior, jnp.sum(rows, axis=0)))
    mixed = jax.vmap(lambda rows: _token_wise(log_prior, rows, static=static))
    return jnp.exp(whole(token_log_probs)), jnp.exp(mixed(token_log_probs))


@statement(
    "S7",
    "with D7 and one-position steps, draw k ~ r(c) once and keep it; with any other router, "
    "draw k^i ~ ρ̂ per position and step",
    source="own",
    kind="identity",
    falsifier="a static router, yet one expert kept",
    static=True,
)
def one_expert(cases: Cases, run: Run, *, static: bool = False) -> np.ndarray:
    """One kept expert against token-wise mixing; any router's step, per position."""
    log_prior = cases.each(lambda c: np.log(c.weights))
    kept, mixed = run(_both_laws, log_prior, cases.each(token_log_probs), static=static)
    data = cases.each(lambda c: c.data)

    gate, laws = cases.each(lambda c: c.state_router), cases.each(_expert_step_laws)
    per_position = run(_mixed_laws, gate, laws)
    drawn = np.einsum("izk,ikzns->izns", gate, laws)
    return worst(gap(kept, data), gap(mixed, data), gap(per_position, drawn))
