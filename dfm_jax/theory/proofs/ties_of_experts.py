"""Experts, gates and accounting beside their definitions in Coq."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import jax.numpy as jnp
import numpy as np

from dfm_jax import accounting, mixture, objectives
from dfm_jax.theory.proofs.extracted import Finite
from dfm_jax.theory.proofs.spaces import (
    NUM_EXPERTS,
    NUM_POSITIONS,
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

# ── experts ─────────────────────────────────────────────────────────────────────────────────────


def _log_parts(space: Space) -> np.ndarray:
    """log p_t^k(z) of the support: [Z, K]."""
    return logs([[space.part_probability(k, z) for k in space.experts] for z in space.support])


def _log_weights(space: Space) -> np.ndarray:
    """log w for every state of the support: [Z, K]."""
    return np.repeat(logs(space.weights)[None], len(space.support), axis=0)


@tie("D2", "Basics.mixture", "mixture.mix_log_probs")
def _mixed_path(space: Space) -> Both:
    exact = [space.probability(z) for z in space.support]
    return exact, np.exp(
        space.run(mixture.mix_log_probs, _log_weights(space), _log_parts(space)[..., None])[..., 0]
    )


@sides("D2")
def _path_is_a_mixture(space: Space) -> Iterator[tuple[Exact, Exact]]:
    for z in space.states:
        weighted = (space.weights[k] * space.part_probability(k, z) for k in space.experts)
        yield space.probability(z), sum(weighted)


@tie("D3", "Experts.expert_posterior", "mixture.expert_posterior")
def _expert_posterior(space: Space) -> Both:
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
def _mixed_velocity(space: Space) -> Both:
    exact = tokens_at(space, lambda i, v, z: _velocity(space, space.whole, i, v, z))
    parts = np.stack(
        [
            floats(tokens_at(space, lambda i, v, z, k=k: _velocity(space, space.parts(k), i, v, z)))
            for k in space.experts
        ],
        axis=1,
    )
    return exact, space.run(_mix, _log_weights(space), _log_parts(space), parts)


def _mix(log_weights: Any, log_parts: Any, values: Any) -> Any:
    return mixture.mix(mixture.expert_posterior(log_weights, log_parts), values)


@sides("D4")
def _velocities_mix(space: Space) -> Iterator[tuple[Exact, Exact]]:
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
def _mixed_posterior(space: Space) -> Both:
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
def _posteriors_mix(space: Space) -> Iterator[tuple[Exact, Exact]]:
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
def _next_tokens_mix(space: Space) -> Both:
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
def _tie_of_bayes_gate(space: Space) -> Both:
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
def _gate_gives_the_sequence_mixture(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq = space.coq
    for likelihoods in (space.likelihoods, [[Fraction(0), Fraction(1, 2)], *space.likelihoods]):
        rows = tuple(coq.function(lambda k, row=row: row[k]) for row in likelihoods)
        yield (
            coq["Experts.tokenwise"](space.experts, space.w, rows),
            coq["Experts.sequence_mixture"](space.experts, space.w, rows),
        )


# ── accounting ──────────────────────────────────────────────────────────────────────────────────


def _log_data(space: Space, laws: Any) -> np.ndarray:
    """log q_k of the sequences of data: [K, Z]."""
    return logs([[laws[k][x] for x in space.data] for k in space.experts])


@tie("B1", "Basics.gate", "accounting.routing_cost")
def _tie_of_routing_cost(space: Space) -> Both:
    gate = space.coq["Basics.gate"](space.experts, space.w_hat, space.learned_laws)
    exact = [
        [space.log(space.learned_weights[k]) - space.log(gate(x, k)) for k in space.experts]
        for x in space.data
    ]
    log_probs = _log_data(space, space.learned).T
    log_prior = np.repeat(logs(space.learned_weights)[None], len(log_probs), axis=0)
    return exact, space.run(_routing_cost, log_prior, log_probs)


def _routing_cost(log_prior: Any, log_probs: Any) -> Any:
    costs = [accounting.routing_cost(log_prior, log_probs, k) for k in range(NUM_EXPERTS)]
    return jnp.stack(costs)


@sides("B1")
def _mixture_by_any_expert(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq, log = space.coq, space.log
    gate = coq["Basics.gate"](space.experts, space.w_hat, space.learned_laws)
    mixed = coq["Basics.mixture"](space.experts, space.w_hat, space.learned_laws)
    for x, k in product(space.data, space.experts):
        expert = log(space.learned_weights[k]) + log(space.learned[k][x])
        yield -log(mixed(x)), log(gate(x, k)) - expert


def _split(space: Space) -> tuple[Any, Any, Any, Any]:
    """The four terms of B2, exact."""
    coq, log, experts = space.coq, space.log, space.experts
    both = (space.w, space.part_laws, space.w_hat, space.learned_laws)
    mixed = coq["Basics.mixture"](experts, space.w_hat, space.learned_laws)
    return (
        coq["Information.KL"](log, space.states, space.whole_data, mixed),
        coq["Information.gate_KL"](log, experts, space.states, *both),
        coq["Information.experts_KL"](log, experts, space.states, both[0], both[1], both[3]),
        coq["Information.KL"](log, experts, space.w, space.w_hat),
    )


@tie("B2", "Information.gate_KL", "accounting.ensemble_split")
def _ensemble_split(space: Space) -> Both:
    found = space.run(
        accounting.ensemble_split,
        logs(space.weights)[None],
        _log_data(space, space.part_data)[None],
        logs(space.learned_weights)[None],
        _log_data(space, space.learned)[None],
    )
    return [[term] for term in _split(space)], np.stack(found)


@sides("B2")
def _ensemble_is_split(space: Space) -> Iterator[tuple[Exact, Exact]]:
    ensemble, gate, experts, prior = _split(space)
    yield ensemble + gate, experts + prior


@tie("D10", "Information.part_information", "accounting.part_information")
def _part_information(space: Space) -> Both:
    information = space.coq["Information.part_information"]
    exact = information(space.log, space.experts, space.states, space.w, space.part_laws)
    log_probs = _log_data(space, space.part_data)[None]
    return [exact], space.run(accounting.part_information, logs(space.weights)[None], log_probs)


@sides("D10")
def _information_by_tokens(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq, log = space.coq, space.log
    args = (space.experts, space.w, space.part_laws)
    whole = coq["Information.part_information"](log, args[0], space.states, *args[1:])
    one = coq["Accounting.next_information"](log, NUM_POSITIONS, space.tokens, *args)
    yield whole, one(0) + one(1)


@tie("B4", "Accounting.router_KL", "accounting.router_cost")
def _router_cost(space: Space) -> Both:
    coq = space.coq
    router = [[space.law(NUM_EXPERTS, positive=True) for _ in space.positions] for _ in space.data]
    place = {x: n for n, x in enumerate(space.data)}
    rho = coq.function(lambda t, x, k: router[place[x]][t][k] if x in place else Fraction(1, 2))
    args = (NUM_POSITIONS, space.tokens, space.experts, space.w, space.part_laws)
    cost = coq["Accounting.router_KL"](space.log, *args, rho)
    gate = coq["Accounting.prefix_gate"](*args)
    posterior = [
        [[gate(t, x, k) for k in space.experts] for t in space.positions] for x in space.data
    ]
    log_q = logs([space.whole_data(x) for x in space.data])
    log_posterior = np.where(np.isneginf(log_q)[:, None, None], np.log(0.5), logs(posterior))
    found = space.run(accounting.router_cost, log_q[None], log_posterior[None], logs(router)[None])
    return [sum((cost(t) for t in space.positions), Fraction(0))], found


@tie("B5", "Accounting.variation", "accounting.total_variation")
def _total_variation(space: Space) -> Both:
    laws = space.learned
    variation = space.coq["Accounting.variation"]
    exact = variation(space.states, space.learned_laws(0), space.learned_laws(1))
    p, q = (floats([laws[k][x] for x in space.data])[None] for k in space.experts)
    return [exact], space.run(accounting.total_variation, p, q)


@tie("B6", "Accounting.kept_mass", "accounting.truncation_bound")
def _truncation(space: Space) -> Both:
    experts, law = Finite(range(4)), space.law(4, positive=True)
    kept = space.coq.function(lambda k: k in (0, 2))
    mass = space.coq["Accounting.kept_mass"]
    exact = mass(experts, kept, space.coq.function(lambda k: law[k]))
    mask = np.array([[1.0, 0.0, 1.0, 0.0]])
    found = space.run(accounting.truncation_bound, floats(law)[None], mask)
    return [[1 - exact], [-space.log(exact)]], np.stack(found)


@tie("B11", "Basics.mixture", "accounting.best_expert_bound")
def _best_expert(space: Space) -> Both:
    log = space.log
    bounds = [
        [-(log(space.learned_weights[k]) + log(space.learned[k][x])) for k in space.experts]
        for x in space.data
    ]
    log_probs = _log_data(space, space.learned).T
    log_prior = np.repeat(logs(space.learned_weights)[None], len(log_probs), axis=0)
    exact = [min(row, key=float) for row in bounds]
    return exact, space.run(accounting.best_expert_bound, log_prior, log_probs)


@sides("L4")
def _experts_are_targets(space: Space) -> Iterator[tuple[Exact, Exact]]:
    coq = space.coq
    targets = [[space.number(-9, 9) for _ in space.tokens] for _ in space.experts]
    model = [space.number(-9, 9) for _ in space.tokens]
    u = [coq.function(lambda s, k=k: targets[k][s]) for k in space.experts]
    v = coq.function(lambda s: model[s])
    mean = coq.function(lambda s: sum(space.weights[k] * targets[k][s] for k in space.experts))
    phi = coq.function(lambda a: sum((s + 1) * a(s) ** 3 for s in space.tokens))
    grad = coq.function(lambda a, s: 3 * (s + 1) * a(s) ** 2)
    divergence = coq["Information.bregman"](space.tokens, phi, grad)
    left = sum(space.weights[k] * divergence(u[k], v) for k in space.experts)
    spread = sum(space.weights[k] * divergence(u[k], mean) for k in space.experts)
    yield left, divergence(mean, v) + spread


@tie("L4", "Information.bregman", "objectives.bregman_divergence")
def _tie_of_bregman(space: Space) -> Both:
    coq = space.coq
    target, model = ([space.number(-9, 9) for _ in space.tokens] for _ in range(2))
    phi = coq.function(lambda a: sum((s + 1) * a(s) ** 3 for s in space.tokens))
    grad = coq.function(lambda a, s: 3 * (s + 1) * a(s) ** 2)
    divergence = coq["Information.bregman"](space.tokens, phi, grad)
    exact = divergence(*(coq.function(lambda s, a=a: a[s]) for a in (target, model)))
    return [exact], space.run(_bregman, floats(target)[None], floats(model)[None])


def _bregman(target: Any, model: Any) -> Any:
    scale = jnp.arange(1, NUM_STATES + 1)
    return objectives.bregman_divergence(lambda a: jnp.sum(scale * a**3), target, model)
