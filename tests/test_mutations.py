"""The statements catch a wrong line: each mutation fails those that are named beside it.

That by the right lines they hold, test_theory.py says.
"""

import inspect
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from mutants import MUTANTS

import dfm_jax
from dfm_jax import accounting, mixture, objectives, paths, schedules, steps, velocities
from dfm_jax.theory import runs, verify


class Mutation(NamedTuple):
    """One line of one function, written wrongly; the labels that must fail."""

    what: str
    module: ModuleType
    function: str
    right: str
    wrong: str
    caught_by: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "a sign",
        velocities,
        "posterior_to_velocity",
        "(pad_to_states(posterior, num_states) - stay)",
        "(stay - pad_to_states(posterior, num_states))",
        ("V1", "V5", "C1"),
    ),
    Mutation(
        "a dropped prior",
        mixture,
        "expert_posterior",
        "jnp.asarray(log_prior) + log_p_t",
        "jnp.asarray(log_p_t)",
        ("D3", "P7"),
    ),
    Mutation(
        "a transposed kernel",
        steps,
        "_kernel",
        "(step_probs, states), axis=-1)",
        "(step_probs, states), axis=-1).T",
        ("Q5",),
    ),
    Mutation(
        "a dropped 1 − κ",
        steps,
        "step_size",
        "(then - now) / jnp.where(left > 0, left, 1.0)",
        "then - now",
        ("Q1", "Q3", "S2"),
    ),
    Mutation(
        "a dropped 1 − κ in continuous time",
        schedules,
        "rate",
        "jax.jvp(schedule.log_complement,",
        "jax.jvp(lambda t: -schedule.kappa(t),",
        ("V3", "V5"),
    ),
    Mutation(
        "an off-by-one in the schedule table",
        schedules,
        "any_order",
        "steps[:, None] > xp.argsort(order)[None]",
        "steps[:, None] >= xp.argsort(order)[None]",
        ("A1", "A3"),
    ),
    Mutation(
        "an off-by-one in a table of blocks",
        schedules,
        "blocks",
        "steps[:, None] > block_of",
        "steps[:, None] >= block_of",
        ("A1",),
    ),
    Mutation(
        "a mean for a sum",
        paths,
        "product_log_prob",
        "jnp.sum(log(",
        "jnp.mean(log(",
        ("P1",),
    ),
    Mutation(
        "pairs that count alike, whatever their coupling",
        paths,
        "marginal_log_prob",
        "log_sum_of_products(log_coupling, here)",
        "log_sum_of_products(0 * log_coupling, here)",
        ("P4",),
    ),
    Mutation(
        "a gate that forgets its past",
        mixture,
        "bayes_gate_update",
        "state.log_weights + log_probs)",
        "log_probs)",
        ("D7",),
    ),
    Mutation(
        "0 · NaN let through",
        mixture,
        "mix",
        "finite_at_zero_mass(column, values)",
        "jnp.asarray(values)",
        ("D4", "D5"),
    ),
    Mutation(
        "an ELBO weight off by one",
        objectives,
        "any_order_log_weight",
        "gammaln(m) -",
        "gammaln(m + 1) -",
        ("L3",),
    ),
    Mutation(
        "the block itself taken as known",
        steps,
        "parallel_log_prob",
        "block_of[None, :] < block_of[:, None]",
        "block_of[None, :] <= block_of[:, None]",
        ("Q6",),
    ),
    Mutation(
        "a check that lets every rate pass",
        velocities,
        "rate_violation",
        "jnp.maximum(unbalanced, -jnp.min(off_diagonal))",
        "0 * unbalanced",
        ("V1",),
    ),
    Mutation(
        "a check that lets every step pass",
        steps,
        "step_violation",
        "jnp.max(jnp.stack([unbalanced, jnp.max(-probs), jnp.max(probs - 1)]))",
        "0 * unbalanced",
        ("Q2",),
    ),
    Mutation(
        "a rate without the guard at κ = 0",
        velocities,
        "convex_velocity",
        "positive = kappa_t > 0",
        "positive = kappa_t >= 0",
        ("V2",),
    ),
    Mutation(
        "a loss that forgets p̂ at the current token",
        objectives,
        "generalized_kl_loss",
        "stays + log_data",
        "log_data",
        ("L2",),
    ),
    Mutation(
        "a divergence of the wrong size",
        objectives,
        "bregman_divergence",
        "return phi(target)",
        "return -7 * phi(target)",
        ("L4",),
    ),
    Mutation(
        "the router left out of the objective",
        objectives,
        "decentralized_loss",
        "precision=HIGHEST) + router_loss",
        "precision=HIGHEST)",
        ("D12",),
    ),
    Mutation(
        "a prompt counted as revealed",
        objectives,
        "any_order_loss",
        "jnp.sum(~jnp.asarray(context), dtype=num_masked.dtype)",
        "jnp.asarray(masked.shape[0], dtype=num_masked.dtype)",
        ("L3",),
    ),
    Mutation(
        "a dead gate that comes back",
        mixture,
        "bayes_gate_update",
        "state.valid & jnp.any",
        "jnp.any",
        ("D7",),
    ),
    Mutation(
        "a nucleus of one expert too many",
        mixture,
        "nucleus_gate",
        "before < mass",
        "before < mass + 0.2",
        ("B6",),
    ),
    Mutation(
        "a router paid less than once a token",
        accounting,
        "mixture_excess_bound",
        "num_positions * router_excess",
        "0.6 * num_positions * router_excess",
        ("D14",),
    ),
    Mutation(
        "half a variation bound",
        accounting,
        "variation_bound",
        "gate + own",
        "0.5 * gate + own",
        ("B5",),
    ),
)


def mutate(monkeypatch, mutation: Mutation) -> None:
    """Compile the function with its line replaced, and put it wherever the right one is held."""
    right = getattr(mutation.module, mutation.function)
    source = inspect.getsource(right)
    assert source.count(mutation.right) == 1, "the line to break is there once"
    namespace = dict(vars(sys.modules[right.__module__]))  # of a package, the file it lies in
    exec(source.replace(mutation.right, mutation.wrong), namespace)
    for name, module in list(sys.modules.items()):
        if name.startswith("dfm_jax"):
            for held, value in list(vars(module).items()):
                if value is right:
                    monkeypatch.setattr(module, held, namespace[mutation.function])


@pytest.fixture
def fresh_compilations():
    """No function compiled before a mutation may serve after it."""
    runs.compiled.cache_clear()
    yield
    runs.compiled.cache_clear()


IN_QUICK_SUITE = 1


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(m, id=m.what, marks=[pytest.mark.slow] if i >= IN_QUICK_SUITE else [])
        for i, m in enumerate(MUTATIONS)
    ],
)
def test_a_wrong_line_is_caught(mutation, monkeypatch, fresh_compilations):
    mutate(monkeypatch, mutation)
    survived = [row.label for row in verify(mutation.caught_by, instances=32) if row.passed]
    assert not survived


def test_every_line_that_a_mutant_breaks_stands_in_its_file_once():
    """Of a line rewritten the mutant is stale, and asks nothing of the tests any more."""
    root = Path(dfm_jax.__file__).parent
    texts = {mutant.file: (root / mutant.file).read_text("utf-8") for mutant in MUTANTS}
    stale = [m.what for m in MUTANTS if texts[m.file].count(m.right) != 1 or m.right == m.wrong]
    assert not stale
    twice = [what for what, times in Counter(m.what for m in MUTANTS).items() if times > 1]
    assert not twice  # they are chosen by what they are
