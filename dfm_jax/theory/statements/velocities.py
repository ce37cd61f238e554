"""V1, V3–V7, C1: velocities of the mixture path, run backwards too; continuity and correctors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, mixture, paths, velocities
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, unbroken, worst
from dfm_jax.theory.statements.paths import one_pair
from dfm_jax.types import Array


def continuity(probs: np.ndarray, slope: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """|∂_t p + div(p u)|, the largest over states, case by case; +∞ where u is undefined."""
    undefined = np.isnan(velocity) & (probs > 0)[:, :, None, None]
    flow = np.stack(
        [exact.divergence(p, np.nan_to_num(u)) for p, u in zip(probs, velocity, strict=True)]
    )
    return np.where(undefined.any(axis=(1, 2, 3)), np.inf, gap(slope, -flow))


def token_probs(cases: Cases, when: str) -> tuple[np.ndarray, np.ndarray]:
    """p_t and ∂_t p_t of the whole."""
    return cases.each(lambda c: c.path(when)), cases.each(lambda c: c.path_slope(when))


def mixture_slope(case: Case, when: str) -> np.ndarray:
    """d/dt of the mixture token path: [N, S, V, S]."""
    ends = case.token_path(np.ones_like(case.exponent)) - case.token_path(0 * case.exponent)
    return case.slope(when)[:, None, None, None] * ends


def marginalize(case: Case, when: str, conditional: np.ndarray) -> np.ndarray:
    """V4 by enumeration: from u^i(v, z^i | a, b), [N, S, V, S, S], to [Z, N, S]."""
    return exact.marginal_velocity(case.pair_posterior(when), conditional)


def true_velocity(case: Case, when: str) -> np.ndarray:
    """The marginal of V3's conditional velocity, by enumeration."""
    s, v = case.shape.num_states, case.shape.num_tokens
    rate = case.slope(when) / (1 - case.kappa(when))
    eye = np.eye(s)
    jump = eye[None, :v, None, :] - eye[:, None, None, :].transpose(2, 1, 0, 3)  # [1, b, z, v]
    jump = np.broadcast_to(jump, (s, v, s, s))
    return marginalize(case, when, rate[:, None, None, None, None] * jump)


def violation(velocity: Array, states: Array) -> Array:
    """`rate_violation` of the mathematics, the largest over states."""
    return jnp.max(jax.vmap(velocities.rate_violation)(velocity, states))


def rate_violation(cases: Cases, run: Run, velocity: np.ndarray) -> np.ndarray:
    """V1's violation over all states, case by case."""
    return run(violation, velocity, fields.states(cases))


def forward_field(
    cases: Cases, run: Run, when: str, posterior: Callable[[Case, str], np.ndarray] = Case.posterior
) -> np.ndarray:
    """V5 of the whole at every state: [I, Z, N, S]."""
    token_probs = cases.each(lambda c: posterior(c, when))
    return run(
        fields.forward, token_probs, fields.states(cases), *fields.time_and_schedule(cases, when)
    )


def backward_field(cases: Cases, run: Run, when: str) -> np.ndarray:
    """V6 of the whole at every state: [I, Z, N, S]."""
    source = cases.each(lambda c: c.source_posterior(when))
    return run(
        fields.backward, source, fields.states(cases), *fields.time_and_schedule(cases, when)
    )


def on_support(cases: Cases, when: str, velocity: np.ndarray) -> np.ndarray:
    """The velocity where p_t(z) > 0, and 0 where it is undefined."""
    support = cases.each(lambda c: c.path(when)) > 0
    return np.where(support[:, :, None, None], velocity, 0.0)


def any_field(case: Case) -> np.ndarray:
    """No velocity at all: of each three states one row unbalanced, one negative, one too long."""
    stay = np.eye(case.shape.num_states)[case.states]
    rows = case.denoiser @ np.eye(case.shape.num_tokens, case.shape.num_states) - stay
    kind = np.arange(len(rows))[:, None, None] % 3
    return np.select([kind == 0, kind == 1, kind == 2], [rows - 0.3 * stay, -rows, 1.7 * rows])


def _violations(fields_of: Array, states: Array) -> Array:
    return jax.vmap(velocities.rate_violation)(fields_of, states)


@unbroken
def _arbitrary_fields(cases: Cases, run: Run) -> np.ndarray:
    velocity = cases.each(any_field)
    here = np.eye(cases.shape.num_states)[fields.states(cases)]
    unbalanced = np.abs(velocity.sum(axis=-1)).max(axis=-1)
    negative = -np.where(here == 1, 0.0, velocity).min(axis=(-2, -1))
    return gap(run(_violations, velocity, fields.states(cases)), np.maximum(unbalanced, negative))


