"""D9–D12, D14: objectives of experts trained apart, and what the router owes."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import accounting, exact, mixture, objectives
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.statements.experts import bayes, static
from dfm_jax.types import Array


def _apart(logits: Array, parts: Array, weights: Array) -> Array:
    """Σ_k w_k L_k(θ_k) of tabular experts: L_k = −Σ_x q_k(x) log softmax(θ_k)(x)."""
    losses = -jnp.sum(parts * jax.nn.log_softmax(logits, axis=-1), axis=-1)
    return objectives.decentralized_loss(losses, jnp.zeros(()), weights)


def _together(logits: Array, parts: Array, weights: Array) -> Array:
    """−Σ_x q(x) log Σ_k w_k p̂_k(x), the mixture trained as one model."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    log_mixture = mixture.mix_log_probs(jnp.log(weights), log_probs)
    return -jnp.sum(jnp.einsum("k,kx->x", weights, parts) * log_mixture)


def _gradient_apart(logits: Array, parts: Array, weights: Array) -> Array:
    return jax.grad(_apart)(logits, parts, weights)


def _gradient_together(logits: Array, parts: Array, weights: Array) -> Array:
    return jax.grad(_together)(logits, parts, weights)


@statement(
    "D9",
    "∇_{θ_k} Σ_j w_j L_j(θ_j) = w_k ∇L_k(θ_k): training needs no communication",
    source="own",
    kind="identity",
    falsifier="−log Σ_k w_k p̂_k, the mixture trained as one model",
    gradient=_gradient_together,
)
def experts_need_no_communication(
    cases: Cases, run: Run, *, gradient=_gradient_apart
) -> np.ndarray:
    """autodiff of the objective against w_k (softmax(θ_k) − q_k), from each expert alone.

    And of the mixture trained as one: −Σ_x q(x) r̂_k(x) (δ_x − p̂_k), which needs all experts.
    """
    logits = cases.each(lambda c: np.log(c.model_parts))
    parts, weights = cases.each(lambda c: c.parts), cases.each(lambda c: c.weights)

    def together(case: Case) -> np.ndarray:
        joint = case.weights[:, None] * case.model_parts
        pull = case.data * joint / joint.sum(axis=0)  # q(x) r̂_k(x)
        return pull.sum(axis=1, keepdims=True) * case.model_parts - pull

    return worst(
        gap(run(_apart, logits, parts, weights), cases.each(_value_apart)),
        gap(
            run(gradient, logits, parts, weights),
            cases.each(lambda c: c.weights[:, None] * (c.model_parts - c.parts)),
        ),
        gap(run(_gradient_together, logits, parts, weights), cases.each(together)),
    )


def _value_apart(case: Case) -> np.ndarray:
    return -np.einsum("k,kx,kx->", case.weights, case.parts, np.log(case.model_parts))


def conditional_information(joint: np.ndarray, given: np.ndarray) -> float:
    """I(X; K | C) of a joint [V^N, K], with `given` the value of C at each sequence."""
    total = 0.0
    for value in np.unique(given):
        rows = joint[given == value]
        if rows.sum() > 0:
            total += rows.sum() * exact.mutual_information(rows / rows.sum())
    return total


def prefix_code(case: Case, length: int) -> np.ndarray:
    """A number for the first `length` tokens of every sequence."""
    return np.arange(len(case.tokens)) // case.shape.num_tokens ** (
        case.shape.num_positions - length
    )


@statement(
    "D10",
    "A1: H(X) = Σ_k w_k H(X | k) + I(X; K), and I(X; K) = Σ_t I(X^{t+1}; K | X^{≤t})",
    source="own",
    kind="identity",
    falsifier="I(X; K) left out: a gate that pays nothing back",
    paid=0.0,
)
def gate_pays_back(cases: Cases, run: Run, *, paid: float = 1.0) -> np.ndarray:
    """`part_information` against entropies, and against the sum over tokens, by enumeration."""
    information = paid * run(
        accounting.part_information,
        cases.each(lambda c: np.log(c.weights)),
        cases.each(lambda c: fields.log(c.parts)),
    )

    def truth(case: Case) -> tuple[np.ndarray, np.ndarray]:
        joint = (case.weights[:, None] * case.parts).T  # P(x, k)
        entropies = exact.entropy(case.data) - case.weights @ exact.entropy(case.parts)
        by_token = 0.0
        for t in range(case.shape.num_positions):
            code = prefix_code(case, t + 1)
            merged = np.stack([joint[code == c].sum(axis=0) for c in np.unique(code)])
            prefix = np.unique(code) // case.shape.num_tokens
            by_token += conditional_information(merged, prefix)
        return np.asarray(entropies), np.asarray(by_token)

    entropies, by_token = cases.each(truth)
    given = paid * run(_informations, *cases.each(given_first_token)[1:])
    given = np.sum(cases.each(given_first_token)[0] * given, axis=-1)
    return worst(
        gap(information, entropies),
        gap(information, by_token),
        gap(given, cases.each(_information_given_first)),
    )


