"""What a newcomer writes first works as guessed; and what `import dfm_jax` promises."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfm_jax


def test_every_module_is_reached_by_its_name_and_known_to_type_checkers():
    modules = {m.name for m in pkgutil.iter_modules(dfm_jax.__path__) if m.name[0] != "_"}
    for name in ("likelihoods", "sampling", "fast", "boundary", "models", "training", "theory"):
        assert getattr(dfm_jax, name).__name__ == f"dfm_jax.{name}"
        assert name in dir(dfm_jax)
    tree = ast.parse(Path(dfm_jax.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    assert {
        line.names[0].name for line in block.body if isinstance(line, ast.ImportFrom)
    } == modules
    assert modules <= set(dir(dfm_jax))
    assert not hasattr(dfm_jax, "nonsense")


@pytest.mark.parametrize("module", ["exact", "cli"])  # the truth; what `--help` needs
def test_what_needs_no_jax_is_imported_without_it(module):
    program = f"import sys, dfm_jax.{module}; sys.exit(bool({{'jax', 'flax'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# ── the first lines ─────────────────────────────────────────────────────────────────────────────

V, N = 3, 4
X_1 = np.array([2, 0, 1, 1])
MASKS = np.full(N, V)
LOGITS = np.array([[1.0, 2.0, 3.0]] * N, np.float32)
SURE = np.where(np.eye(V)[X_1], 0, -np.inf).astype(np.float32)  # of a model that knows x_1


def denoiser(params, x_t, t):
    return params


def test_a_sample_of_a_mixture_path(key):
    x_t = dfm_jax.paths.sample_mixture(key, MASKS, X_1, 0.5)
    assert bool(jnp.all((x_t == V) | (x_t == X_1)))


def test_a_loss_of_logits():
    nats = jax.jit(dfm_jax.objectives.cross_entropy_loss)(LOGITS, X_1)
    expected = np.log(np.exp([1, 2, 3]).sum()) - np.array([3, 1, 2, 2])
    np.testing.assert_allclose(nats, expected, rtol=1e-6)


def test_a_schedule_and_its_rate():
    schedule = dfm_jax.schedules.polynomial(2.0)
    assert float(schedule.kappa(0.5)) == 0.25
    assert float(dfm_jax.schedules.rate(0.5, schedule)) == pytest.approx(1 / 0.75)


def test_a_table_of_any_order(key):
    table = jax.jit(dfm_jax.schedules.any_order)(jnp.array([2, 0, 3, 1]))
    np.testing.assert_array_equal(table[2], [1, 0, 1, 0])


def test_a_gate():
    prior, said = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([[0.9, 0.1]]))
    gate = dfm_jax.mixture.bayes_gate(prior, said)  # before the first token, and behind it
    np.testing.assert_allclose(jnp.exp(gate.log_weights), [[0.5, 0.5], [0.9, 0.1]], rtol=1e-6)


def test_an_expert_posterior():
    log_p_t, log_prior = jnp.log(jnp.array([0.2, 0.6])), jnp.log(jnp.array([0.5, 0.5]))
    weights = dfm_jax.mixture.expert_posterior(log_prior=log_prior, log_p_t=log_p_t)
    np.testing.assert_allclose(weights, [0.25, 0.75], rtol=1e-6)


@pytest.mark.slow
def test_mixed_logits():
    logits = np.stack([LOGITS, 5 + np.zeros_like(LOGITS)])
    mixed = dfm_jax.mixture.mix_logits(np.log(np.float32([0.25, 0.75])), logits)
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(mixed), 0.25 * softmax + 0.25, rtol=1e-5)


@pytest.mark.slow
def test_a_bound(key):
    context, options = np.zeros(N, bool), {"num_strata": N, "num_replicates": 2}

    @jax.jit
    def bound_of(key, logits):
        any_order_bound = dfm_jax.likelihoods.any_order_bound
        return any_order_bound(key, logits, denoiser, X_1, context, **options)

    bound = bound_of(key, LOGITS)
    log_probs = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    exact_nats = -log_probs[np.arange(N), X_1].sum()
    assert abs(float(bound.mean) - exact_nats) < 6 * float(bound.standard_error) + 1e-4


def test_a_network(key):
    network = dfm_jax.models.mlp(V, 8, 2)
    params = network.init(key)
    assert network.apply(params, jnp.ones(V)).shape == (2,)


@pytest.mark.slow
def test_samplers(key):
    table = dfm_jax.schedules.left_to_right(N)
    x = dfm_jax.sampling.sample_on_table(key, SURE, denoiser, MASKS, table, source="mask")
    np.testing.assert_array_equal(x, X_1)
    context = jnp.arange(N) == 1
    x = dfm_jax.sampling.sample_infilling(key, SURE, denoiser, jnp.full(N, 2), context, table)
    np.testing.assert_array_equal(x, [2, 2, 1, 1])


def test_a_grid_of_a_sweep():
    from dfm_jax.training import config, sweep

    base = config.TrainConfig(num_steps=10)
    runs = sweep.grid(base, {"seed": [0, 1], "batch_size": [4, 8]})
    assert [(run.seed, run.batch_size) for run in runs] == [(0, 4), (0, 8), (1, 4), (1, 8)]


@pytest.mark.slow
def test_an_ensemble(key):
    """Of two experts, one of which knows the sequence, under a router that trusts it alone."""
    mixture = dfm_jax.mixture
    both = mixture.mixture_denoiser(denoiser, lambda router, x_t, t: router)
    params = mixture.MixtureDenoiserParams(jnp.stack([SURE, LOGITS]), jnp.array([0.0, -jnp.inf]))
    table = dfm_jax.schedules.left_to_right(N)
    x = dfm_jax.sampling.sample_on_table(key, params, both, MASKS, table, source="mask")
    np.testing.assert_array_equal(x, X_1)