@statement(
    "V1",
    "Σ_v u_t^i(v, z) = 0, and u_t^i(v, z) ≥ 0 for v ≠ z^i",
    source="DFM",
    kind="definition",
    falsifier="the flow run backwards, −u",
    sign=-1.0,
)
def rates(cases: Cases, run: Run, *, sign: float = 1.0) -> np.ndarray:
    """V5's velocity is a rate; of arbitrary fields `rate_violation` is what NumPy reads off."""
    velocity = sign * on_support(cases, "early", forward_field(cases, run, "early"))
    here = np.eye(cases.shape.num_states)[fields.states(cases)]
    off_diagonal = np.where(here == 1, 0.0, velocity)
    return worst(
        rate_violation(cases, run, velocity),
        gap(velocity.sum(axis=-1), np.zeros(velocity.shape[:-1])),
        excess(-off_diagonal, np.zeros_like(velocity)),
        _arbitrary_fields(cases, run),
    )


def _mixture_at_pair(
    x_1, states, t, family, exponent, *, num_states: int, complement: bool
) -> Array:
    schedule = fields.schedule_of(family, exponent)
    if not complement:
        schedule = schedule._replace(log_complement=lambda t: -schedule.kappa(t))

    def at(z: Array) -> Array:
        return velocities.mixture_velocity(x_1, z, t, schedule, num_states=num_states)

    return jax.vmap(at)(states)


@statement(
    "V3",
    "u_t^i(v, z | x_0, x_1) = κ̇_t/(1 − κ_t) [δ_{x_1^i}(v) − δ_{z^i}(v)]",
    source="DFM",
    kind="identity",
    falsifier="the rate κ̇ without 1/(1 − κ)",
    complement=False,
)
def mixture_velocity(cases: Cases, run: Run, *, complement: bool = True) -> np.ndarray:
    """Generates the conditional path of one pair (C1), t = 0 included; its formula elsewhere."""
    x_1 = cases.each(lambda c: one_pair(c)[1])
    velocity = run(
        _mixture_at_pair,
        x_1,
        fields.states(cases),
        *fields.time_and_schedule(cases, "early"),
        num_states=cases.shape.num_states,
        complement=complement,
    )

    def truth(case: Case) -> tuple[np.ndarray, np.ndarray]:
        x_0, x_1 = one_pair(case)
        pair = (case.states == x_0).all(-1)[:, None] & (case.tokens == x_1).all(-1)[None]
        at, slope = case.token_path(case.kappa("early")), mixture_slope(case, "early")
        pair = pair.astype(float)
        return exact.marginal_path(pair, at), exact.path_derivative(pair, at, slope)

    def by_hand(case: Case) -> np.ndarray:
        eye = np.eye(case.shape.num_states)
        speed = case.slope("early") / (1 - case.kappa("early"))
        return speed[:, None] * (eye[one_pair(case)[1]] - eye[case.states])

    probs, slope = cases.each(truth)
    return worst(continuity(probs, slope, velocity), gap(velocity, cases.each(by_hand)))


def _marginal_velocity(
    x_0, x_1, log_pi, kappa, states, t, family, exponent, *, num_states: int, posterior: bool
) -> Array:
    token_paths = fields.mixture_paths(x_0, x_1, kappa, num_states=num_states)
    schedule = fields.schedule_of(family, exponent)

    def at(z: Array) -> Array:
        weights = paths.pair_posterior(z, token_paths, log_pi) if posterior else jnp.exp(log_pi)
        conditional = jax.vmap(
            lambda b: velocities.mixture_velocity(b, z, t, schedule, num_states=num_states)
        )(x_1)
        return mixture.mix(weights, conditional)

    return fields.over_states(at, states)


@statement(
    "V4",
    "u_t^i(v, z) = E[ u_t^i(v, z | X_0, X_1) | X_t = z ] generates p_t",
    source="DFM, DAG",
    kind="identity",
    falsifier="the prior mean instead of the posterior mean",
    posterior=False,
)
def marginal_velocity(cases: Cases, run: Run, *, posterior: bool = True) -> np.ndarray:
    """Equal to enumeration where p_t(z) > 0, and C1 holds."""
    velocity = run(
        _marginal_velocity,
        *cases.each(fields.pair_lists),
        cases.each(lambda c: c.kappa("early")),
        fields.states(cases),
        *fields.time_and_schedule(cases, "early"),
        num_states=cases.shape.num_states,
        posterior=posterior,
    )
    probs, slope = token_probs(cases, "early")
    truth = cases.each(lambda c: true_velocity(c, "early"))
    return worst(gap(velocity, truth, probs > 0), continuity(probs, slope, velocity))


def _prior(case: Case, when: str) -> np.ndarray:
    """The token marginals of the data, whatever the state and the time."""
    del when
    n, v = case.shape.num_positions, case.shape.num_tokens
    marginals = np.stack([exact.marginal(case.data, (i,), v, n) for i in range(n)])
    return np.broadcast_to(marginals, (len(case.states), n, v))


