"""The proofs' own definitions beside the functions of the package, on the same random spaces.

    python -m dfm_jax.theory.proofs.tie

A theorem speaks of definitions in Coq; users call functions in jax. For each label, `ties` computes
both: the definition in exact rationals, as Coq extracts it, and the function in float64. Where the
theorem is an equation, both of its sides are computed exactly too, and must be equal.
"""

import random
import sys
from collections.abc import Callable, Container, Iterator
from fractions import Fraction
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from dfm_jax import mixture, paths, schedules, velocities
from dfm_jax.theory.proofs.extracted import Definitions, Finite
from dfm_jax.theory.runs import Run

NUM_TOKENS, NUM_POSITIONS, NUM_EXPERTS = 2, 2, 2
MASK, NUM_STATES = NUM_TOKENS, NUM_TOKENS + 1
TOLERANCE = 1e-12
Exact = Any  # nested lists of Fractions
Both = tuple[Exact, np.ndarray]


class Tie(NamedTuple):
    """A definition of the proofs and a function of the package, which must agree."""

    label: str
    definition: str
    function: str
    values: Callable[["Space"], Both]


class Row(NamedTuple):
    """The largest gap between both over the random spaces."""

    label: str
    definition: str
    function: str
    gap: float


TIES: list[Tie] = []
SIDES: dict[str, Callable[["Space"], Iterator[tuple[Exact, Exact]]]] = {}


def tie(label: str, definition: str, function: str) -> Callable[..., Any]:
    """Register a pair of values that must agree: exact, and from the package."""

    def enter(values: Callable[["Space"], Both]) -> Callable[["Space"], Both]:
        TIES.append(Tie(label, definition, function, values))
        return values

    return enter


def sides(label: str) -> Callable[..., Any]:
    """Register both sides of a theorem, which must be equal as rationals."""

    def enter(values: Any) -> Any:
        SIDES[label] = values
        return values

    return enter


