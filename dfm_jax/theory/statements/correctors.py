"""V6, V7: the flow run backwards, and correctors."""

import jax
import numpy as np

from dfm_jax import velocities
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, worst
from dfm_jax.theory.statements.velocities import (
    backward_field,
    continuity,
    forward_field,
    laws,
    on_support,
    rate_violation,
)
from dfm_jax.types import Array


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
    law, slope = laws(cases, "late")

    def by_hand(case: Case) -> np.ndarray:
        stay = np.eye(case.shape.num_states)[case.states]
        speed = case.slope("late") / case.kappa("late")
        return speed[:, None] * (stay - case.source_posterior("late"))

    return worst(
        continuity(law, slope, velocity),
        rate_violation(cases, run, -velocity),
        gap(velocity, cases.each(by_hand), law > 0),
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
    law, slope = laws(cases, "inside")
    u = on_support(cases, "inside", forward_field(cases, run, "inside"))
    u_back = on_support(cases, "inside", backward_field(cases, run, "inside"))
    beta = cases.each(lambda c: 2 * c.numbers[2])
    moving = run(_corrected, u, u_back, beta + surplus, beta)
    still = run(_corrected, u, u_back, beta, beta)
    back = beta[:, None, None, None]  # (α − β) u moves p_t as well, and takes nothing back
    return worst(
        gap(moving, (back + surplus) * u - back * u_back),
        gap(still, back * (u - u_back)),
        continuity(law, slope, moving),
        continuity(law, np.zeros_like(slope), still),
        rate_violation(cases, run, moving),
        rate_violation(cases, run, still),
    )
