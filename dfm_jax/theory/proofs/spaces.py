"""Random spaces for the tie, as arguments for Coq's definitions and as arrays for the package."""

import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from dfm_jax.theory.proofs.extracted import Definitions, Finite
from dfm_jax.theory.proofs.logs import Log
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
        self.learned_weights = self.law(NUM_EXPERTS, positive=True)
        self.learned = [self._data_law(positive=True) for _ in self.experts]

    def number(self, low: int, high: int) -> Fraction:
        """low/10, …, high/10."""
        return Fraction(self._random.randint(low, high), 10)

    def law(self, size: int, *, positive: bool = False) -> list[Fraction]:
        """A random law; about a third of its masses are 0 unless all are to be positive."""
        masses = [self._random.randint(1 if positive else -2, 4) for _ in range(size)]
        masses = [max(mass, 0) for mass in masses]
        masses[self._random.randrange(size)] += 1
        return [Fraction(mass, sum(masses)) for mass in masses]

    def field(self) -> Exact:
        """A random velocity whose columns sum to 0, at every state: [Z, N, S]."""
        rows = []
        for z in self.states:
            rows.append([[self.number(-9, 9) for _ in self.tokens] for _ in self.positions])
            for i, values in enumerate(rows[-1]):
                values[z[i]] -= sum(values)
        return rows

    def _coupling(self) -> dict[Any, Fraction]:
        law = dict(zip(self.pairs_of_data, self.law(len(self.pairs_of_data)), strict=True))
        return {pair: law.get(pair, Fraction(0)) for pair in self.pairs}

    def _data_law(self, *, positive: bool = False) -> dict[Any, Fraction]:
        law = dict(zip(self.data, self.law(len(self.data), positive=positive), strict=True))
        return {x: law.get(x, Fraction(0)) for x in self.states}

    # What Coq's definitions are given.

    @cached_property
    def w(self) -> Any:
        """w, the masses of the parts."""
        return self.coq.function(lambda k: self.weights[k])

    @cached_property
    def parts(self) -> Any:
        """π_k, the coupling of each part."""
        return self.coq.function(lambda k, pair: self.couplings[k][pair])

    @cached_property
    def part_laws(self) -> Any:
        """q_k, the data of each part."""
        return self.coq.function(lambda k, x: self.part_data[k][x])

    @cached_property
    def w_hat(self) -> Any:
        """ŵ, masses that were learned."""
        return self.coq.function(lambda k: self.learned_weights[k])

    @cached_property
    def learned_laws(self) -> Any:
        """q̂_k, experts that were learned."""
        return self.coq.function(lambda k, x: self.learned[k][x])

    @cached_property
    def whole(self) -> Any:
        """Σ_k w_k π_k."""
        return self.coq["Basics.mixture"](self.experts, self.w, self.parts)

    @cached_property
    def whole_data(self) -> Any:
        """q = Σ_k w_k q_k."""
        return self.coq["Basics.mixture"](self.experts, self.w, self.part_laws)

    @cached_property
    def path(self) -> Any:
        """p_t(z | x_0, x_1)."""
        return self.coq["Paths.conditional_path"](
            self.positions, self.tokens, self.coq.function(lambda i: self.kappa[i])
        )

    @cached_property
    def log(self) -> Any:
        """The logarithm that the theorems of information ask for: exact sums of logarithms."""
        return self.coq.function(lambda x: Log.of(x))

    @cached_property
    def support(self) -> list[Any]:
        """The states that the path reaches."""
        return [z for z in self.states if self.probability(z) > 0]

    def probability(self, z: Any) -> Fraction:
        """p_t(z)."""
        return self.coq["Basics.marginal"](self.pairs, self.states, self.path, self.whole, z)

    def part_probability(self, k: int, z: Any) -> Fraction:
        """p_t^k(z)."""
        return self.coq["Experts.part_path"](
            self.pairs, self.states, self.experts, self.path, self.parts, k, z
        )

    def expert_posterior(self, z: Any, k: int) -> Fraction:
        """r_k(z, t)."""
        return self.coq["Experts.expert_posterior"](
            self.pairs, self.states, self.experts, self.path, self.w, self.parts, z, k
        )

    def token_posterior(self, coupling: Any, z: Any, i: int, v: int) -> Fraction:
        """p_{1|t}^i(v | z) under a coupling."""
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
        """The function at every state of the support, with the same arrays."""
        z = np.array(self.support if states is None else list(states))
        return self.run(fn, z, *(np.repeat(np.asarray(a)[None], len(z), axis=0) for a in arrays))


def floats(values: Exact) -> np.ndarray:
    """Exact numbers as float64."""
    return np.array(values, dtype=object).astype(float)


def logs(values: Exact) -> np.ndarray:
    """Their logarithms; −∞ for 0."""
    with np.errstate(divide="ignore"):
        return np.log(floats(values))


def tokens_at(space: Space, value: Callable[[int, int, Any], Fraction]) -> Exact:
    """value(i, v, z) for every state of the support: [Z, N, S]."""
    return [
        [[value(i, v, z) for v in space.tokens] for i in space.positions] for z in space.support
    ]