def _informations(log_weights: Array, log_probs: Array) -> Array:
    return jax.vmap(accounting.part_information)(log_weights, log_probs)


def given_first_token(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first token as a context c: q(c) [V], log P(k | c) [V, K], log q_k(x | c) [V, K, V^N]."""
    first = case.tokens[:, 0][None] == np.arange(case.shape.num_tokens)[:, None]  # [V, X]
    joint = case.weights[:, None] * case.parts * first[:, None]  # [V, K, X]
    masses = joint.sum(axis=-1, keepdims=True)
    totals = masses.sum(axis=1, keepdims=True)
    prior = np.divide(masses, totals, out=np.zeros_like(masses), where=totals > 0)
    token_probs = np.divide(joint, masses, out=np.zeros_like(joint), where=masses > 0)
    return totals[:, 0, 0], fields.log(prior[..., 0]), fields.log(token_probs)


def _information_given_first(case: Case) -> np.ndarray:
    joint = (case.weights[:, None] * case.parts).T
    return np.asarray(conditional_information(joint, case.tokens[:, 0]))


def _router_gradient(log_router: Array, joint: Array) -> Array:
    """∇_φ E[−log ρ̂_k(z)] of tabular logits at φ = log ρ̂: [Z, K]."""

    def loss(logits: Array) -> Array:
        parts = jnp.arange(joint.shape[-1])
        each = jax.vmap(jax.vmap(objectives.router_loss, in_axes=(None, 0)), in_axes=(0, None))
        return jnp.sum(joint * each(logits, parts))

    return jax.grad(loss)(log_router)


def _joint(case: Case) -> np.ndarray:
    """P(k, z): [Z, K]."""
    return (case.weights[:, None] * case.part_paths("inside")).T


def _floor(gate: np.ndarray) -> np.ndarray:
    """log of a gate, −700 for log 0: logits must be finite to be differentiated."""
    return np.maximum(fields.log(gate), -700.0)


@statement(
    "D11",
    "a router trained by cross-entropy on (z, t) → k has the minimizer r_k(z, t)",
    source="DDM",
    kind="identity",
    falsifier="a static gate",
    gate=static,
)
def router_minimizer(cases: Cases, run: Run, *, gate=bayes) -> np.ndarray:
    """At r the gradient vanishes; any other router's excess is E KL(r ‖ ρ̂)."""
    log_gate = cases.each(lambda c: _floor(gate(c, "inside")))
    joint = cases.each(_joint)
    gradient = run(_router_gradient, log_gate, joint)
    other = cases.each(lambda c: np.log(c.state_router))

    def loss(log_router: np.ndarray) -> np.ndarray:
        each = run(_router_losses, log_router)
        return np.sum(np.where(joint > 0, joint * each, 0.0), axis=(1, 2))

    def truth(case: Case) -> np.ndarray:
        return case.path("inside") @ exact.kl(bayes(case, "inside"), case.state_router)

    return worst(
        gap(gradient, np.zeros_like(gradient)),
        gap(loss(other) - loss(log_gate), cases.each(truth)),
    )


def _router_losses(log_router: Array) -> Array:
    parts = jnp.arange(log_router.shape[-1])
    each = jax.vmap(jax.vmap(objectives.router_loss, in_axes=(None, 0)), in_axes=(0, None))
    return each(log_router, parts)


def _objective(
    log_experts: Array, log_router: Array, part_joint: Array, joint: Array, weights: Array
) -> tuple[Array, tuple[Array, Array]]:
    """J, ∇J of tabular experts [K, Z, N, V], router [Z, K]; part_joint is P(z, x_1^i = v | k)."""

    def objective(experts_and_router: tuple[Array, Array]) -> Array:
        expert_logits, router_logits = experts_and_router
        log_probs = jax.nn.log_softmax(expert_logits, axis=-1)
        own = -jnp.sum(part_joint * log_probs, axis=(1, 2, 3))
        router = jnp.sum(joint * _router_losses(router_logits))
        return objectives.decentralized_loss(own, router, weights)

    return jax.value_and_grad(objective)((log_experts, log_router))


def _mixed(gate: Array, posteriors: Array) -> Array:
    return jax.vmap(mixture.mix_probs, in_axes=(0, 1))(gate, posteriors)


@statement(
    "D12",
    "J(θ, φ) = Σ_k w_k L_k(θ_k) + E[−log ρ̂_k(X_t, t; φ)]: at its minimum Σ_k ρ̂_k û^k = u_t",
    source="DAG, DDM",
    kind="identity",
    falsifier="a static router",
    gate=static,
)
def decentralized_minimizer(cases: Cases, run: Run, *, gate=bayes) -> np.ndarray:
    """At (the parts' posteriors, r) ∇J = 0 and the mixture is the dense model; elsewhere J, ∇J."""
    parts = cases.each(lambda c: c.part_posteriors("inside"))
    probs = cases.each(lambda c: c.part_paths("inside"))
    gates = cases.each(lambda c: gate(c, "inside"))
    probs_of_parts = probs[..., None, None] * parts
    joint, weights = cases.each(_joint), cases.each(lambda c: c.weights)
    _, (for_experts, for_router) = run(
        _objective, _floor(parts), _floor(gates), probs_of_parts, joint, weights
    )
    model, router = cases.each(any_experts), cases.each(lambda c: c.state_router)
    value, (_, away) = run(
        _objective, np.log(model), np.log(router), probs_of_parts, joint, weights
    )
    own = -np.einsum("ik,ikznv,ikznv->i", weights, probs_of_parts, np.log(model))
    routing = -np.einsum("izk,izk->i", joint, np.log(router))
    support = cases.each(lambda c: c.path("inside")) > 0
    mixed = run(_mixed, gates, parts)
    return worst(
        gap(for_experts, np.zeros_like(for_experts)),
        gap(for_router, np.zeros_like(for_router)),
        gap(value, own + routing),
        gap(away, joint.sum(axis=-1, keepdims=True) * router - joint),
        gap(mixed, cases.each(lambda c: c.posterior("inside")), support),
    )


def any_experts(case: Case) -> np.ndarray:
    """A wrong model of its own for every expert, full support: [K, Z, N, V]."""
    return np.stack([np.roll(case.denoiser, k, axis=0) for k in range(len(case.weights))])


# ── D14: the router's excess is paid once for every predicted token ───────────────────────────────


Excesses = tuple[np.ndarray, np.ndarray, np.ndarray]  # the experts' [K], the router's, the total


def _bound(own: Array, router: Array, weights: Array, *, num_positions: int) -> Array:
    return accounting.mixture_excess_bound(own, router, weights, num_positions)


def _excesses(case: Case, experts: np.ndarray) -> Excesses:
    """L1 excesses at "inside", by enumeration, of experts [K, Z, N, V] and a random router."""
    probs, own = case.path("inside"), case.part_posteriors("inside")
    own_excess = np.einsum("kz,kzn->k", case.part_paths("inside"), exact.kl(own, experts))
    router = probs @ exact.kl(bayes(case, "inside"), case.state_router)
    mixed = np.einsum("zk,kznv->znv", case.state_router, experts)
    total = probs @ exact.kl(case.posterior("inside"), mixed).sum(axis=-1)
    return own_excess, np.asarray(router), np.asarray(total)


def exact_experts(case: Case) -> np.ndarray:
    """p_{1|t}^k where expert k is defined, any distribution elsewhere: [K, Z, N, V]."""
    positive = (case.part_paths("inside") > 0)[:, :, None, None]
    return np.where(positive, case.part_posteriors("inside"), case.denoiser[None])


def _constant_parts(case: Case) -> Excesses:
    """Part k repeats token k (the last takes the rest), all is masked: the router pays N times."""
    num_parts, n = min(case.shape.num_experts, case.shape.num_tokens), case.shape.num_positions
    masses = np.append(case.weights[: num_parts - 1], case.weights[num_parts - 1 :].sum())
    router = np.append(
        case.model_weights[: num_parts - 1], case.model_weights[num_parts - 1 :].sum()
    )
    once = exact.kl(masses, router)
    return np.zeros(len(case.weights)), np.asarray(once), np.asarray(n * once)


def _known_parts(case: Case) -> Excesses:
    """The state tells the part, one state each: the router pays nothing, the experts their own."""
    truth, model = case.part_posteriors("inside")[:, 0], any_experts(case)[:, 0]
    truth = np.where(truth.sum(axis=-1, keepdims=True) > 0, truth, model)
    own = exact.kl(truth, model).sum(axis=-1)
    return own, np.zeros(()), np.asarray(case.weights @ own)


@statement(
    "D14",
    "L1 excess of Σ_k ρ̂_k p̂_k ≤ Σ_k w_k excess_k + N · (router excess)",
    source="own",
    kind="inequality",
    falsifier="the router's term left out, experts exact",
    routed=False,
)
def router_is_paid_per_token(cases: Cases, run: Run, *, routed: bool = True) -> np.ndarray:
    """Any router with exact and with any experts; equality where parts are constant, or known."""
    weights = cases.each(lambda c: c.weights)

    def bound(own: np.ndarray, router: np.ndarray) -> np.ndarray:
        paid = router if routed else 0 * router
        return run(_bound, own, paid, weights, num_positions=cases.shape.num_positions)

    def posterior(case: Case) -> tuple[np.ndarray, ...]:
        """log p_t, log r and log ρ̂ at every state, as a gate that is asked once: N = 1."""
        token_probs = (
            case.path("inside"),
            bayes(case, "inside")[:, None],
            case.state_router[:, None],
        )
        return tuple(fields.log(probs) for probs in token_probs)

    cost = run(accounting.router_cost, *cases.each(posterior))
    residuals = []
    for experts in (exact_experts, any_experts):
        own, router, total = cases.each(lambda c, e=experts: _excesses(c, e(c)))
        residuals += [gap(cost, router), excess(total, bound(own, router))]
    for tight in (_constant_parts, _known_parts):
        own, router, total = cases.each(tight)
        residuals.append(gap(total, bound(own, router)))
    return worst(*residuals)
