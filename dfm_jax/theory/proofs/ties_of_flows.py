"""Paths, velocities, steps, autoregression and samplers beside their definitions in Coq."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import jax.numpy as jnp
import numpy as np

from dfm_jax import paths, samplers, schedules, steps, velocities
from dfm_jax.theory.proofs.extracted import Finite
from dfm_jax.theory.proofs.spaces import (
    MASK,
    NUM_POSITIONS,
    NUM_STATES,
    NUM_TOKENS,
    Both,
    Exact,
    Space,
    floats,
    logs,
    sides,
    tie,
    tokens_at,
)

# ── paths ───────────────────────────────────────────────────────────────────────────────────────


@tie("P1", "Basics.product_law", "paths.product_log_prob")
def _product_law(space: Space) -> Both:
    rows = [space.law(NUM_STATES) for _ in space.positions]
    p = space.coq.function(lambda i, v: rows[i][v])
    exact = [
        space.coq["Basics.product_law"](space.positions, space.tokens, p, x) for x in space.states
    ]
    return exact, np.exp(
        space.over_states(paths.product_log_prob, floats(rows), states=space.states)
    )


@tie("P2", "Paths.convex_token", "paths.convex_path")
def _convex_path(space: Space) -> Both:
    base = [[space.law(NUM_STATES) for _ in space.positions] for _ in range(3)]
    masses = [space.law(3) for _ in space.positions]
    kinds, coq = Finite(range(3)), space.coq
    exact = [
        [
            coq["Paths.convex_token"](
                space.tokens,
                kinds,
                coq.function(lambda j, i=i: masses[i][j]),
                coq.function(lambda j, a, i=i: base[j][i][a]),
                v,
            )
            for v in space.tokens
        ]
        for i in space.positions
    ]
    return exact, space.run(paths.convex_path, floats(base)[None], floats(masses).T[None])[0]


@tie("P3", "Paths.mixture_token", "paths.mixture_path")
def _tie_of_mixture_path(space: Space) -> Both:
    x_0, x_1 = np.array(space.pairs_of_data).transpose(1, 0, 2)
    kappa = np.repeat(floats(space.kappa)[None], len(x_0), axis=0)
    return space.token_paths, space.run(_mixture_path, x_0, x_1, kappa)


def _mixture_path(x_0: Any, x_1: Any, kappa: Any) -> Any:
    return paths.mixture_path(x_0, x_1, kappa, num_states=NUM_STATES)


@tie("P4", "Basics.marginal", "paths.marginal_log_prob")
def _marginal_path(space: Space) -> Both:
    found = space.over_states(
        paths.marginal_log_prob, space.token_paths, space.log_coupling, states=space.states
    )
    return [space.probability(z) for z in space.states], np.exp(found)


@tie("P5", "Basics.posterior", "paths.pair_posterior")
def _pair_posterior(space: Space) -> Both:
    posterior = space.coq["Basics.posterior"]
    exact = [
        [
            posterior(space.pairs, space.states, space.path, space.whole, z, pair)
            for pair in space.pairs_of_data
        ]
        for z in space.support
    ]
    return exact, space.over_states(paths.pair_posterior, space.token_paths, space.log_coupling)


@tie("P5", "Paths.token_posterior", "paths.token_posterior")
def _tie_of_token_posterior(space: Space) -> Both:
    exact = [
        [
            [space.token_posterior(space.whole, z, i, v) for v in range(NUM_TOKENS)]
            for i in space.positions
        ]
        for z in space.support
    ]
    tokens = np.array([x_1 for _, x_1 in space.pairs_of_data])
    return exact, space.over_states(_token_posterior, space.token_paths, space.log_coupling, tokens)


def _token_posterior(z: Any, token_paths: Any, log_coupling: Any, tokens: Any) -> Any:
    pairs = paths.pair_posterior(z, token_paths, log_coupling)
    return paths.token_posterior(pairs, tokens, num_tokens=NUM_TOKENS)


@tie("P7", "Masks.revealed_indicator", "paths.revealed_posterior")
def _tie_of_revealed_posterior(space: Space) -> Both:
    z_s = _revealed_support(space)
    exact = [
        [[_given_revealed(space, z, i, v) for v in range(NUM_TOKENS)] for i in space.positions]
        for z in z_s
    ]
    law = logs([space.whole_data(x) for x in space.data])
    return exact, space.over_states(_revealed_posterior, np.array(space.data), law, states=z_s)


def _revealed_posterior(z: Any, x_1: Any, log_data: Any) -> Any:
    return paths.revealed_posterior(z, x_1, log_data, mask_id=MASK)


def _revealed_support(space: Space) -> list[Any]:
    """The states whose revealed tokens the data have."""
    seen = space.coq["Masks.revealed"]
    return [
        z
        for z in space.states
        if any(
            space.whole_data(x) > 0 and seen(space.positions, space.tokens, MASK, x, z)
            for x in space.data
        )
    ]


def _given_revealed(space: Space, z: Any, i: int, v: int) -> Fraction:
    coq = space.coq
    seen = coq["Masks.revealed_indicator"](space.positions, space.tokens, MASK)
    token = coq.function(lambda x: Fraction(x[i] == v))
    return coq["Basics.mean"](space.states, space.states, seen, space.whole_data, z, token)


@sides("P7")
def _time_does_not_matter(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq = space.coq
    kappa = coq.function(lambda i: space.kappa[i])
    path = coq["Masks.masked_path"](space.positions, space.tokens, MASK, kappa)
    for z in _revealed_support(space):
        for i, v in product(space.positions, range(NUM_TOKENS)):
            token = coq.function(lambda x, i=i, v=v: Fraction(x[i] == v))
            left = coq["Basics.mean"](space.states, space.states, path, space.whole_data, z, token)
            yield left, _given_revealed(space, z, i, v)


# ── velocities ──────────────────────────────────────────────────────────────────────────────────


def _each(space: Space, fn: Callable[..., Any], *arrays: Any) -> np.ndarray:
    """fn(z, one row of each array, t) for every state of the support."""
    time = np.full(len(space.support), float(space.time))
    return space.run(fn, np.array(space.support), *arrays, time)


@tie("V3", "Velocities.mixture_velocity", "velocities.mixture_velocity")
def _tie_of_mixture_velocity(space: Space) -> Both:
    velocity, x_1 = space.coq["Velocities.mixture_velocity"], space.data[1]
    exact = tokens_at(
        space, lambda i, v, z: velocity(space.tokens, space.time, Fraction(1), x_1[i], v, z[i])
    )
    return exact, _each(space, _mixture_velocity, np.array([x_1] * len(space.support)))


def _mixture_velocity(z: Any, x_1: Any, t: Any) -> Any:
    return velocities.mixture_velocity(x_1, z, t, schedules.linear(), num_states=NUM_STATES)


def _laws(space: Space, size: int) -> Exact:
    return [[space.law(size) for _ in space.positions] for _ in space.support]


@tie("V5", "Velocities.posterior_to_velocity", "velocities.posterior_to_velocity")
def _tie_of_posterior_to_velocity(space: Space) -> Both:
    laws = _laws(space, NUM_TOKENS)
    of_state = dict(zip(space.support, laws, strict=True))

    def value(i: int, v: int, z: Any) -> Fraction:
        law = space.coq.function(lambda a: of_state[z][i][a] if a < NUM_TOKENS else Fraction(0))
        velocity = space.coq["Velocities.posterior_to_velocity"]
        return velocity(space.tokens, space.time, Fraction(1), law, v, z[i])

    return tokens_at(space, value), _each(space, _posterior_to_velocity, floats(laws))


def _posterior_to_velocity(z: Any, posterior: Any, t: Any) -> Any:
    schedule = schedules.linear()
    return velocities.posterior_to_velocity(posterior, z, t, schedule, num_states=NUM_STATES)


@tie("V6", "Velocities.posterior_to_backward", "velocities.backward_velocity")
def _tie_of_backward_velocity(space: Space) -> Both:
    laws = _laws(space, NUM_STATES)
    of_state = dict(zip(space.support, laws, strict=True))

    def value(i: int, v: int, z: Any) -> Fraction:
        law = space.coq.function(lambda a: of_state[z][i][a])
        velocity = space.coq["Velocities.posterior_to_backward"]
        return velocity(space.tokens, space.time, Fraction(1), law, v, z[i])

    return tokens_at(space, value), _each(space, _backward_velocity, floats(laws))


def _backward_velocity(z: Any, posterior: Any, t: Any) -> Any:
    return velocities.backward_velocity(posterior, z, t, schedules.linear())


def _line(space: Space) -> tuple[Exact, Exact, Exact, Exact]:
    """Laws that move on a line in time: start, end, value and derivative at the time: [N, S]."""
    start, end = ([space.law(NUM_STATES) for _ in space.positions] for _ in range(2))
    t = space.time
    value = [
        [(1 - t) * a + t * b for a, b in zip(*rows, strict=True)]
        for rows in zip(start, end, strict=True)
    ]
    slope = [[b - a for a, b in zip(*rows, strict=True)] for rows in zip(start, end, strict=True)]
    return start, end, value, slope


def _of_path(space: Space, definition: str, fn: Callable[..., Any]) -> Both:
    """A velocity of token paths on a line, with its diagonal, wherever every token has mass."""
    start, end, value, slope = _line(space)
    coq = space.coq
    z_s = [z for z in space.states if all(value[i][z[i]] > 0 for i in space.positions)]

    def exact(i: int, v: int, z: Any) -> Fraction:
        p, dp = (coq.function(lambda a, rows=rows: rows[i][a]) for rows in (value, slope))
        off = coq[definition](space.tokens, p, dp)
        return coq["Velocities.with_diagonal"](space.tokens, off, v, z[i])

    values = [[[exact(i, v, z) for v in space.tokens] for i in space.positions] for z in z_s]
    t = np.full(len(z_s), float(space.time))
    ends = (np.repeat(floats(rows)[None], len(z_s), axis=0) for rows in (start, end))
    return values, space.run(fn, np.array(z_s), *ends, t)


@tie("V8", "Velocities.kinetic_optimal", "velocities.kinetic_optimal_velocity")
def _tie_of_kinetic_optimal(space: Space) -> Both:
    return _of_path(space, "Velocities.kinetic_optimal", _kinetic_optimal)


def _kinetic_optimal(z: Any, start: Any, end: Any, t: Any) -> Any:
    return velocities.kinetic_optimal_velocity(lambda s: (1 - s) * start + s * end, z, t)


@tie("V9", "Velocities.campbell", "velocities.campbell_velocity")
def _tie_of_campbell(space: Space) -> Both:
    return _of_path(space, "Velocities.campbell", _campbell)


def _campbell(z: Any, start: Any, end: Any, t: Any) -> Any:
    return velocities.campbell_velocity(lambda s: (1 - s) * start + s * end, z, t)


def _random_field(space: Space) -> Exact:
    """A velocity whose columns sum to 0, at every state: [Z, N, S]."""
    rows = []
    for z in space.states:
        rows.append([])
        for i in space.positions:
            values = [space.number(-9, 9) for _ in space.tokens]
            values[z[i]] -= sum(values)
            rows[-1].append(values)
    return rows


@tie("C1", "Basics.divergence", "velocities.divergence")
def _divergence(space: Space) -> Both:
    field, law, coq = _random_field(space), space.law(len(space.states)), space.coq
    place = space.states.place
    u = coq.function(lambda i, v, z: field[place[z]][i][v])
    full = coq["Basics.full_field"](space.positions, space.tokens, u)
    p = coq.function(lambda z: law[place[z]])
    exact = [coq["Basics.divergence"](space.states, p, full, x) for x in space.states]
    states = np.array(list(space.states))[None]
    return exact, space.run(velocities.divergence, floats(law)[None], floats(field)[None], states)[
        0
    ]


@sides("C1")
def _continuity(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq, one = space.coq, Fraction(1)

    def pair_velocity(pair: Any, i: int, v: int, a: int) -> Fraction:
        velocity = coq["Velocities.mixture_velocity"]
        return velocity(space.tokens, space.kappa[i], one, pair[1][i], v, a)

    token = coq["Paths.mixture_token"]
    p = coq.function(
        lambda pair, i, v: token(space.tokens, space.kappa[i], pair[0][i], pair[1][i], v)
    )
    dp = coq.function(lambda pair, i, v: Fraction(pair[1][i] == v) - Fraction(pair[0][i] == v))
    u = coq.function(pair_velocity)
    derivative = coq["Experts.product_derivative"]
    own, field = coq["Experts.own_token"], coq["Basics.full_field"]
    args = (space.positions, space.tokens)
    slope = coq.function(lambda pair, x: derivative(*args, p(pair), dp(pair), x))
    fields = coq.function(lambda pair, x, z: field(*args, own(*args, u(pair)), x, z))
    whole = coq["Experts.marginal_velocity"](
        space.pairs, space.states, space.path, space.whole, fields
    )
    law = coq["Basics.marginal"](space.pairs, space.states, space.path, space.whole)
    for x in space.states:
        change = coq["Basics.marginal"](space.pairs, space.states, slope, space.whole, x)
        yield change, -coq["Basics.divergence"](space.states, law, whole, x)


# ── steps ───────────────────────────────────────────────────────────────────────────────────────


def _kappas(space: Space) -> tuple[Any, Any]:
    """κ and κ' as Coq's functions."""
    coq = space.coq
    return coq.function(lambda i: space.kappa[i]), coq.function(lambda i: space.later[i])


def _step_velocity(space: Space, i: int, v: int, z: Any) -> Fraction:
    velocity = space.coq["Steps.step_velocity"]
    return velocity(space.positions, space.tokens, *_kappas(space), space.whole, i, v, z)


@tie("Q1", "Steps.step_kernel", "steps.transition_matrix")
def _transition_matrix(space: Space) -> Both:
    coq, place = space.coq, space.states.place
    rows = [[space.law(NUM_STATES) for _ in space.positions] for _ in space.states]
    u = coq.function(lambda i, v, z: rows[place[z]][i][v] - Fraction(v == z[i]))
    kernel = coq["Steps.step_kernel"]
    exact = [
        [kernel(space.positions, space.tokens, u, x, z) for z in space.states] for x in space.states
    ]
    states = np.array(list(space.states))[None]
    return exact, space.run(steps.transition_matrix, floats(rows)[None], states)[0]


@tie("Q3", "Steps.step_size", "steps.step_size")
def _tie_of_step_size(space: Space) -> Both:
    size = space.coq["Steps.step_size"]
    ends = [*zip(space.kappa, space.later, strict=True), (Fraction(1), Fraction(1))]
    table = floats([[now for now, _ in ends], [then for _, then in ends]])
    return [size(*both) for both in ends], space.run(_step_size, table[None])[0]


def _step_size(table: Any) -> Any:
    return steps.step_size(jnp.concatenate([0 * table[:1], table]), 1)


@tie("Q3", "Steps.step_velocity", "steps.exact_step_velocity")
def _tie_of_exact_step_velocity(space: Space) -> Both:
    posteriors = [
        [
            [space.token_posterior(space.whole, z, i, v) for v in range(NUM_TOKENS)]
            for i in space.positions
        ]
        for z in space.support
    ]
    sizes = [
        space.coq["Steps.step_size"](*both) for both in zip(space.kappa, space.later, strict=True)
    ]
    every = np.repeat(floats(sizes)[None], len(space.support), axis=0)
    exact = tokens_at(space, lambda i, v, z: _step_velocity(space, i, v, z))
    z = np.array(space.support)
    return exact, space.run(_exact_step_velocity, floats(posteriors), z, every)


def _exact_step_velocity(posterior: Any, z: Any, size: Any) -> Any:
    return steps.exact_step_velocity(posterior, z, size, num_states=NUM_STATES)


@sides("Q3")
def _one_token_is_exact(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq = space.coq
    token, velocity = coq["Paths.mixture_token"], coq["Steps.conditional_velocity"]
    now, then = space.kappa[0], space.later[0]
    for x_0, x_1, v in product(space.tokens, space.tokens, space.tokens):
        after = sum(
            (Fraction(v == z) + velocity(space.tokens, now, then, x_1, v, z))
            * token(space.tokens, now, x_0, x_1, z)
            for z in space.tokens
        )
        yield after, token(space.tokens, then, x_0, x_1, v)


@tie("Q5", "Steps.push_forward", "steps.push_forward")
def _push_forward(space: Space) -> Both:
    coq, place = space.coq, space.states.place
    rows = [[space.law(NUM_STATES) for _ in space.positions] for _ in space.states]
    law = space.law(len(space.states))
    u = coq.function(lambda i, v, z: rows[place[z]][i][v] - Fraction(v == z[i]))
    kernel = coq["Steps.step_kernel"](space.positions, space.tokens, u)
    p = coq.function(lambda z: law[place[z]])
    exact = [coq["Steps.push_forward"](space.states, kernel, p, x) for x in space.states]
    states = np.array(list(space.states))[None]
    return exact, space.run(steps.push_forward, floats(law)[None], floats(rows)[None], states)[0]


def _one_position_step(space: Space) -> tuple[Any, Any]:
    """κ at the start of a step, and κ' where position 0 alone moves."""
    coq = space.coq
    start = coq.function(lambda i: space.kappa[i])
    end = coq.function(lambda i: space.later[i] if i == 0 else space.kappa[i])
    return start, end


