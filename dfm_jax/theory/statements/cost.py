"""Q6: the cost of drawing several tokens at once."""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, steps
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.setups import Setup, chain, chain_of, two_steps
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.statements.steps import step_probs
from dfm_jax.types import Array


def block_numbers(case: Case) -> np.ndarray:
    """Blocks of two in the case's order, or one block of all; context is block 0: [N]."""
    n = case.shape.num_positions
    number = np.empty(n, int)
    number[case.order] = 1 + (np.arange(n) + n % 2) // 2
    if case.numbers[7] > 0.7:
        number[:] = 1
    return np.where(case.context, 0, number)


def block_table(case: Case) -> np.ndarray:
    """The table of `block_numbers`, context revealed from the start: [T + 1, N]."""
    last = (case.shape.num_positions + 1) // 2
    return (np.arange(last + 1)[:, None] >= block_numbers(case)).astype(float)


def _total_correlation(case: Case) -> np.ndarray:
    """Σ_s E_q TC(X^{B_s} | X^{B_1 ∪ … ∪ B_{s−1}}), by enumeration; the context costs nothing."""
    v, n, _ = case.shape
    number, cost = block_numbers(case), 0.0
    for s in range(1, number.max() + 1):
        block = tuple(int(i) for i in np.flatnonzero(number == s))
        given = tuple(int(i) for i in np.flatnonzero(number < s))
        if block:
            cost += exact.conditional_total_correlation(case.data, block, given, v, n)
    return np.asarray(cost)


def nothing(case: Case, setup: Callable[[Case], Setup] = two_steps) -> np.ndarray:
    """The cost if tokens of a set were independent given what came before."""
    return np.zeros(())


def _parallel(number: Array, tokens: Array, log_probs: Array, context: Array) -> Array:
    """log q_parallel at every sequence; the context is drawn from the data, not in parallel."""
    own = jnp.arange(number.shape[0])
    given = jnp.where(context, own - own.shape[0], number)  # one context token at a time
    return jax.vmap(lambda x: steps.parallel_log_prob(x, given, tokens, log_probs))(tokens)


def _transition_correlation(case: Case, setup: Callable[[Case], Setup] = two_steps) -> np.ndarray:
    """Σ_t E TC(X_{t+1} | X_t) = Σ_t [Σ_i H(X_{t+1}^i | X_t) − H(X_{t+1} | X_t)]."""
    n, s = case.shape.num_positions, case.shape.num_states
    coupling, table = setup(case)
    total = 0.0
    for now, then in pairwise(table):
        joint = _two_time_probs(case, exact.dense(coupling), now, then)
        start = exact.entropy(joint.sum(axis=1))
        tensor = joint.reshape(-1, *(s,) * n)
        for i in range(n):
            others = tuple(1 + j for j in range(n) if j != i)
            total += exact.entropy(tensor.sum(axis=others).reshape(-1)) - start
        total -= exact.entropy(joint.reshape(-1)) - start
    return np.asarray(total)


def any_grid_bound(cases: Cases, run: Run, *, correlation_of=_transition_correlation) -> np.ndarray:
    """KL(p_T ‖ q_parallel) ≤ Σ_t E TC(X_{t+1} | X_t) on a free grid, any source and coupling."""
    token_probs, posteriors, table = chain_of(cases, two_steps)
    kernels = run(step_probs, posteriors, fields.states(cases), table)
    distance = []
    for case_probs, kernel in zip(token_probs, kernels, strict=True):
        probs = case_probs[0]
        for step in kernel:
            probs = exact.push_forward(probs, step)
        distance.append(exact.kl(case_probs[-1], probs))
    return excess(np.array(distance), cases.each(correlation_of))


def _two_time_probs(
    case: Case, coupling: np.ndarray, now: np.ndarray, then: np.ndarray
) -> np.ndarray:
    """P(X_t = z, X_{t+1} = x) with one schedule per position: [Z, Z]."""
    n, v, s = case.shape.num_positions, case.shape.num_tokens, case.shape.num_states
    eye = np.eye(s)
    # [n, a, b, z, x]: done before, jumps now, waits
    done = now[:, None, None, None, None] * (eye[:v, :, None] * eye[:v, None, :])[None, None]
    jump = eye[:, None, :, None] * eye[None, :v, None, :]
    wait = (eye[:, :, None] * eye[:, None, :])[:, None]
    both = done + (then - now)[:, None, None, None, None] * jump
    both = both + (1 - then)[:, None, None, None, None] * wait
    probs = coupling.reshape((s,) * n + (v,) * n)
    for i in range(n):
        # contract a_i (axis 0) and b_i (axis n − i); push (z_i, x_i) to the end
        probs = np.tensordot(probs, both[i], axes=((0, n - i), (0, 1)))
    order = (*range(0, 2 * n, 2), *range(1, 2 * n, 2))
    return probs.transpose(order).reshape(s**n, s**n)