class Space:
    """A random space: a coupling of each part with zeros in it, masses, schedules, likelihoods.

    Numbers are rationals with small denominators, and each is also given to Coq's definitions as a
    function. Data have no masks; a source may have any state.
    """

    def __init__(self, seed: int, definitions: Definitions, run: Run) -> None:
        self.seed, self.coq, self.run = seed, definitions, run
        self._random = random.Random(seed)
        self.tokens = Finite(range(NUM_STATES))
        self.positions = definitions.ordinals(NUM_POSITIONS)
        self.experts = Finite(range(NUM_EXPERTS))
        self.states = definitions.sequences(self.positions, self.tokens)
        self.data = [x for x in self.states if MASK not in x]
        self.pairs = definitions.pairs(self.states, self.states)
        self.pairs_of_data = list(product(self.states, self.data))
        self.weights = self.law(NUM_EXPERTS, positive=True)
        self.couplings = [self._coupling() for _ in self.experts]
        self.part_data = [self._data_law() for _ in self.experts]
        self.kappa = [self.number(1, 9) for _ in self.positions]
        self.later = [k + (1 - k) * self.number(1, 10) for k in self.kappa]
        self.time = self.number(1, 9)
        self.likelihoods = [[self.number(1, 9) for _ in self.experts] for _ in range(3)]

    def number(self, low: int, high: int) -> Fraction:
        """low/10, …, high/10."""
        return Fraction(self._random.randint(low, high), 10)

    def law(self, size: int, *, positive: bool = False) -> list[Fraction]:
        """A random law; about a third of its masses are 0 unless all are to be positive."""
        masses = [self._random.randint(1 if positive else -2, 4) for _ in range(size)]
        masses = [max(mass, 0) for mass in masses]
        masses[self._random.randrange(size)] += 1
        return [Fraction(mass, sum(masses)) for mass in masses]

    def _coupling(self) -> dict[Any, Fraction]:
        law = dict(zip(self.pairs_of_data, self.law(len(self.pairs_of_data)), strict=True))
        return {pair: law.get(pair, Fraction(0)) for pair in self.pairs}

    def _data_law(self) -> dict[Any, Fraction]:
        law = dict(zip(self.data, self.law(len(self.data)), strict=True))
        return {x: law.get(x, Fraction(0)) for x in self.states}

    # What Coq's definitions are given.

    @cached_property
    def w(self) -> Any:
        return self.coq.function(lambda k: self.weights[k])

    @cached_property
    def parts(self) -> Any:
        return self.coq.function(lambda k, pair: self.couplings[k][pair])

    @cached_property
    def part_laws(self) -> Any:
        return self.coq.function(lambda k, x: self.part_data[k][x])

    @cached_property
    def whole(self) -> Any:
        return self.coq["Basics.mixture"](self.experts, self.w, self.parts)

    @cached_property
    def whole_data(self) -> Any:
        return self.coq["Basics.mixture"](self.experts, self.w, self.part_laws)

    @cached_property
    def path(self) -> Any:
        return self.coq["Paths.conditional_path"](
            self.positions, self.tokens, self.coq.function(lambda i: self.kappa[i])
        )

    @cached_property
    def support(self) -> list[Any]:
        """The states that the path reaches."""
        return [z for z in self.states if self.probability(z) > 0]

    def probability(self, z: Any) -> Fraction:
        return self.coq["Basics.marginal"](self.pairs, self.states, self.path, self.whole, z)

    def part_probability(self, k: int, z: Any) -> Fraction:
        return self.coq["Experts.part_path"](
            self.pairs, self.states, self.experts, self.path, self.parts, k, z
        )

    def expert_posterior(self, z: Any, k: int) -> Fraction:
        return self.coq["Experts.expert_posterior"](
            self.pairs, self.states, self.experts, self.path, self.w, self.parts, z, k
        )

    def token_posterior(self, coupling: Any, z: Any, i: int, v: int) -> Fraction:
        return self.coq["Paths.token_posterior"](
            self.positions, self.tokens, self.path, coupling, z, i, v
        )

    # The same for the package.

    @cached_property
    def token_paths(self) -> np.ndarray:
        """p^i(v | pair): [P, N, S]."""
        token = self.coq["Paths.mixture_token"]
        return floats(
            [
                [
                    [token(self.tokens, self.kappa[i], x_0[i], x_1[i], v) for v in self.tokens]
                    for i in self.positions
                ]
                for x_0, x_1 in self.pairs_of_data
            ]
        )

    @cached_property
    def log_coupling(self) -> np.ndarray:
        """log Σ_k w_k π_k of the pairs: [P]."""
        return logs([self.whole(pair) for pair in self.pairs_of_data])

    def over_states(self, fn: Callable[..., Any], *arrays: Any, states: Any = None) -> np.ndarray:
        """fn(z, *arrays) for every state of the support."""
        z = np.array(self.support if states is None else list(states))
        return self.run(fn, z, *(np.repeat(np.asarray(a)[None], len(z), axis=0) for a in arrays))


def floats(values: Exact) -> np.ndarray:
    """Exact numbers as float64."""
    return np.array(values, dtype=object).astype(float)


def logs(values: Exact) -> np.ndarray:
    """Their logarithms; −∞ for 0."""
    with np.errstate(divide="ignore"):
        return np.log(floats(values))


def ties(
    num_spaces: int = 3,
    *,
    seed: int = 0,
    labels: Container[str] | None = None,
    definitions: Definitions | None = None,
) -> list[Row]:
    """The largest gap of every tie, or of those of some labels, over random spaces."""
    run, definitions = Run(), definitions or Definitions.load()
    spaces = [Space(seed + n, definitions, run) for n in range(num_spaces)]
    rows = []
    for label, definition, function, values in TIES:
        if labels is not None and label not in labels:
            continue
        gaps = [0.0]
        for space in spaces:
            exact, computed = values(space)
            exact = floats(exact)
            if exact.shape != computed.shape:
                raise ValueError(f"{label}: shapes {exact.shape} and {computed.shape} differ.")
            gaps.append(float(np.max(np.abs(exact - computed))))
        rows.append(Row(label, definition, function, max(gaps)))
    return rows


# ── paths ───────────────────────────────────────────────────────────────────────────────────────


@tie("P1", "Basics.product_law", "paths.product_log_prob")
def product_law(space: Space) -> Both:
    rows = [space.law(NUM_STATES) for _ in space.positions]
    p = space.coq.function(lambda i, v: rows[i][v])
    exact = [
        space.coq["Basics.product_law"](space.positions, space.tokens, p, x) for x in space.states
    ]
    return exact, np.exp(
        space.over_states(paths.product_log_prob, floats(rows), states=space.states)
    )


