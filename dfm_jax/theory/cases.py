"""Random cases for the statements, generic and hard: distributions, couplings, schedules, gates.

A generic case has full support, distinct parts and masses, a dependent coupling and 0 < κ < 1; no
falsifier may vanish there. A hard case lies on an edge of the statements' domain: zeros, disjoint
or equal parts, sources that overlap the data, contexts, κ at an end. K = 1 and N = 1 are shapes.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, NamedTuple

import numpy as np

from dfm_jax import exact


class Shape(NamedTuple):
    """V data tokens, N positions, K parts. Paths have S = V + 1 states; the mask is one of them."""

    num_tokens: int
    num_positions: int
    num_experts: int

    @property
    def num_states(self) -> int:
        """S = V + 1."""
        return self.num_tokens + 1


FAMILIES = ("linear", "polynomial", "cosine")


def kappa(family: str, exponent: np.ndarray, t: float) -> np.ndarray:
    """κ_t per position, in NumPy, without code of `schedules`; exactly 0 and 1 at the ends."""
    if family == "linear" or t in (0.0, 1.0):
        return np.full_like(exponent, t)
    return (
        t**exponent if family == "polynomial" else np.full_like(exponent, 1 - np.cos(np.pi * t / 2))
    )


def kappa_slope(family: str, exponent: np.ndarray, t: float) -> np.ndarray:
    """κ̇_t per position, differentiated by hand."""
    if family == "linear":
        return np.ones_like(exponent)
    if family == "polynomial":
        return exponent * t ** (exponent - 1)
    return np.full_like(exponent, np.pi / 2 * np.sin(np.pi * t / 2))


def memo(method: Callable) -> Callable:
    """Keep the computed values of a case, because many statements use the same ones.

    A named time is kept as its number: in most cases "early" and "late" are "inside".
    """

    @wraps(method)
    def remembered(self: "Case", *args: Any) -> Any:
        at = (self.times.get(name, name) for name in args)
        return self.remembered((method.__name__, *at), lambda: method(self, *args))

    return remembered


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One random instance of everything that a statement may need, in NumPy float64.

    Times have names: "inside" lies in (0, 1), "early" may be 0, "late" may be 1.
    """

    shape: Shape
    generic: bool
    weights: np.ndarray  # [K] masses w_k
    couplings: np.ndarray  # [K, S^N, V^N] distributions π_k of (x_0, x_1)
    context: np.ndarray  # [N] given positions, for all-mask sources
    order: np.ndarray  # [N] an order of generation
    family: str
    exponent: np.ndarray  # [N]
    times: dict[str, float]
    model_weights: np.ndarray  # [K] ŵ
    model_parts: np.ndarray  # [K, V^N] q̂_k, full support
    rough_parts: np.ndarray  # [K, V^N] other q̂_k, with zeros if the case is hard
    router: np.ndarray  # [V^N, N, K] ρ̂ at every prefix: row t sees t tokens
    denoiser: np.ndarray  # [S^N, N, V] any model posterior p̂_{1|t}, full support
    state_router: np.ndarray  # [S^N, K] ρ̂(z), any t
    numbers: np.ndarray  # [8] uniform on (0.2, 0.9), for whatever else is free
    _memo: dict = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def states(self) -> np.ndarray:
        """All sequences of S states."""
        return exact.states(self.shape.num_states, self.shape.num_positions)

    @cached_property
    def tokens(self) -> np.ndarray:
        """All sequences of V tokens."""
        return exact.states(self.shape.num_tokens, self.shape.num_positions)

    @cached_property
    def parts(self) -> np.ndarray:
        """Data distributions q_k: [K, V^N]."""
        return self.couplings.sum(axis=1)

    @cached_property
    def coupling(self) -> np.ndarray:
        """π = Σ_k w_k π_k."""
        return np.tensordot(self.weights, self.couplings, axes=1)

    @cached_property
    def data(self) -> np.ndarray:
        """The data distribution q, as the marginal of π."""
        return exact.data_probs(self.coupling)

    @cached_property
    def masked_parts(self) -> list[exact.FactoredCoupling]:
        """Each part with an all-mask source outside the context."""
        return [self._masked(probs) for probs in self.parts]

    @cached_property
    def masked(self) -> exact.FactoredCoupling:
        """The whole data with an all-mask source outside the context."""
        return self._masked(self.data)

    def _masked(self, probs: np.ndarray) -> exact.FactoredCoupling:
        source = np.zeros((self.shape.num_positions, self.shape.num_states))
        source[:, -1] = 1.0
        return exact.FactoredCoupling(data=probs, source_tokens=source, context=self.context)

    def kappa(self, when: str) -> np.ndarray:
        """κ_t^i at a named time."""
        return kappa(self.family, self.exponent, self.times[when])

    def slope(self, when: str) -> np.ndarray:
        """κ̇_t^i at a named time."""
        return kappa_slope(self.family, self.exponent, self.times[when])

    def token_path(self, values: np.ndarray) -> np.ndarray:
        """The mixture path's token path at κ = `values`."""
        return exact.mixture_token_path(values, self.shape.num_tokens, self.shape.num_states)

    def remembered(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of `make`, kept under a key that identifies it."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    @memo
    def path(self, when: str) -> np.ndarray:
        """p_t of the whole."""
        return exact.marginal_path(self.coupling, self.token_path(self.kappa(when)))

    @memo
    def part_paths(self, when: str) -> np.ndarray:
        """p_t^k: [K, Z]."""
        at = self.token_path(self.kappa(when))
        return np.stack([exact.marginal_path(c, at) for c in self.couplings])

    @memo
    def path_slope(self, when: str) -> np.ndarray:
        """∂_t p_t of the whole, by complex step."""
        now = self.token_path(self.kappa(when))
        rate = np.einsum(
            "n,nabv->nabv",
            self.slope(when),
            self.token_path(np.ones_like(self.exponent))
            - self.token_path(np.zeros_like(self.exponent)),
        )
        return exact.path_derivative(self.coupling, now, rate)

    @memo
    def pair_posterior(self, when: str) -> np.ndarray:
        """P(x_0^i, x_1^i | z): [Z, N, S, V]."""
        return exact.pair_posterior(self.coupling, self.token_path(self.kappa(when)))[0]

    @memo
    def posterior(self, when: str) -> np.ndarray:
        """p_{1|t} of the whole: [Z, N, V], zeros off the support."""
        return self.pair_posterior(when).sum(axis=2)

    @memo
    def source_posterior(self, when: str) -> np.ndarray:
        """p_{0|t} of the whole: [Z, N, S]."""
        return self.pair_posterior(when).sum(axis=3)

    def part_posteriors(self, when: str) -> np.ndarray:
        """p_{1|t}^k: [K, Z, N, V]."""
        return self._both_part_posteriors(when)[0]

    def part_source_posteriors(self, when: str) -> np.ndarray:
        """p_{0|t}^k: [K, Z, N, S]."""
        return self._both_part_posteriors(when)[1]

    @memo
    def _both_part_posteriors(self, when: str) -> tuple[np.ndarray, np.ndarray]:
        at = self.token_path(self.kappa(when))
        both = [exact.posteriors(c, at)[:2] for c in self.couplings]
        return np.stack([one[0] for one in both]), np.stack([one[1] for one in both])

    @memo
    def expert_posterior(self, when: str) -> np.ndarray:
        """r_k(z, t): [Z, K], zeros off the support."""
        return exact.expert_posterior(self.weights, self.part_paths(when))[0]

    @memo
    def next_probs(self) -> np.ndarray:
        """q_k(v | x^{<t}): [V^N, N, K, V], zeros off expert k's support."""
        token_probs = [self.conditionals(probs) for probs in self.parts]
        return np.stack(token_probs, axis=2)

    def conditionals(self, probs: np.ndarray) -> np.ndarray:
        """q(v | x^{<t}) of a data distribution: [V^N, N, V], zeros where the prefix has mass 0."""
        v, n = self.shape.num_tokens, self.shape.num_positions
        key = (
            "conditionals",
            probs.tobytes(),
        )  # the same few distributions are asked for again and again
        return self.remembered(key, lambda: exact.conditionals(probs, v, n)[0])

    def prefix_probs(self, probs: np.ndarray) -> np.ndarray:
        """q(x^{<t}) at every sequence: [V^N, N + 1], column t the mass of its first t tokens."""
        v, n = self.shape.num_tokens, self.shape.num_positions
        tensor = probs.reshape((v,) * n)
        columns = [
            np.broadcast_to(tensor.sum(axis=tuple(range(t, n)), keepdims=True), tensor.shape)
            for t in range(n + 1)
        ]
        return np.stack([column.reshape(-1) for column in columns], axis=-1)

    @memo
    def prefix_posterior(self) -> np.ndarray:
        """r_k(x^{<t}) by counting masses: [V^N, N + 1, K]; zeros where the prefix has mass 0."""
        joint = np.stack(
            [
                w * self.prefix_probs(probs)
                for w, probs in zip(self.weights, self.parts, strict=True)
            ],
            -1,
        )
        total = joint.sum(axis=-1, keepdims=True)
        return np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)


