"""P1–P4, P6: conditional and marginal paths, compared with enumeration of the raw joint."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, paths
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.types import Array


def one_pair(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Some pair (x_0, x_1) of a case; if it is generic, they differ at every position."""
    i, j = (case.numbers[:2] * [len(case.states), len(case.tokens)]).astype(int)
    x_0, x_1 = case.states[i], case.tokens[j]
    return np.where(case.generic & (x_0 == x_1), case.shape.num_tokens, x_0), x_1


def token_probs(case: Case) -> np.ndarray:
    """Raw token distributions, one per position, full support: [N, S]."""
    flat = case.denoiser[0] / 2
    return np.concatenate([flat, flat[:, :1] + 0.5 - flat[:, :1]], axis=-1)


def _product_probs(states: Array, token_probs: Array) -> Array:
    return jnp.exp(jax.vmap(lambda z: paths.product_log_prob(z, token_probs))(states))


@statement(
    "P1",
    "p_t(x | x_0, x_1) = Π_i p_t^i(x^i | x_0, x_1)",
    source="DFM",
    kind="definition",
    falsifier="a mixture of two conditional paths",
    mixed=True,
)
def conditional_path_factorizes(cases: Cases, run: Run, *, mixed: bool = False) -> np.ndarray:
    """A distribution of total mass 1, with the given token marginals, and independent tokens."""
    n, s = cases.shape.num_positions, cases.shape.num_states
    rows = cases.each(token_probs)
    probs = run(_product_probs, fields.states(cases), rows)
    if mixed:
        probs = (probs + run(_product_probs, fields.states(cases), np.roll(rows, 1, axis=-1))) / 2
    marginals = np.stack([[exact.marginal(row, (i,), s, n) for i in range(n)] for row in probs])
    dependence = np.array([exact.total_correlation(row, s, n) for row in probs])
    return worst(
        gap(probs.sum(axis=-1), np.ones(len(cases))),
        gap(marginals, rows),
        np.abs(dependence),
    )


