"""L1, L4: which minimizer a loss has, and when two losses share it."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, objectives
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import gap, statement, worst
from dfm_jax.types import Array


def _cross_entropies(log_probs: Array, tokens: Array) -> Array:
    """−log p̂^i(x_1^i | z) for every state and data sequence: [Z, V^N, N]."""
    at = jax.vmap(objectives.cross_entropy_loss, in_axes=(None, 0))
    return jax.vmap(at, in_axes=(0, None))(log_probs, tokens)


def _any_weight(case: Case) -> np.ndarray:
    """ω(t, z, i) > 0: [Z, V^N, N], the same for all x_1."""
    return np.broadcast_to(
        0.5 + case.denoiser[:, None, :, 0], (len(case.states), *case.tokens.shape)
    )


def _weight_of_data(case: Case) -> np.ndarray:
    """A weight that depends on x_1 too."""
    return _any_weight(case) + 2.0 * (case.tokens == 0)[None]


def state_data_probs(case: Case, kappa: np.ndarray) -> np.ndarray:
    """P(X_t = z, X_1 = x_1) = Σ_{x_0} π(x_0, x_1) Π_i W^i(x_0^i, x_1^i, z^i), listed: [Z, V^N]."""
    at, (v, n, _) = case.token_path(kappa), case.shape
    probs = case.coupling.reshape((case.shape.num_states,) * n + (v,) * n)
    for i in range(n):  # x_0^i becomes z^i, x_1^i stays
        turned = np.moveaxis(probs, (i, n + i), (-1, -2))  # […, b, a]
        turned = np.einsum("...ba,abz->...bz", turned, at[i])
        probs = np.moveaxis(turned, (-1, -2), (i, n + i))
    return probs.reshape(case.coupling.shape)


@statement(
    "L1",
    "−Σ_i E ω log p̂_{1|t}^i(X_1^i | X_t): excess = Σ ω E KL(p_{1|t} ‖ p̂) for any ω(t, z, i) > 0",
    source="DFM",
    kind="identity",
    falsifier="a weight that depends on x_1",
    weight=_weight_of_data,
)
def cross_entropy(cases: Cases, run: Run, *, weight=_any_weight) -> np.ndarray:
    """Model minus truth under the joint distribution of (X_t, X_1), against the expected KL."""
    log_model = cases.each(lambda c: np.log(c.denoiser))
    residuals = []
    for when in ("early", "inside", "late"):
        log_truth = cases.each(lambda c, when=when: fields.log(c.posterior(when)))
        loss = run(_cross_entropies, log_model, fields.tokens(cases))
        best = run(_cross_entropies, log_truth, fields.tokens(cases))
        joint = cases.each(lambda c, when=when: state_data_probs(c, c.kappa(when)))
        seen = (joint > 0)[..., None]
        more = np.where(seen, loss, 0.0) - np.where(seen, best, 0.0)
        got = np.sum(joint[..., None] * cases.each(weight) * more, axis=(1, 2, 3))

        def truth(case: Case, when: str = when) -> np.ndarray:
            apart = exact.kl(case.posterior(when), case.denoiser)  # [Z, N]
            # ω averaged over x_1 given the state: ω itself, if it is free of x_1.
            probs = state_data_probs(case, case.kappa(when))
            return np.sum(np.einsum("zx,zxn->zn", probs, weight(case)) * apart)

        residuals.append(gap(got, cases.each(truth)))
    return worst(*residuals)


def _negative_entropy(x: Array) -> Array:
    return jnp.sum(x * jnp.log(x))


def _half_square(x: Array) -> Array:
    return jnp.sum(x * x) / 2


def _divergences(
    parts: Array, model: Array, mean: Array, *, target_first: bool
) -> tuple[Array, ...]:
    """D(u_k, v), D(mean, v), D(u_k, mean) for the negative entropy and the square."""

    def of(phi) -> tuple[Array, Array, Array]:
        def apart(target: Array, model: Array) -> Array:
            pair = (target, model) if target_first else (model, target)
            return objectives.bregman_divergence(phi, *pair)

        each = jax.vmap(apart, in_axes=(0, None))
        return each(parts, model), apart(mean, model), each(parts, mean)

    return *of(_negative_entropy), *of(_half_square)


@statement(
    "L4",
    "Σ_k r_k D(u_k, v) = D(Σ_k r_k u_k, v) + Σ_k r_k D(u_k, Σ_j r_j u_j), targets first",
    source="own use",
    kind="identity",
    falsifier="targets in the second argument",
    target_first=False,
)
def bregman(cases: Cases, run: Run, *, target_first: bool = True) -> np.ndarray:
    """The balance, and the divergences themselves: generalized KL and half the square.

    The square has the balance in either order: what breaks the falsifier is the other balance.
    """
    weights = cases.each(lambda c: c.weights)
    parts = cases.each(
        lambda c: (
            0.5
            + 2 * c.router[0, 0][:, None] * c.denoiser[1, 0][None]
            + np.arange(len(c.weights))[:, None] * c.numbers[3]
        )
    )
    model = cases.each(lambda c: 0.1 + 0.3 * c.denoiser[0, 0])
    mean = np.einsum("ik,ikv->iv", weights, parts)
    found = run(_divergences, parts, model, mean, target_first=target_first)
    entropy, square = found[:3], found[3:]
    pairs = [(parts, model[:, None]), (mean, model), (parts, mean[:, None])]
    if not target_first:
        pairs = [(b, a) for a, b in pairs]
    balances = []
    for own, whole, spread in (entropy, square):
        left = np.einsum("ik,ik->i", weights, own)
        balances.append(gap(left, whole + np.einsum("ik,ik->i", weights, spread)))
    direct = [np.sum(a * np.log(a / b) - a + b, axis=-1) for a, b in pairs]
    squares = [np.sum((a - b) ** 2, axis=-1) / 2 for a, b in pairs]
    return worst(
        *balances,
        *(gap(got, true) for got, true in zip(entropy, direct, strict=True)),
        *(gap(got, true) for got, true in zip(square, squares, strict=True)),
    )