class Cases:
    """A batch of cases of one shape; functions of a case give arrays stacked over the batch."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = list(cases)
        self.first = self._cases[0]
        self.shape = self.first.shape
        self._drawn, self._rows = self, np.arange(len(self._cases))
        self._memo: dict = {}

    def __len__(self) -> int:
        return len(self._cases)

    def each(self, truth: Callable[[Case], Any]) -> Any:
        """Stack `truth(case)` over the batch; tuples become tuples of stacks."""
        return self.each_numbered(lambda _, case: truth(case))

    def each_numbered(self, truth: Callable[[int, Case], Any]) -> Any:
        """`each` for a function that also takes a case's number, to choose its row of an array."""
        of_case: dict[Case, Any] = {}  # a case that the batch has twice is computed once
        for number, case in enumerate(self._cases):
            if case not in of_case:
                of_case[case] = truth(number, case)
        rows = [of_case[case] for case in self._cases]
        if isinstance(rows[0], tuple):
            return tuple(np.stack(column) for column in zip(*rows, strict=True))
        return np.stack(rows)

    def with_generic_alone(self) -> "Cases":
        """As many cases, with a generic one in the place of each hard one, for the falsifier.

        The batch keeps its size, so the programs that are compiled for it serve both.
        """
        generic = np.flatnonzero(self.generic)
        rows = np.where(self.generic, np.arange(len(self)), np.resize(generic, len(self)))
        alone = Cases([self._cases[row] for row in rows])
        alone._drawn, alone._rows = self, rows
        return alone

    def remembered(self, key: Hashable, make: Callable[["Cases"], np.ndarray]) -> np.ndarray:
        """One number per case, `make(cases)`, kept under a key that identifies it: [I]."""
        drawn = self._drawn
        if key not in drawn._memo:
            drawn._memo[key] = make(drawn)
        return drawn._memo[key][self._rows]

    @property
    def generic(self) -> np.ndarray:
        """Which cases are generic, so that the falsifier must fail on them: [I]."""
        return np.array([case.generic for case in self._cases])