def _base_probs(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Base distributions h^j(· | x_0, x_1): δ_{x_0}, a random one, δ_{x_1}; and masses κ^j."""
    x_0, x_1 = one_pair(case)
    eye = np.eye(case.shape.num_states)
    position_probs = np.stack([eye[x_0], token_probs(case), eye[x_1]])
    share = case.kappa("inside")
    return position_probs, np.stack([(1 - share) ** 2, 2 * share * (1 - share), share**2])


@statement(
    "P2",
    "p_t^i(v | x_0, x_1) = Σ_j κ_t^{i,j} h^j(v | x_0, x_1), κ ≥ 0, Σ_j κ_t^{i,j} = 1",
    source="DFM",
    kind="definition",
    falsifier="masses κ that do not sum to 1",
    scale=0.9,
)
def convex_path(cases: Cases, run: Run, *, scale: float = 1.0) -> np.ndarray:
    """The token marginal of the raw joint of (J, X), and each base distribution where κ^j = 1."""
    position_probs, masses = cases.each(_base_probs)
    path = run(paths.convex_path, position_probs, scale * masses)
    joint = masses[..., None] * position_probs  # P(J = j, X^i = v)
    alone = np.zeros_like(masses)
    alone[:, 1] = scale
    return worst(
        gap(path.sum(axis=-1), np.ones(path.shape[:-1])),
        gap(path, joint.sum(axis=1)),
        gap(run(paths.convex_path, position_probs, alone), position_probs[:, 1]),
    )


def _kappa(t: Array, family: Array, exponent: Array) -> Array:
    return fields.schedule_of(family, exponent).kappa(t)


def _mixture(x_0: Array, x_1: Array, kappa: Array, *, num_states: int) -> Array:
    return paths.mixture_path(x_0, x_1, kappa, num_states=num_states)


def _tossed_probs(case: Case, share: np.ndarray) -> np.ndarray:
    """Toss a coin per position, heads with κ^i: the distribution of heads ? x_1 : x_0, counted."""
    x_0, x_1 = one_pair(case)
    probs = np.zeros((case.shape.num_positions, case.shape.num_states))
    for i, p in enumerate(share):
        probs[i, x_1[i]] += p
        probs[i, x_0[i]] += 1 - p
    return probs


@statement(
    "P3",
    "p_t^i(v) = (1 − κ_t^i) δ_{x_0^i}(v) + κ_t^i δ_{x_1^i}(v), κ_0 = 0, κ_1 = 1",
    source="DFM",
    kind="definition",
    falsifier="κ and 1 − κ exchanged",
    exchanged=True,
)
def mixture_path(cases: Cases, run: Run, *, exchanged: bool = False) -> np.ndarray:
    """The distribution of a coin toss per position; δ_{x_0} at κ = 0 and δ_{x_1} at κ = 1."""
    s = cases.shape.num_states
    x_0, x_1 = cases.each(one_pair)
    share = run(_kappa, *fields.time_and_schedule(cases, "inside"))
    early, late = (
        run(_kappa, *fields.time_and_schedule(cases, when)) for when in ("early", "late")
    )
    path = run(_mixture, x_0, x_1, 1 - share if exchanged else share, num_states=s)
    eye = np.eye(s)
    return worst(
        gap(path, cases.each(lambda c: _tossed_probs(c, c.kappa("inside")))),
        gap(early, cases.each(lambda c: c.kappa("early"))),  # κ_0 = 0 among them
        gap(late, cases.each(lambda c: c.kappa("late"))),  # κ_1 = 1
        excess(early, share),
        excess(share, late),
        gap(run(_mixture, x_0, x_1, 0 * share, num_states=s), eye[x_0]),
        gap(run(_mixture, x_0, x_1, 0 * share + 1, num_states=s), eye[x_1]),
    )


def _marginal(
    x_0: Array, x_1: Array, log_pi: Array, kappa: Array, states: Array, *, num_states: int
) -> Array:
    token_paths = fields.mixture_paths(x_0, x_1, kappa, num_states=num_states)
    return jnp.exp(
        fields.over_states(lambda z: paths.marginal_log_prob(z, token_paths, log_pi), states)
    )


def _independent(case: Case) -> np.ndarray:
    """log of the product of the coupling's marginals: the same ends, no dependence."""
    joint = np.outer(exact.source_probs(case.coupling), exact.data_probs(case.coupling))
    return fields.log(joint).reshape(-1)


def coupled(case: Case) -> np.ndarray:
    """log π of every pair."""
    return fields.log(case.coupling).reshape(-1)


@statement(
    "P4",
    "p_t(x) = Σ_{x_0,x_1} p_t(x | x_0, x_1) π(x_0, x_1); p_0 = p, p_1 = q",
    source="DFM",
    kind="definition",
    falsifier="the coupling replaced by the product of its marginals",
    log_coupling=_independent,
)
def marginal_path(cases: Cases, run: Run, *, log_coupling=coupled) -> np.ndarray:
    """The raw distribution, summed position by position; source and data at the ends of time."""
    v, n, _ = cases.shape
    s = cases.shape.num_states
    x_0, x_1, _log_pi = cases.each(fields.pair_lists)
    log_pi, everywhere = cases.each(log_coupling), fields.states(cases)
    share = cases.each(lambda c: c.kappa("inside"))

    def probs(kappa: np.ndarray) -> np.ndarray:
        return run(_marginal, x_0, x_1, log_pi, kappa, everywhere, num_states=s)

    return worst(
        gap(probs(share), cases.each(lambda c: c.path("inside"))),
        gap(probs(0 * share), cases.each(lambda c: exact.source_probs(c.coupling))),
        gap(probs(0 * share + 1), cases.each(lambda c: exact.embed(c.data, v, s, n))),
    )


def distance_table(case: Case) -> np.ndarray:
    """d(v, w) of random points on a line, at least 0.2 apart: uphill is further than downhill.

    Nothing asks a distance to be symmetric, and on a symmetric one d(v, w) passes for d(w, v).
    """
    points = np.cumsum(case.numbers[: case.shape.num_tokens])
    ahead = points[:, None] - points[None]
    return np.where(ahead > 0, 1.5 * ahead, -ahead)


def _no_distance(case: Case) -> np.ndarray:
    """0 also between different tokens."""
    return np.zeros((case.shape.num_tokens,) * 2)


@statement(
    "P6",
    "p_t^i(v | x_1) ∝ exp(−β_t d(v, x_1^i)), β from 0 to ∞; its source is uniform",
    source="KO",
    kind="definition",
    falsifier="d = 0 between different tokens",
    distances=_no_distance,
)
def metric_path(cases: Cases, run: Run, *, distances=distance_table) -> np.ndarray:
    """A distribution with log-odds −β(d(v) − d(w)); uniform at β = 0, δ_{x_1} at β = ∞."""
    v = cases.shape.num_tokens
    x_1 = cases.each(lambda c: one_pair(c)[1])
    beta = cases.each(lambda c: 3 * c.numbers[7])

    def probs(strength: np.ndarray) -> np.ndarray:
        return run(paths.metric_path, x_1, cases.each(distances), strength)

    middle, true = probs(beta), cases.each(distance_table)
    to_target = np.stack([d[:, x].T for d, x in zip(true, x_1, strict=True)])
    odds = np.log(middle) - np.log(middle[..., :1])
    return worst(
        gap(middle.sum(axis=-1), np.ones(middle.shape[:-1])),
        gap(odds, -beta[:, None, None] * (to_target - to_target[..., :1])),
        gap(probs(0 * beta), np.full(middle.shape, 1 / v)),
        gap(probs(beta + np.inf), np.eye(v)[x_1]),
    )
