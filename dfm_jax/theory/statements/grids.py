"""A4, L5: losses on schedule tables."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, objectives, schedules, steps
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.statements.bounds import at_states, masked_states, model_probs, subsets
from dfm_jax.theory.statements.steps import laws_of, velocities_of
from dfm_jax.types import Array


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
    """Every value of the context equally likely, masks elsewhere: a law [Z]; how many values."""
    v, num_contexts = case.shape.num_tokens, case.shape.num_tokens ** case.context.sum()
    start = np.where(case.context, case.states < v, case.states == v).all(axis=1)
    return start / num_contexts, num_contexts


@statement(
    "L5",
    "all masks, carry-over, any grid: "
    "−log p̂_T(x_1) ≤ Σ_t Σ_i λ_t^i E[1[X_t^i = m] (−log p̂^i(x_1^i | X_t))]; "
    "equality for one-position steps",
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
        kernels = run(laws_of, velocity, fields.states(cases))
        rows = []
        for law, num_contexts, kernel in zip(*cases.each(_all_contexts), kernels, strict=True):
            for step in kernel:
                law = exact.push_forward(law, step)
            on_data = law.reshape((s,) * n)[(slice(v),) * n].reshape(-1)
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
