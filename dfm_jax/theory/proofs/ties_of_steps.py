"""Discrete time, autoregression and samplers beside their definitions in Coq."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import jax.numpy as jnp
import numpy as np

from dfm_jax import samplers, schedules, steps
from dfm_jax.theory.proofs.spaces import (
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
    field, coq, place = space.field(), space.coq, space.states.place
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


def _redraws(space: Space) -> tuple[Any, Any]:
    """A law of states, all of them positive, and the kernel that redraws position 1."""
    coq, place = space.coq, space.states.place
    law = coq.function(lambda z: Fraction(1 + place[z] ** 2, 1 + len(list(space.states))))
    share = coq.function(lambda z: Fraction(1 + z[0], 5))  # it does not read position 1
    args = (space.positions, space.tokens, law)
    return law, coq["Choices.redraw_kernel"](*args, share, 1)


@tie("S11", "Choices.redraw_kernel", "samplers.redraw_step_probs")
def _tie_of_redraws(space: Space) -> Both:
    law, kernel = _redraws(space)
    exact = [[kernel(x, z) for x in space.states] for z in space.states]
    states = np.array(list(space.states))
    others = space.coq["Choices.others_law"](space.positions, space.tokens, law, 1)
    given = [[law((z[0], v)) / others(z) for v in space.tokens] for z in space.states]
    every = np.repeat(states[None], len(states), axis=0)
    return exact, space.run(_redraw_probs, floats(given), states, every)


def _redraw_probs(given: Any, z: Any, states: Any) -> Any:
    rows = jnp.stack([jnp.full_like(given, jnp.nan), given])  # the first row is not read
    share = (1 + z[0]) / 5
    probs = samplers.redraw_step_probs(rows, z, 1, share, num_states=NUM_STATES)
    return jnp.prod(probs[jnp.arange(NUM_POSITIONS), states], axis=-1)


@sides("S11")
def _redraws_keep_the_law(space: Space) -> Iterator[tuple[Exact, Exact]]:
    law, kernel = _redraws(space)
    for x in space.states:
        yield space.coq["Steps.push_forward"](space.states, kernel, law, x), law(x)


@sides("S6")
def _an_expert_for_each_position(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq, place = space.coq, space.states.place
    args, fields = (space.positions, space.tokens), [space.field() for _ in space.experts]
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
