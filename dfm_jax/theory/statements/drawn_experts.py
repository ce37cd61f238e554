"""S6, S7: drawing an expert instead of mixing them."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, mixture, steps
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, unbroken, worst
from dfm_jax.theory.statements.routing import part_token_log_probs
from dfm_jax.types import Array


def _mixed_probs(gate: Array, token_probs: Array) -> Array:
    return jax.vmap(mixture.mix_probs, in_axes=(0, 1))(gate, token_probs)


def _independent_kernel(gate: Array, token_probs: Array, states: Array) -> Array:
    """One expert per position: the kernel of `mixture.mix_probs`, [Z, Z]."""
    return steps.transition_matrix(_mixed_probs(gate, token_probs), states)


def _mixed_velocity_kernel(gate: Array, velocity: Array, states: Array) -> Array:
    """Q1's step of D4's mixture Σ_k r_k u^k, then Q5: [Z, Z]."""
    mixed = jax.vmap(mixture.mix, in_axes=(0, 1))(gate, velocity)
    return steps.transition_matrix(jax.vmap(steps.step_probs)(mixed, states), states)


def _all_draws(case: Case, token_probs: np.ndarray) -> np.ndarray:
    """Σ over (k^1, …, k^N) of Π_i r_{k^i}(z) times the kernel of those experts' steps: [Z, Z]."""
    return case.remembered(
        (_all_draws, token_probs.tobytes()), lambda: _draw_by_draw(case, token_probs)
    )


def _draw_by_draw(case: Case, token_probs: np.ndarray) -> np.ndarray:
    gate, n = case.state_router, case.shape.num_positions
    total = np.zeros((len(case.states),) * 2)
    for draw in product(range(len(token_probs)), repeat=n):
        rows = np.stack([token_probs[k, :, i] for i, k in enumerate(draw)], axis=1)
        chance = np.prod([gate[:, k] for k in draw], axis=0)
        total += chance[None] * exact.kernel(rows)
    return total


def _one_draw(case: Case, token_probs: np.ndarray) -> np.ndarray:
    """Σ_k r_k(z) times the kernel of expert k's step: [Z, Z]."""
    pairs = zip(case.state_router.T, token_probs, strict=True)
    return np.sum([chances[None] * exact.kernel(rows) for chances, rows in pairs], axis=0)


def _shared_kernel(gate: Array, token_probs: Array, states: Array) -> Array:
    """One expert for all positions of a step: [Z, Z]."""

    def entry(x: Array, weights: Array, rows: Array) -> Array:
        return mixture.shared_expert_log_prob(jnp.log(weights), x, rows)

    from_z = jax.vmap(entry, in_axes=(None, 0, 1))
    return jnp.exp(jax.vmap(from_z, in_axes=(0, None, None))(states, gate, token_probs))


def _expert_step_probs(case: Case) -> np.ndarray:
    """Any experts' step distributions, full support: [K, Z, N, S]."""
    flat = np.concatenate([case.denoiser, case.denoiser[..., :1]], axis=-1)
    flat = flat / flat.sum(axis=-1, keepdims=True)
    share = (0.2 + 0.6 * case.weights)[:, None, None, None]
    return share * flat[None] + (1 - share) * np.roll(flat, 1, axis=0)[None]


@statement(
    "S6",
    "one step of the mixed velocity = draw k^i ~ r(z, t) independently per position, then expert "
    "k^i's step, however many move; one k for all is the same only if at most one moves",
    source="own",
    kind="identity",
    falsifier="one shared k for positions that move together",
    kernel=_shared_kernel,
)
def expert_per_position(cases: Cases, run: Run, *, kernel=_independent_kernel) -> np.ndarray:
    """The kernel of all K^N draws, one by one, and of the mixed velocity's step; of K draws."""
    gate, token_probs = cases.each(lambda c: c.state_router), cases.each(_expert_step_probs)
    drawn = cases.each_numbered(lambda i, c: _all_draws(c, token_probs[i]))
    return worst(
        gap(run(kernel, gate, token_probs, fields.states(cases)), drawn), _kernels_gap(cases, run)
    )


@unbroken
def _kernels_gap(cases: Cases, run: Run) -> np.ndarray:
    """The mixed velocity's step; one k for all positions; the same where one position moves."""
    gate, token_probs = cases.each(lambda c: c.state_router), cases.each(_expert_step_probs)
    states = fields.states(cases)
    stay = np.eye(cases.shape.num_states)[states][:, None]
    turn = (
        np.arange(cases.shape.num_positions)[:, None]
        == cases.each(lambda c: c.order[0])[:, None, None]
    )
    alone = np.where(turn[:, None, None], token_probs, stay)
    return worst(
        gap(
            run(_mixed_velocity_kernel, gate, token_probs - stay, states),
            cases.each_numbered(lambda i, c: _all_draws(c, token_probs[i])),
        ),
        gap(
            run(_shared_kernel, gate, token_probs, states),
            cases.each_numbered(lambda i, c: _one_draw(c, token_probs[i])),
        ),
        gap(
            run(_shared_kernel, gate, alone, states),
            cases.each_numbered(lambda i, c: _all_draws(c, alone[i])),
        ),
    )


def _token_wise(log_prior: Array, token_log_probs: Array, *, static: bool) -> Array:
    """log Π_t Σ_k r_k(x^{<t}) q̂_k(x^t | x^{<t}) of one sequence."""
    if static:
        rows = mixture.static_gate(log_prior, token_log_probs.shape[0]).log_weights
    else:
        rows = mixture.bayes_gate(log_prior, token_log_probs).log_weights
    return jnp.sum(jax.nn.logsumexp(rows[:-1] + token_log_probs, axis=-1))


def _both_probs(log_prior: Array, token_log_probs: Array, *, static: bool) -> tuple[Array, Array]:
    whole = jax.vmap(lambda rows: mixture.mix_log_probs(log_prior, jnp.sum(rows, axis=0)))
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
    """One kept expert against token-wise mixing, exact experts and any; any router's step."""
    residuals = []
    for weights_of, parts_of in ((_true, _true_parts), (_model, _model_parts)):
        log_prior = cases.each(lambda c, f=weights_of: np.log(f(c)))
        tokens = cases.each(lambda c, f=parts_of: part_token_log_probs(c, f(c)))
        kept, mixed = run(_both_probs, log_prior, tokens, static=static)
        probs = cases.each(lambda c, w=weights_of, f=parts_of: w(c) @ f(c))
        residuals += [gap(kept, probs), gap(mixed, probs)]
    gate, token_probs = cases.each(lambda c: c.state_router), cases.each(_expert_step_probs)
    mixed = run(_mixed_probs, gate, token_probs)

    def two_steps(index: int, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """The distribution after two steps, for any router: mixed or drawn experts in each."""
        start = np.full(len(case.states), 1 / len(case.states))
        kernel = _all_draws(case, token_probs[index])
        by_probs = exact.push_forward(exact.push_forward(start, mixed[index]), mixed[index])
        return by_probs, kernel @ kernel @ start

    return worst(*residuals, gap(*cases.each_numbered(two_steps)))


def _true(case: Case) -> np.ndarray:
    return case.weights


def _true_parts(case: Case) -> np.ndarray:
    return case.parts


def _model(case: Case) -> np.ndarray:
    return case.model_weights


def _model_parts(case: Case) -> np.ndarray:
    return case.model_parts