@statement(
    "Q6",
    "source independent of the data, fixed sets B_s that partition the free positions, exact token "
    "posteriors, independent draws in a set: "
    "KL(q ‖ q_parallel) = Σ_s E_q TC(X^{B_s} | X^{B_1 ∪ … ∪ B_{s−1}}); "
    "any grid, source, coupling: KL(p_T ‖ q_parallel) ≤ Σ_t E TC(X_{t+1} | X_t)",
    source="CCL, own",
    kind="identity",
    falsifier="the tokens of a set taken as independent",
    cost_of=nothing,
    correlation_of=nothing,
)
def cost_of_parallelism(
    cases: Cases, run: Run, *, cost_of=_total_correlation, correlation_of=_transition_correlation
) -> np.ndarray:
    """`parallel_log_prob`, the sampler's own chain of steps, and enumeration agree on the cost."""
    v, n, _ = cases.shape
    cost = cases.each(cost_of)
    log_parallel = run(
        _parallel,
        cases.each(block_numbers),
        fields.tokens(cases),
        cases.each(lambda c: fields.log(c.data)),
        cases.each(lambda c: c.context),
    )

    on_tokens = cases.each(lambda c: c.data)
    correlation = cases.each(lambda c: np.asarray(exact.total_correlation(c.data, v, n)))
    return worst(
        _sampled_gap(cases, run, cost, _all_masks),
        _sampled_gap(cases, run, cost, _product_source),
        gap(_distance(on_tokens, log_parallel), cost),
        gap(run(_correlation, on_tokens, fields.tokens(cases), num_tokens=v), correlation),
        any_grid_bound(cases, run, correlation_of=correlation_of),
        gap(cost, cases.each(lambda c: correlation_of(c, _masked_blocks))),
    )


def _distance(probs: np.ndarray, log_parallel: np.ndarray) -> np.ndarray:
    """KL(q ‖ q_parallel); off q's support q_parallel may be undefined, so it need not sum to 1."""
    terms = np.where(probs > 0, fields.log(probs) - np.where(probs > 0, log_parallel, 0.0), 0.0)
    return np.sum(probs * terms, axis=-1)


def _correlation(probs: Array, tokens: Array, *, num_tokens: int) -> Array:
    return steps.total_correlation(probs, tokens, num_tokens=num_tokens)


def _masked_blocks(case: Case) -> Setup:
    """Masks outside the context, set by set: where the bound of any grid is attained."""
    return case.masked, block_table(case)


def _all_masks(case: Case) -> exact.FactoredCoupling:
    return case.masked


def _product_source(case: Case) -> exact.FactoredCoupling:
    """A source independent of the data that overlaps it."""
    source = np.concatenate([case.denoiser[0], case.denoiser[0, :, :1]], axis=-1)
    return case.masked._replace(source_tokens=source / source.sum(axis=-1, keepdims=True))


def _sampled_gap(cases: Cases, run: Run, cost: np.ndarray, coupling_of) -> np.ndarray:
    """KL(q ‖ q_parallel) of the sampler itself, step by step from its source, against the cost."""
    v, n, _ = cases.shape

    def truth(case: Case) -> tuple[np.ndarray, ...]:
        token_probs, posteriors = chain(case, coupling_of(case), block_table(case))
        undefined = (token_probs[:-1] == 0)[:, :, None, None]
        # The sampler meets states off the support too: there any posterior will do.
        defined = np.where(undefined, case.denoiser[None], posteriors)
        return token_probs[0], defined, block_table(case)

    start, posteriors, table = cases.each(
        lambda c: c.remembered((_sampled_gap, coupling_of), lambda: truth(c))
    )
    kernels = run(step_probs, posteriors, fields.states(cases), table)
    sampled = []
    for probs, kernel in zip(start, kernels, strict=True):
        for step in kernel:
            probs = exact.push_forward(probs, step)
        sampled.append(probs)
    data = cases.each(lambda c: exact.embed(c.data, v, c.shape.num_states, n))
    return gap(exact.kl(data, np.stack(sampled)), cost)