# ── draws: half of them generic, half on the edges of the domain ─────────────────────────────────

_HARD_PROBS = ("full", "zeros", "holes", "disjoint", "equal")
_HARD_SOURCES = ("dependent", "sparse", "masks", "uniform", "product", "context", "identity")


def draw_cases(shape: Shape, count: int, seed: int) -> Cases:
    """Draw `count` cases, every second one generic; none is generic if V, N or K is 1."""
    rng = np.random.default_rng([seed, *shape])
    may_be_generic = min(shape) > 1
    return Cases([_draw_case(rng, shape, may_be_generic and i % 2 == 0) for i in range(count)])


def _draw_case(rng: np.random.Generator, shape: Shape, generic: bool) -> Case:
    v, n, k = shape
    # Each edge of the domain is drawn on its own, so that they meet in every combination.
    token_probs = "full" if generic else rng.choice(_HARD_PROBS)
    sources = "dependent" if generic else rng.choice(_HARD_SOURCES)
    at_the_ends = not generic and rng.random() < 0.5
    context = np.zeros(n, bool)
    if not generic and n > 1 and rng.random() < 0.5:
        context[rng.permutation(n)[: rng.integers(1, n)]] = True
    inside = rng.uniform(0.2, 0.75)
    times = {
        "inside": inside,
        "early": 0.0 if at_the_ends else inside,
        "late": 1.0 if at_the_ends else inside,
    }
    exponent = rng.uniform(1.0, 3.0, size=n)
    exponent[(rng.random(n) < 0.5) & (not generic)] = 1.0
    weights, others = _draw_masses(rng, k), np.sort(_draw_masses(rng, k))
    parts = _draw_parts(rng, token_probs, k, v**n)
    return Case(
        shape=shape,
        generic=generic,
        weights=weights,
        couplings=np.stack([_draw_coupling(rng, sources, part, shape, context) for part in parts]),
        context=context,
        order=rng.permutation(n),
        family="polynomial" if generic else rng.choice(FAMILIES),
        exponent=exponent,
        times=times,
        model_weights=others[np.argsort(np.argsort(-weights))],  # well apart from the weights
        model_parts=rng.dirichlet(np.ones(v**n), size=k),
        rough_parts=_draw_parts(rng, "full" if generic else "zeros", k, v**n),
        router=_prefix_router(rng, shape),
        denoiser=rng.dirichlet(2 * np.ones(v), size=(shape.num_states**n, n)),
        state_router=rng.dirichlet(2 * np.ones(k), size=shape.num_states**n),
        numbers=rng.uniform(0.2, 0.9, size=8),
    )


