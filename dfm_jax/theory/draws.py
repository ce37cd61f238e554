"""Draw cases: half of them generic, half on the edges of the statements' domain."""

import numpy as np

from dfm_jax import exact
from dfm_jax.theory.cases import FAMILIES, Case, Cases, Shape

_HARD_LAWS = ("full", "zeros", "holes", "disjoint", "equal")
_HARD_SOURCES = ("dependent", "sparse", "masks", "uniform", "product", "context", "identity")


def draw_cases(shape: Shape, count: int, seed: int) -> Cases:
    """`count` cases, every second one generic; none if V, N or K is 1: nothing breaks there."""
    rng = np.random.default_rng([seed, *shape])
    may_be_generic = min(shape) > 1
    return Cases([_draw_case(rng, shape, may_be_generic and i % 2 == 0) for i in range(count)])


def _draw_case(rng: np.random.Generator, shape: Shape, generic: bool) -> Case:
    v, n, k = shape
    # Each edge of the domain is drawn on its own, so that they meet in every combination.
    laws = "full" if generic else rng.choice(_HARD_LAWS)
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
    parts = _draw_parts(rng, laws, k, v**n)
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
    """Masses w_k, well apart: about 1 : 2 : … : K in some order."""
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
        tokens_law = rng.dirichlet(np.ones(s), size=n)
        law = np.prod([tokens_law[i, states[:, i]] for i in range(n)], axis=0)
        given = law[:, None] * np.ones(v**n)
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