@sides("Q4")
def _discrete_continuity(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq, (now, then) = space.coq, _one_position_step(space)
    args = (space.positions, space.tokens)
    before, after = (coq["Steps.path"](*args, kappa, space.whole) for kappa in (now, then))
    u = coq["Steps.step_velocity"](*args, now, then, space.whole)
    field = coq["Basics.full_field"](*args, u)
    for x in space.states:
        yield after(x) - before(x), -coq["Basics.divergence"](space.states, before, field, x)


@sides("Q5")
def _product_kernel_pushes_forward(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq, (now, then) = space.coq, _one_position_step(space)
    args = (space.positions, space.tokens)
    before, after = (coq["Steps.path"](*args, kappa, space.whole) for kappa in (now, then))
    u = coq["Steps.step_velocity"](*args, now, then, space.whole)
    kernel = coq["Steps.step_kernel"](*args, u)
    for x in space.states:
        yield after(x), coq["Steps.push_forward"](space.states, kernel, before, x)


@tie("Q6", "Accounting.parallel_law", "steps.parallel_log_prob")
def _tie_of_parallel_law(space: Space) -> Both:
    coq, blocks = space.coq, (0, 0)
    law = coq["Accounting.parallel_law"](
        space.positions, space.tokens, 1, coq.function(lambda i: blocks[i]), space.whole_data
    )
    data = np.array(space.data)
    log_q = logs([space.whole_data(x) for x in space.data])
    found = space.over_states(_parallel_law, data, log_q, states=space.data)
    return [law(x) for x in space.data], np.exp(found)


def _parallel_law(x: Any, states: Any, log_q: Any) -> Any:
    return steps.parallel_log_prob(x, jnp.zeros(NUM_POSITIONS, int), states, log_q)


@tie("Q6", "Accounting.total_correlation", "steps.total_correlation")
def _tie_of_total_correlation(space: Space) -> Both:
    exact = space.coq["Accounting.total_correlation"](
        space.log, space.positions, space.tokens, space.whole_data
    )
    probs = floats([space.whole_data(x) for x in space.data])[None]
    return [exact], space.run(_total_correlation, probs, np.array(space.data)[None])


def _total_correlation(probs: Any, states: Any) -> Any:
    return steps.total_correlation(probs, states, num_tokens=NUM_TOKENS)


# ── autoregression ──────────────────────────────────────────────────────────────────────────────


@tie("A1", "Autoregression.order_table", "schedules.any_order")
def _order_table(space: Space) -> Both:
    order = [1, 0, 2]  # the position revealed at each step
    turn = space.coq.function(lambda i: order.index(i))
    table = space.coq["Autoregression.order_table"]
    positions = space.coq.ordinals(3)
    exact = [[table(positions, turn, t, i) for i in positions] for t in range(4)]
    return exact, space.run(schedules.any_order, np.array(order)[None])[0]


def _left_to_right(space: Space) -> tuple[Any, Any, Any]:
    """A source that is independent of the data, their coupling, and the order."""
    coq, source = space.coq, space.law(len(space.states))
    p = coq.function(lambda x: source[space.states.place[x]])
    independent = coq["Autoregression.independent"]
    pairs = independent(space.positions, space.tokens, p, space.whole_data)
    return p, pairs, coq.function(lambda i: i)


@sides("A2")
def _prefix_and_source(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq, (p, pairs, order) = space.coq, _left_to_right(space)
    args = (space.positions, space.tokens)
    for t in range(NUM_POSITIONS + 1):
        kappa = coq["Autoregression.order_table"](space.positions, order, t)
        path = coq["Steps.path"](*args, kappa, pairs)
        for x in space.states:
            prefix = coq["Autoregression.prefix_law"](*args, order, space.whole_data, t, x)
            yield path(x), prefix * coq["Autoregression.suffix_law"](*args, order, p, t, x)


@sides("A3")
def _next_token_is_the_velocity(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq, (_, pairs, order) = space.coq, _left_to_right(space)
    args, table = (space.positions, space.tokens), coq["Autoregression.order_table"]
    for t in range(NUM_POSITIONS):
        now, then = (table(space.positions, order, s) for s in (t, t + 1))
        path = coq["Steps.path"](*args, now, pairs)
        for z, i, v in product(space.states, space.positions, space.tokens):
            if path(z) > 0:
                left = coq["Steps.step_velocity"](*args, now, then, pairs, i, v, z)
                velocity = coq["Autoregression.next_token_velocity"]
                yield left, velocity(*args, order, space.whole_data, t, i, v, z)


@tie("A3", "Autoregression.next_token_velocity", "steps.next_token_velocity")
def _tie_of_next_token_velocity(space: Space) -> Both:
    coq, order, t = space.coq, space.coq.function(lambda i: i), 1
    args = (space.positions, space.tokens, order, space.whole_data, t)
    z_s = [z for z in space.data if coq["Autoregression.prefix_law"](*args[:4], t, z) > 0]
    velocity, token = (
        coq[f"Autoregression.{name}"] for name in ("next_token_velocity", "token_given_prefix")
    )
    exact = [
        [[velocity(*args, i, v, z) for v in space.tokens] for i in space.positions] for z in z_s
    ]
    probs = floats([[token(*args, t, v, z) for v in range(NUM_TOKENS)] for z in z_s])
    return exact, space.run(_next_token_velocity, probs, np.array(z_s))


def _next_token_velocity(probs: Any, z: Any) -> Any:
    return steps.next_token_velocity(probs, z, 1, num_states=NUM_STATES)


# ── samplers ────────────────────────────────────────────────────────────────────────────────────


@sides("S3")
def _euler_is_the_exact_step(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq, t, h = space.coq, space.time, (1 - space.time) / 3
    velocity, step = coq["Velocities.mixture_velocity"], coq["Steps.conditional_velocity"]
    for x_1, v, z in product(space.tokens, space.tokens, space.tokens):
        left = h * velocity(space.tokens, t, Fraction(1), x_1, v, z)
        yield left, step(space.tokens, t, t + h, x_1, v, z)


@tie("S4", "Samplers.final_kernel", "samplers.final_step_probs")
def _tie_of_final_step(space: Space) -> Both:
    coq = space.coq
    done = coq.function(lambda i: Fraction(1) if i == 0 else space.kappa[i])
    args = (space.positions, space.tokens, done, space.whole)
    path = coq["Steps.path"](*args)
    z_s = [z for z in space.states if path(z) > 0]
    kernel, token = coq["Samplers.final_kernel"], coq["Steps.data_token"]
    exact = [[kernel(*args, x, z) for x in space.states] for z in z_s]
    posteriors = floats(
        [[[token(*args, i, v, z) for v in range(NUM_TOKENS)] for i in space.positions] for z in z_s]
    )
    states = np.repeat(np.array(list(space.states))[None], len(z_s), axis=0)
    return exact, space.run(_final_step, posteriors, np.array(z_s), states)


def _final_step(posterior: Any, z: Any, states: Any) -> Any:
    pending = jnp.arange(NUM_POSITIONS) > 0
    probs = samplers.final_step_probs(posterior, z, pending, num_states=NUM_STATES)
    return jnp.prod(probs[jnp.arange(NUM_POSITIONS), states], axis=-1)


@tie("S5", "Samplers.one_position_kernel", "samplers.one_position_step_probs")
def _tie_of_one_position_step(space: Space) -> Both:
    field, coq, place = _random_field(space), space.coq, space.states.place
    u = coq.function(lambda i, v, z: field[place[z]][i][v])
    kernel = coq["Samplers.one_position_kernel"](space.positions, space.tokens, u, 1)
    exact = [[kernel(x, z) for x in space.states] for z in space.states]
    states = np.array(list(space.states))
    every = np.repeat(states[None], len(states), axis=0)
    return exact, space.run(_one_position_step_probs, floats(field), states, every)


def _one_position_step_probs(velocity: Any, z: Any, states: Any) -> Any:
    probs = samplers.one_position_step_probs(velocity, z, 1, 1.0)
    return jnp.prod(probs[jnp.arange(NUM_POSITIONS), states], axis=-1)


@sides("S5")
def _correctors_keep_the_path(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq, (kappa, _) = space.coq, _kappas(space)
    args = (space.positions, space.tokens)
    strength = coq.function(lambda i: Fraction(1, 7))
    u = coq["Samplers.corrector_velocity"](*args, strength, kappa, space.whole)
    kernel = coq["Samplers.one_position_kernel"](*args, u, 0)
    path = coq["Steps.path"](*args, kappa, space.whole)
    for x in space.states:
        yield path(x), coq["Steps.push_forward"](space.states, kernel, path, x)


@sides("S6")
def _an_expert_for_each_position(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq, place = space.coq, space.states.place
    args, fields = (space.positions, space.tokens), [_random_field(space) for _ in space.experts]
    r = coq.function(lambda i, k, z: space.weights[k] if i else space.learned_weights[k])
    u = coq.function(lambda k, i, v, z: fields[k][place[z]][i][v])
    mixed = coq["Samplers.mixed_velocity"](*args, space.experts, r, u)
    kernel = coq["Steps.step_kernel"]
    draws = coq.sequences(space.positions, space.experts)
    for x, z in product(space.states, list(space.states)[:3]):
        right = Fraction(0)
        for ks in draws:
            drawn = coq.function(lambda i, v, y, ks=ks: fields[ks[i]][place[y]][i][v])
            weight = r(0, ks[0], z) * r(1, ks[1], z)
            right += weight * kernel(*args, drawn, x, z)
        yield kernel(*args, mixed, x, z), right