@statement(
    "V5",
    "u_t^i(v, z) = κ̇_t/(1 − κ_t) [p_{1|t}^i(v | z) − δ_{z^i}(v)]",
    source="DFM",
    kind="identity",
    falsifier="the prior instead of the posterior",
    posterior=_prior,
)
def posterior_to_velocity(cases: Cases, run: Run, *, posterior=Case.posterior) -> np.ndarray:
    """The marginal velocity of V4, by enumeration over pairs; and back to the posterior."""
    velocity = forward_field(cases, run, "early", posterior)
    probs, slope = token_probs(cases, "early")
    truth = cases.each(lambda c: true_velocity(c, "early"))
    inside = forward_field(cases, run, "inside")
    back = run(_inverse, inside, fields.states(cases), *fields.time_and_schedule(cases, "inside"))
    return worst(
        gap(velocity, truth, probs > 0),
        continuity(probs, slope, velocity),
        gap(back, cases.each(lambda c: c.posterior("inside"))),
    )


def _inverse(velocity: Array, states: Array, t: Array, family: Array, exponent: Array) -> Array:
    schedule, num_tokens = fields.schedule_of(family, exponent), velocity.shape[-1] - 1

    def at(u: Array, z: Array) -> Array:
        return velocities.velocity_to_posterior(u, z, t, schedule, num_tokens=num_tokens)

    return jax.vmap(at)(velocity, states)


def _divergences(probs: Array, velocity: Array, states: Array) -> Array:
    return velocities.divergence(probs, velocity, states)


@statement(
    "C1",
    "∂_t p_t(x) + div_x(p_t u_t) = 0, div = outflow − inflow",
    source="DFM",
    kind="identity",
    falsifier="inflow − outflow",
    sign=-1.0,
)
def continuity_equation(cases: Cases, run: Run, *, sign: float = 1.0) -> np.ndarray:
    """`divergence` against ∂_t p_t by complex step, and against enumeration."""
    probs, slope = token_probs(cases, "early")
    velocity = on_support(cases, "early", forward_field(cases, run, "early"))
    # What the velocity is off the support, `divergence` must not ask.
    unread = np.where((probs > 0)[:, :, None, None], velocity, np.nan)
    outflow = sign * run(_divergences, probs, unread, fields.states(cases))
    flow = np.stack([exact.divergence(p, u) for p, u in zip(probs, velocity, strict=True)])
    return worst(gap(slope, -outflow), gap(outflow, flow))


# ── V6, V7: the flow run backwards, and correctors ────────────────────────────────────────────────


@statement(
    "V6",
    "ǔ_t^i(v, z) = κ̇_t/κ_t [δ_{z^i}(v) − p_{0|t}^i(v | z)] solves C1; −ǔ is the rate",
    source="DFM",
    kind="identity",
    falsifier="the other sign",
    sign=-1.0,
)
def backward_velocity(cases: Cases, run: Run, *, sign: float = 1.0) -> np.ndarray:
    """C1 with the same sign as V5, t = 1 included, −ǔ has V1, and the formula."""
    velocity = sign * on_support(cases, "late", backward_field(cases, run, "late"))
    probs, slope = token_probs(cases, "late")

    def by_hand(case: Case) -> np.ndarray:
        stay = np.eye(case.shape.num_states)[case.states]
        speed = case.slope("late") / case.kappa("late")
        return speed[:, None] * (stay - case.source_posterior("late"))

    return worst(
        continuity(probs, slope, velocity),
        rate_violation(cases, run, -velocity),
        gap(velocity, cases.each(by_hand), probs > 0),
    )


def _corrected(u: Array, u_back: Array, alpha: Array, beta: Array) -> Array:
    return jax.vmap(lambda f, b: velocities.corrected_velocity(f, b, alpha, beta))(u, u_back)


@statement(
    "V7",
    "ū = α u − β ǔ: α − β = 1 generates p_t; α = β > 0 has div(p_t ū) = 0",
    source="DFM",
    kind="identity",
    falsifier="α − β = 2",
    surplus=2.0,
)
def corrector(cases: Cases, run: Run, *, surplus: float = 1.0) -> np.ndarray:
    """Both kinds are rates; one moves p_t along its path, the other leaves it; each goes back."""
    probs, slope = token_probs(cases, "inside")
    u = on_support(cases, "inside", forward_field(cases, run, "inside"))
    u_back = on_support(cases, "inside", backward_field(cases, run, "inside"))
    beta = cases.each(lambda c: 2 * c.numbers[2])
    moving = run(_corrected, u, u_back, beta + surplus, beta)
    still = run(_corrected, u, u_back, beta, beta)
    back = beta[:, None, None, None]  # (α − β) u moves p_t as well, and takes nothing back
    return worst(
        gap(moving, (back + surplus) * u - back * u_back),
        gap(still, back * (u - u_back)),
        continuity(probs, slope, moving),
        continuity(probs, np.zeros_like(slope), still),
        rate_violation(cases, run, moving),
        rate_violation(cases, run, still),
    )
