"""Paths and velocities in continuous time beside their definitions in Coq."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np

from dfm_jax import paths, schedules, velocities
from dfm_jax.theory.proofs.extracted import Finite
from dfm_jax.theory.proofs.spaces import (
    MASK,
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


@tie("C1", "Basics.divergence", "velocities.divergence")
def _divergence(space: Space) -> Both:
    field, law, coq = space.field(), space.law(len(space.states)), space.coq
    place = space.states.place
    u = coq.function(lambda i, v, z: field[place[z]][i][v])
    full = coq["Basics.full_field"](space.positions, space.tokens, u)
    p = coq.function(lambda z: law[place[z]])
    exact = [coq["Basics.divergence"](space.states, p, full, x) for x in space.states]
    states = np.array(list(space.states))[None]
    found = space.run(velocities.divergence, floats(law)[None], floats(field)[None], states)
    return exact, found[0]


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