@tie("P2", "Paths.convex_token", "paths.convex_path")
def convex_path(space: Space) -> Both:
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
def mixture_path(space: Space) -> Both:
    x_0, x_1 = np.array(space.pairs_of_data).transpose(1, 0, 2)
    kappa = np.repeat(floats(space.kappa)[None], len(x_0), axis=0)
    return space.token_paths, space.run(_mixture_path, x_0, x_1, kappa)


def _mixture_path(x_0: Any, x_1: Any, kappa: Any) -> Any:
    return paths.mixture_path(x_0, x_1, kappa, num_states=NUM_STATES)


@tie("P4", "Basics.marginal", "paths.marginal_log_prob")
def marginal_path(space: Space) -> Both:
    found = space.over_states(
        paths.marginal_log_prob, space.token_paths, space.log_coupling, states=space.states
    )
    return [space.probability(z) for z in space.states], np.exp(found)


@tie("P5", "Basics.posterior", "paths.pair_posterior")
def pair_posterior(space: Space) -> Both:
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
def token_posterior(space: Space) -> Both:
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
def revealed_posterior(space: Space) -> Both:
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
def time_does_not_matter(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq = space.coq
    kappa = coq.function(lambda i: space.kappa[i])
    path = coq["Masks.masked_path"](space.positions, space.tokens, MASK, kappa)
    for z in _revealed_support(space):
        for i, v in product(space.positions, range(NUM_TOKENS)):
            token = coq.function(lambda x, i=i, v=v: Fraction(x[i] == v))
            left = coq["Basics.mean"](space.states, space.states, path, space.whole_data, z, token)
            yield left, _given_revealed(space, z, i, v)


# ── velocities ──────────────────────────────────────────────────────────────────────────────────


def _tokens_at(space: Space, value: Callable[[int, int, Any], Fraction]) -> Exact:
    """value(i, v, z) for every state of the support: [Z, N, S]."""
    return [
        [[value(i, v, z) for v in space.tokens] for i in space.positions] for z in space.support
    ]


def _each(space: Space, fn: Callable[..., Any], *arrays: Any) -> np.ndarray:
    """fn(z, one row of each array, t) for every state of the support."""
    time = np.full(len(space.support), float(space.time))
    return space.run(fn, np.array(space.support), *arrays, time)


@tie("V3", "Velocities.mixture_velocity", "velocities.mixture_velocity")
def mixture_velocity(space: Space) -> Both:
    velocity, x_1 = space.coq["Velocities.mixture_velocity"], space.data[1]
    exact = _tokens_at(
        space, lambda i, v, z: velocity(space.tokens, space.time, Fraction(1), x_1[i], v, z[i])
    )
    return exact, _each(space, _mixture_velocity, np.array([x_1] * len(space.support)))


def _mixture_velocity(z: Any, x_1: Any, t: Any) -> Any:
    return velocities.mixture_velocity(x_1, z, t, schedules.linear(), num_states=NUM_STATES)


def _laws(space: Space, size: int) -> Exact:
    return [[space.law(size) for _ in space.positions] for _ in space.support]


@tie("V5", "Velocities.posterior_to_velocity", "velocities.posterior_to_velocity")
def posterior_to_velocity(space: Space) -> Both:
    laws = _laws(space, NUM_TOKENS)
    of_state = dict(zip(space.support, laws, strict=True))

    def value(i: int, v: int, z: Any) -> Fraction:
        law = space.coq.function(lambda a: of_state[z][i][a] if a < NUM_TOKENS else Fraction(0))
        velocity = space.coq["Velocities.posterior_to_velocity"]
        return velocity(space.tokens, space.time, Fraction(1), law, v, z[i])

    return _tokens_at(space, value), _each(space, _posterior_to_velocity, floats(laws))


def _posterior_to_velocity(z: Any, posterior: Any, t: Any) -> Any:
    schedule = schedules.linear()
    return velocities.posterior_to_velocity(posterior, z, t, schedule, num_states=NUM_STATES)


@tie("V6", "Velocities.posterior_to_backward", "velocities.backward_velocity")
def backward_velocity(space: Space) -> Both:
    laws = _laws(space, NUM_STATES)
    of_state = dict(zip(space.support, laws, strict=True))

    def value(i: int, v: int, z: Any) -> Fraction:
        law = space.coq.function(lambda a: of_state[z][i][a])
        velocity = space.coq["Velocities.posterior_to_backward"]
        return velocity(space.tokens, space.time, Fraction(1), law, v, z[i])

    return _tokens_at(space, value), _each(space, _backward_velocity, floats(laws))


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
def kinetic_optimal(space: Space) -> Both:
    return _of_path(space, "Velocities.kinetic_optimal", _kinetic_optimal)


def _kinetic_optimal(z: Any, start: Any, end: Any, t: Any) -> Any:
    return velocities.kinetic_optimal_velocity(lambda s: (1 - s) * start + s * end, z, t)


@tie("V9", "Velocities.campbell", "velocities.campbell_velocity")
def campbell(space: Space) -> Both:
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
def divergence(space: Space) -> Both:
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
def continuity(space: Space) -> Iterator[tuple[Exact, Exact]]:
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


# ── experts ─────────────────────────────────────────────────────────────────────────────────────


def _log_parts(space: Space) -> np.ndarray:
    """log p_t^k(z) of the support: [Z, K]."""
    return logs([[space.part_probability(k, z) for k in space.experts] for z in space.support])


def _log_weights(space: Space) -> np.ndarray:
    """log w for every state of the support: [Z, K]."""
    return np.repeat(logs(space.weights)[None], len(space.support), axis=0)


@tie("D2", "Basics.mixture", "mixture.mix_log_probs")
def mixed_path(space: Space) -> Both:
    exact = [space.probability(z) for z in space.support]
    return exact, np.exp(
        space.run(mixture.mix_log_probs, _log_weights(space), _log_parts(space)[..., None])[..., 0]
    )


@sides("D2")
def path_is_a_mixture(space: Space) -> Iterator[tuple[Exact, Exact]]:
    for z in space.states:
        weighted = (space.weights[k] * space.part_probability(k, z) for k in space.experts)
        yield space.probability(z), sum(weighted)


@tie("D3", "Experts.expert_posterior", "mixture.expert_posterior")
def expert_posterior(space: Space) -> Both:
    exact = [[space.expert_posterior(z, k) for k in space.experts] for z in space.support]
    return exact, space.run(mixture.expert_posterior, _log_weights(space), _log_parts(space))


def _velocity(space: Space, coupling: Any, i: int, v: int, z: Any) -> Fraction:
    """V5's velocity of position i for the linear schedule, by Coq's definitions."""
    posterior = space.coq["Paths.token_posterior"](
        space.positions, space.tokens, space.path, coupling, z, i
    )
    velocity = space.coq["Velocities.posterior_to_velocity"]
    return velocity(space.tokens, space.kappa[i], Fraction(1), posterior, v, z[i])


@tie("D4", "Velocities.posterior_to_velocity", "mixture.mix")
def mixed_velocity(space: Space) -> Both:
    exact = _tokens_at(space, lambda i, v, z: _velocity(space, space.whole, i, v, z))
    parts = np.stack(
        [
            floats(
                _tokens_at(space, lambda i, v, z, k=k: _velocity(space, space.parts(k), i, v, z))
            )
            for k in space.experts
        ],
        axis=1,
    )
    return exact, space.run(_mix, _log_weights(space), _log_parts(space), parts)


def _mix(log_weights: Any, log_parts: Any, values: Any) -> Any:
    return mixture.mix(mixture.expert_posterior(log_weights, log_parts), values)


@sides("D4")
def velocities_mix(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq = space.coq
    u = coq.function(lambda pair, x, z: Fraction(1 + sum(pair[0]) * x[0] - z[1] * pair[1][1], 3))
    velocity = coq["Experts.marginal_velocity"]
    for x, z in product(space.states, space.support):
        left = velocity(space.pairs, space.states, space.path, space.whole, u, x, z)
        right = sum(
            space.expert_posterior(z, k)
            * velocity(space.pairs, space.states, space.path, space.parts(k), u, x, z)
            for k in space.experts
        )
        yield left, right


@tie("D5", "Paths.token_posterior", "mixture.mix_probs")
def mixed_posterior(space: Space) -> Both:
    def of(coupling: Any) -> Exact:
        return [
            [
                [space.token_posterior(coupling, z, i, v) for v in range(NUM_TOKENS)]
                for i in space.positions
            ]
            for z in space.support
        ]

    uniform = np.full((NUM_POSITIONS, NUM_TOKENS), 1 / NUM_TOKENS)  # where the weight is 0
    parts = np.stack([floats(of(space.parts(k))) for k in space.experts], axis=1)
    undefined = np.isneginf(_log_parts(space))[..., None, None]
    parts = np.where(undefined, uniform, parts)
    return of(space.whole), space.run(_mix_probs, _log_weights(space), _log_parts(space), parts)


def _mix_probs(log_weights: Any, log_parts: Any, probs: Any) -> Any:
    return mixture.mix_probs(mixture.expert_posterior(log_weights, log_parts), probs)


@sides("D5")
def posteriors_mix(space: Space) -> Iterator[tuple[Exact, Exact]]:
    for z, i, v in product(space.support, space.positions, space.tokens):
        right = sum(
            space.expert_posterior(z, k) * space.token_posterior(space.parts(k), z, i, v)
            for k in space.experts
        )
        yield space.token_posterior(space.whole, z, i, v), right


def _next_token(space: Space, law: Any, t: int, x: Any, v: int) -> Fraction:
    next_token = space.coq["Experts.next_token"]
    return next_token(NUM_POSITIONS, space.tokens, t, law, x, v)


def _prefix(space: Space, law: Any, t: int, x: Any) -> Fraction:
    return space.coq["Experts.prefix_mass"](NUM_POSITIONS, space.tokens, t, law, x)


@tie("D6", "Experts.next_token", "mixture.mix_probs")
def next_tokens_mix(space: Space) -> Both:
    rows = [
        (t, x)
        for t, x in product(space.positions, space.data)
        if _prefix(space, space.whole_data, t, x) > 0
    ]
    exact = [
        [_next_token(space, space.whole_data, t, x, v) for v in range(NUM_TOKENS)] for t, x in rows
    ]
    log_parts = logs(
        [[_prefix(space, space.part_laws(k), t, x) for k in space.experts] for t, x in rows]
    )
    probs = floats(
        [
            [
                [_next_token(space, space.part_laws(k), t, x, v) for v in range(NUM_TOKENS)]
                for k in space.experts
            ]
            for t, x in rows
        ]
    )
    probs = np.where(np.isneginf(log_parts)[..., None], 1 / NUM_TOKENS, probs)
    log_weights = np.repeat(logs(space.weights)[None], len(rows), axis=0)
    return exact, space.run(_mix_probs, log_weights, log_parts, probs)


@tie("D7", "Experts.bayes_gate", "mixture.bayes_gate")
def bayes_gate(space: Space) -> Both:
    coq = space.coq
    rows = tuple(coq.function(lambda k, row=row: row[k]) for row in space.likelihoods)
    gate = coq["Experts.bayes_gate"]
    exact = [
        [gate(space.experts, space.w, rows[:t], k) for k in space.experts]
        for t in range(len(rows) + 1)
    ]
    found = space.run(_bayes_gate, logs(space.weights)[None], logs(space.likelihoods)[None])
    return exact, np.exp(found[0])


def _bayes_gate(log_prior: Any, rows: Any) -> Any:
    return mixture.bayes_gate(log_prior, rows).log_weights


@sides("D7")
def gate_gives_the_sequence_mixture(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq = space.coq
    for likelihoods in (space.likelihoods, [[Fraction(0), Fraction(1, 2)], *space.likelihoods]):
        rows = tuple(coq.function(lambda k, row=row: row[k]) for row in likelihoods)
        yield (
            coq["Experts.tokenwise"](space.experts, space.w, rows),
            coq["Experts.sequence_mixture"](space.experts, space.w, rows),
        )


def main() -> int:
    """Print the table of ties; the exit status is 1 if a gap is too large."""
    rows = ties()
    for row in rows:
        print(f"{row.label:4} {row.definition:36} {row.function:40} {row.gap:.1e}")
    return int(any(row.gap > TOLERANCE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