def _draw_masses(rng: np.random.Generator, num_experts: int) -> np.ndarray:
    """Masses w_k that differ clearly: about 1 : 2 : … : K in some order."""
    masses = rng.permutation(num_experts) + rng.uniform(0.8, 1.2, size=num_experts)
    return masses / masses.sum()


def _draw_parts(rng: np.random.Generator, kind: str, num_experts: int, size: int) -> np.ndarray:
    if kind == "equal":
        return np.repeat(rng.dirichlet(np.ones(size), size=1), num_experts, axis=0)
    parts = rng.dirichlet(np.full(size, 0.5), size=num_experts)
    if kind == "full":  # uneven, so that parts are well apart; 0.1 / size at least
        return 0.9 * parts + 0.1 / size
    place = rng.permutation(size)
    if kind == "zeros":
        kept = rng.random(parts.shape) < 0.5
        kept[np.arange(num_experts), place[np.arange(num_experts) % size]] = True
    elif kind == "holes":  # the same zeros in all parts: prefixes that nothing can make
        kept = np.broadcast_to(rng.random(size) < 0.4, parts.shape).copy()
        kept[:, place[0]] = True
    else:  # disjoint, as far as there are sequences for all parts
        kept = place[None] % num_experts == np.arange(num_experts)[:, None] % size
    parts = np.where(kept, parts + 0.01, 0.0)
    return parts / parts.sum(axis=1, keepdims=True)


def _draw_coupling(
    rng: np.random.Generator, kind: str, part: np.ndarray, shape: Shape, context: np.ndarray
) -> np.ndarray:
    """π(x_0, x_1) = part(x_1) · π(x_0 | x_1): [S^N, V^N]."""
    v, n, _ = shape
    s = shape.num_states
    states, tokens = exact.states(s, n), exact.states(v, n)
    if kind in ("dependent", "sparse"):
        given = rng.dirichlet(np.full(s**n, 1.0 if kind == "dependent" else 0.05), size=v**n).T
        # A mass too small for float32 would put a state on the support in one precision only.
        given = np.where(given < 1e-4, 0.0, given)
        given = given / given.sum(axis=0)
    elif kind == "masks":
        given = np.all(states == v, axis=1)[:, None] * np.ones(v**n)
    elif kind == "uniform":  # overlaps the data
        given = np.all(states < v, axis=1)[:, None] / np.full(v**n, float(v**n))
    elif kind == "product":
        tokens_probs = rng.dirichlet(np.ones(s), size=n)
        probs = np.prod([tokens_probs[i, states[:, i]] for i in range(n)], axis=0)
        given = probs[:, None] * np.ones(v**n)
    else:  # the source is the data where it is given, and a mask (or the data: identity) elsewhere
        keep = np.ones(n, bool) if kind == "identity" else context
        source = np.where(keep, tokens, v)
        given = np.all(states[:, None] == source[None], axis=-1).astype(float)
    return given * part


def _prefix_router(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """A random router that reads prefixes: equal rows for sequences with equal prefixes."""
    v, n, k = shape
    columns = []
    for t in range(n):
        gates = rng.dirichlet(2 * np.ones(k), size=v**t)
        columns.append(np.repeat(gates, v ** (n - t), axis=0))
    return np.stack(columns, axis=1)
