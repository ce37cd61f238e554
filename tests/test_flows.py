"""`experiments.flows`: bounds against enumeration, gates, samplers, shares, files, resumption."""

import dataclasses
import functools
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from dfm_jax import exact
from dfm_jax.models import Network, TransformerConfig
from dfm_jax.paths import mixture_path, sample_mixture
from dfm_jax.training.batches import Batch
from dfm_jax.training.config import OptimizerConfig
from dfm_jax.training.losses import uniform_losses
from experiments.flows import __main__ as flows
from experiments.flows import bounds as flows_bounds
from experiments.flows import evaluation_set as flows_evaluation_set
from experiments.flows import images as flows_images
from experiments.flows import report as flows_report
from experiments.flows import samples as flows_samples
from experiments.flows import training as flows_training
from experiments.flows.config import Config
from experiments.flows.sources import Source, image_draws
from experiments.flows.training import Recipe, member_config
from experiments.lib import training as language_training

V, N, STEPS, ENDS = 3, 2, 4, 0.9


def source(name):
    return Source(name=name, num_tokens=V, num_positions=N, num_steps=STEPS, epsilon=1 - ENDS)


@functools.cache  # a network of its own is a program of its own
def table_network() -> Network:
    """Logits by the whole state, tilted by time: bidirectional, with nothing in common."""
    powers = (V + 1) ** np.arange(N)[::-1]

    def init(key):
        return jax.random.normal(key, ((V + 1) ** N, N, V))

    def apply(params, x_t, t=None, *, key=None):
        return params[jnp.dot(x_t, powers)] * (1 + jnp.asarray(0.0 if t is None else t))

    return Network(init, apply)


@functools.cache
def tiny_router(num_experts) -> Network:
    def init(key):
        return jax.random.normal(key, (num_experts,))

    def apply(params, x_t, t=None, *, key=None):
        return params * (1 + jnp.asarray(t)) + 0.3 * jnp.sum(x_t)

    return Network(init, apply)


def log_probs(params, state, t):
    """In NumPy float64."""
    index = np.asarray(state) @ (V + 1) ** np.arange(N)[::-1]
    logits = np.asarray(params, np.float64)[index] * (1 + t)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def uniform_integrand(probs, x_1, z, t):
    """L2, by hand from rates."""
    total = 0.0
    for i in range(N):
        for v in range(V):
            if v != z[i]:
                u, u_hat = float(v == x_1[i]) / (1 - t), np.exp(probs[i, v]) / (1 - t)
                total += (u * np.log(u / u_hat) if u > 0 else 0.0) - u + u_hat
    return total


def path_mass(z, x_1, t):
    return np.prod([(1 - t) / V + t * (z[i] == x_1[i]) for i in range(N)])


def masked_bound(params, x_1):
    """L5 by enumeration of every mask at every step."""
    total = 0.0
    for step in range(STEPS):
        t = step / STEPS
        for mask in itertools.product((False, True), repeat=N):
            mask = np.array(mask)
            chance = np.prod(np.where(mask, 1 - t, t))
            probs = log_probs(params, np.where(mask, V, x_1), t)
            total -= chance / (STEPS - step) * probs[mask, x_1[mask]].sum()
    return total


def uniform_bound(params, x_1):
    """L2 by enumeration of states and 40 Gauss nodes, and the last step's."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    total = 0.0
    states = list(itertools.product(range(V), repeat=N))
    for node, weight in zip((nodes + 1) / 2 * ENDS, weights / 2 * ENDS, strict=True):
        for z in states:
            probs = log_probs(params, z, node)
            total += weight * path_mass(z, x_1, node) * uniform_integrand(probs, x_1, z, node)
    for z in states:
        probs = log_probs(params, z, ENDS)
        total -= path_mass(z, x_1, ENDS) * probs[np.arange(N), x_1].sum()
    return total


BOUNDS = {"masked": masked_bound, "uniform": uniform_bound}
X_1 = np.array([2, 0])


def unbiased(draws, expected, *, precision=0.03):
    error = draws.std(ddof=1) / np.sqrt(len(draws))
    assert abs(draws.mean() - expected) < 4 * error  # 4 standard errors: 1 in 16,000
    assert error < precision * expected  # so that a forgotten factor would be seen


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.statement("L2", "L5")
def test_the_estimator_is_unbiased_for_the_bound(name):
    """Against the bound summed over all states, in float64."""
    network = table_network()
    params = network.init(jax.random.key(0))
    images = np.tile(X_1, (3000, 1))
    draws = jax.device_get(image_draws(source(name), jax.random.key(1), jnp.asarray(images), 4))
    found = flows_bounds.dense_scores(source(name), network, params, images, draws)
    unbiased(found, BOUNDS[name](params, X_1))


@pytest.mark.slow
def test_times_are_stratified_and_weights_sum_to_the_length():
    draws = image_draws(source("masked"), jax.random.key(0), jnp.asarray(X_1[None]), 2)
    assert (np.floor(np.asarray(draws.t[0]) * 2) == [0, 1]).all()
    assert float(draws.weight.sum()) == STEPS
    draws = image_draws(source("uniform"), jax.random.key(0), jnp.asarray(X_1[None]), 3)
    assert (np.floor(np.asarray(draws.t[0, :3]) / ENDS * 3) == [0, 1, 2]).all()
    np.testing.assert_allclose(draws.weight[0], [ENDS / 3] * 3 + [1], rtol=1e-6)
    assert np.asarray(draws.last[0]).tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match="`num_draws` must divide 4, the number of steps"):
        image_draws(source("masked"), jax.random.key(0), jnp.asarray(X_1[None]), 3)


@pytest.mark.statement("L2", "S4")
def test_the_uniform_bound_bounds_its_sampler():
    """−log p̂(x_1) of the jump process left at 1 − ε and one last draw: below, for every x_1."""
    params = 0.3 * table_network().init(jax.random.key(2))
    states = exact.states(V, N)
    probs, count = np.full(len(states), V ** -float(N)), 1000
    token_probs = np.empty((len(states), N, V))
    for step in range(count):
        t = ENDS * (step + 0.5) / count
        for index, z in enumerate(states):
            token_probs[index] = np.exp(log_probs(params, z, t))
        rates = (token_probs - np.eye(V)[states]) / (1 - t)
        probs = probs + ENDS / count * exact.generator(rates) @ probs
    last = [np.exp(log_probs(params, z, ENDS)) for z in states]
    slack = []
    for x_1 in states:
        drawn = np.array([p[np.arange(N), x_1].prod() for p in last])
        slack.append(uniform_bound(params, x_1) + np.log(probs @ drawn))
    assert min(slack) > 1e-3


@pytest.mark.slow
@pytest.mark.statement("L2")
def test_the_uniform_terms_are_unbiased_for_the_integral():
    network = table_network()
    params = network.init(jax.random.key(3))
    terms = uniform_losses(network, end=ENDS, time_conditioned=True)
    batch = Batch(jnp.asarray(X_1), jnp.ones(N, bool))
    draw = jax.jit(jax.vmap(lambda key: terms(params, batch, key).nats.sum()))
    draws = np.asarray(draw(jax.random.split(jax.random.key(4), 20_000)), np.float64)
    last = sum(
        -path_mass(z, X_1, ENDS) * log_probs(params, z, ENDS)[np.arange(N), X_1].sum()
        for z in itertools.product(range(V), repeat=N)
    )
    unbiased(draws, uniform_bound(params, X_1) - last)


@pytest.mark.slow
def test_the_uniform_terms_leave_context_alone_and_refuse():
    network = table_network()
    params = network.init(jax.random.key(3))
    terms = uniform_losses(network, end=ENDS, time_conditioned=True)
    batch = Batch(jnp.asarray(X_1), jnp.array([True, False]))
    assert float(terms(params, batch, jax.random.key(0)).nats[1]) == 0
    with pytest.raises(ValueError, match="`key` must be given"):
        terms(params, batch, None)
    with pytest.raises(ValueError, match=r"`end` must lie in \(0, 1\)"):
        uniform_losses(network, end=1.0, time_conditioned=True)


@pytest.mark.slow
@pytest.mark.statement("P3")
def test_coins_have_the_distribution_of_the_mixture_path():
    """χ² of 20,000 draws over the four states, false alarm 1e-6."""
    x_0, x_1, kappa = jnp.array([0, 1]), jnp.array([2, 2]), jnp.array([0.3, 0.8])
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = np.asarray(jax.vmap(lambda k: sample_mixture(k, x_0, x_1, kappa))(keys))
    path = np.asarray(mixture_path(x_0, x_1, kappa, num_states=3))
    probs = np.outer(path[0], path[1])
    counts = np.zeros((3, 3))
    np.add.at(counts, (drawn[:, 0], drawn[:, 1]), 1)
    assert counts[probs == 0].sum() == 0
    here = probs > 0
    assert ((counts - probs * 20_000)[here] ** 2 / (probs * 20_000)[here]).sum() < 30.7  # 3 degrees
    ends = sample_mixture(jax.random.key(1), x_0, x_1, jnp.array([0.0, 1.0]))
    assert np.asarray(ends).tolist() == [0, 2]
    with pytest.raises(ValueError, match="`kappa_t` must lie in"):
        sample_mixture(jax.random.key(1), x_0, x_1, jnp.array([0.0, 1.5]))


# ── ensembles ───────────────────────────────────────────────────────────────────────────────────


def _ensemble(name, num_images=400):
    network, router = table_network(), tiny_router(3)
    experts = jnp.stack([network.init(jax.random.key(k)) for k in range(3)])
    gate = router.init(jax.random.key(9))
    rng = np.random.default_rng(0)
    images, parts = rng.integers(0, V, (num_images, N)), rng.integers(0, 3, num_images)
    draws = jax.device_get(image_draws(source(name), jax.random.key(1), jnp.asarray(images), 4))
    weights = np.array([0.5, 0.3, 0.2])
    found = flows_bounds.ensemble_scores(
        source(name), (network, router), experts, gate, np.log(weights), images, parts, draws
    )
    return network, experts, images, parts, draws, found


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.statement("B8", "D4", "D5")
def test_gates_of_an_ensemble(name):
    network, experts, images, parts, draws, found = _ensemble(name)
    each = [
        flows_bounds.dense_scores(source(name), network, params, images, draws)
        for params in experts
    ]
    own = np.stack(each)[parts, np.arange(len(images))]
    np.testing.assert_allclose(found.gates[:, 2], own, rtol=1e-5)  # the oracle's are its own
    assert found.slack >= -1e-4
    assert (found.named >= found.gates[:, 1] - 1e-4).all()
    assert found.named.mean() > found.gates[:, 1].mean() + 0.1
    assert found.residual < 1e-5
    assert (found.router > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_an_ensemble_of_copies_is_the_dense_model(name):
    """Common draws: whatever the gate, the paired difference is rounding."""
    network, router = table_network(), tiny_router(3)
    params = network.init(jax.random.key(0))
    images = np.random.default_rng(1).integers(0, V, (400, N))
    draws = jax.device_get(image_draws(source(name), jax.random.key(1), jnp.asarray(images), 4))
    one = flows_bounds.dense_scores(source(name), network, params, images, draws)
    found = flows_bounds.ensemble_scores(
        source(name),
        (network, router),
        jnp.stack([params] * 3),
        router.init(jax.random.key(2)),
        np.log([0.2, 0.3, 0.5]),
        images,
        np.zeros(400, int),
        draws,
    )
    np.testing.assert_allclose(found.gates, np.stack([one] * 3, axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.statement("L5", "S1")
def test_the_bound_of_single_positions_is_the_nll():
    network, router = table_network(), tiny_router(2)
    experts = jnp.stack([network.init(jax.random.key(k)) for k in range(2)])
    gap = flows_bounds.sequential_gap(
        source("masked"),
        *(network, router, experts, router.init(jax.random.key(5))),
        *(jnp.asarray(X_1), np.array([1, 0])),
    )
    assert float(gap) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.statement("S2", "S3")
def test_samples_have_the_distribution_of_their_steps(name):
    """4,000 samples of two experts under a router against the chain's distribution, false alarm
    1e-6.
    """
    network, router = table_network(), tiny_router(2)
    experts = jnp.stack([network.init(jax.random.key(k)) for k in range(2)])
    gate = router.init(jax.random.key(5))
    count = 4000
    keys, others = (
        jax.random.split(jax.random.key(6), count),
        jax.random.split(jax.random.key(7), 2),
    )
    drawn = flows_samples.sampled(
        source(name), network, router, experts, gate, jnp.zeros((count, 2)), keys
    )
    probs = _chain_probs(source(name), experts, router, gate)
    counts = np.bincount(np.asarray(drawn) @ np.array([V, 1]), minlength=V**N)
    chi = ((counts - count * probs) ** 2 / (count * probs)).sum()
    assert chi < 42.7  # 8 degrees of freedom
    alone = flows_samples.sampled(
        source(name), network, router, experts, gate, jnp.tile(jnp.eye(2)[:1], (2, 1)), others
    )
    assert ((np.asarray(alone) >= 0) & (np.asarray(alone) < V)).all()


def _chain_probs(of, experts, router, gate):
    """The distribution of X_T by enumeration: [V^N]."""
    states = exact.states(of.num_states, N)

    def posteriors(t):
        rows = []
        for z in states:
            weights = np.exp(np.asarray(jax.nn.log_softmax(router.apply(gate, z, t)), np.float64))
            rows.append(
                sum(w * np.exp(log_probs(p, z, t)) for w, p in zip(weights, experts, strict=True))
            )
        return np.pad(np.stack(rows), ((0, 0), (0, 0), (0, of.num_states - V)))

    stay = np.eye(of.num_states)[states]
    masks = of.name == "masked"
    probs = (states == V).all(1).astype(float) if masks else np.full(len(states), V ** -float(N))
    for step in range(STEPS):
        t = step / STEPS if masks else ENDS * step / STEPS
        size = 1 / (STEPS - step) if masks else ENDS / STEPS / (1 - t)
        # A revealed token stays: the network of this test does not carry it over.
        step_probs = stay + size * (posteriors(t) - stay)
        probs = exact.push_forward(probs, step_probs)
    if not masks:
        probs = exact.push_forward(probs, posteriors(ENDS))
    inside = (states < V).all(1)
    return probs[inside] / probs[inside].sum()


# ── images, members, the evaluation set ───────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def images():
    return flows_images.digits(200, 40)


@pytest.mark.slow
def test_images_and_parts(images):
    assert images.train.shape == (200, 64)
    assert images.train.max() < flows_images.NUM_TOKENS
    for kind in ("cluster", "random"):
        parts = flows_images.partitioned(images, kind, 3)
        assert sorted(np.bincount(parts.train)) == [66, 67, 67]
        assert parts.test.shape == (40,)
        np.testing.assert_allclose(parts.weights, 1 / 3, atol=0.004)
    with pytest.raises(ValueError, match=r"`num_train \+ num_test` must be at most 1797"):
        flows_images.digits(1700, 200)


def _recipe(name, num_experts=None):
    of = Source(name=name, num_tokens=17, num_positions=64, num_steps=8, epsilon=0.05)
    model = TransformerConfig(
        num_tokens=17,
        num_states=of.num_states,
        width=8,
        num_layers=1,
        num_heads=2,
        ffn_width=16,
        causal=False,
        time_conditioned=True,
    )
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=5)
    config = member_config(of, model, optimizer, num_steps=150, batch_size=8)
    return Recipe(source=of, config=config, num_experts=num_experts)


@pytest.mark.slow
@pytest.mark.statement("D11")
def test_a_router_learns_what_the_state_tells(tmp_path):
    """Dark against bright: near r at late times, near w where all is masked."""
    rng = np.random.default_rng(0)
    parts = np.arange(200) % 2
    rows = np.where(
        parts[:, None] == 0, rng.integers(0, 3, (200, 64)), rng.integers(13, 16, (200, 64))
    )
    recipe = _recipe("masked", 2)
    router = flows_training.trained(tmp_path, recipe, rows, parts, seeds=(0,))
    apply = jax.jit(lambda x, t: jax.nn.softmax(recipe.network.apply(router.of_seed(0), x, t)))
    late = np.array([apply(row, 0.9)[part] for row, part in zip(rows[:20], parts, strict=False)])
    assert late.min() > 0.9
    np.testing.assert_allclose(apply(np.full(64, 17), 0.0), 0.5, atol=0.1)


@pytest.mark.slow
def test_the_evaluation_set_obeys_both_inequalities(images):
    """B8 where every sum is taken; the Bayes gate's distribution is the mixture of paths (D13)."""
    for kind in ("cluster", "random"):
        parts = flows_images.partitioned(images, kind, 3)
        found = flows_evaluation_set.measured(images, parts, smoothing=0.1, epsilon=0.05)
        assert found["residual"] < 1e-9
        for gate in found["gates"].values():
            assert 0 < gate["kl"] < gate["integral"] < gate["by_part"]


def test_bad_options(tmp_path, capsys):
    for options, words in (
        (("--epsilon", "0"), "`epsilon` must lie in (0, 1)"),
        (("--times-per-image", "5"), "`times_per_image` must divide `num_steps`, which is 64"),
        (("--num-experts", "1"), "`num_experts` must be at least 2; got num_experts = 1"),
        (("--sources", "masked", "masked"), "`sources` must hold at least one name"),
    ):
        assert flows.main(["--out", str(tmp_path), *options]) == 2
        assert words in capsys.readouterr().err


# ── the study ───────────────────────────────────────────────────────────────────────────────────


def _config(out):
    return Config(
        out=out,
        partitions=("random",),  # each member is a program of its own
        num_experts=2,
        num_train=200,
        num_test=40,
        width=8,
        router_width=8,
        batch_size=4,
        training_steps=31,
        num_steps=8,
        times_per_image=2,
        num_samples=2,
        num_seeds=2,
        num_draws=50,
    )


@pytest.fixture(scope="module")
def result(images, tmp_path_factory):
    config = _config(tmp_path_factory.mktemp("flows"))
    holds = flows.run(config, images, Console(quiet=True))
    return holds, config, json.loads((config.out / "result.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_claim_holds(result):
    holds, config, found = result
    assert holds
    assert len(found["verdicts"]) == 8
    assert (config.out / "flows.png").stat().st_size > 5_000
    fields = "source variant partition num_experts gate seed nats_per_pixel stderr tokens flops"
    assert all(list(row) == fields.split() for row in found["rows"])
    assert len(found["rows"]) == 2 * 2 * (1 + 3)  # sources, seeds, dense and gates
    assert len({(row["tokens"], row["flops"]) for row in found["rows"]}) == 1
    steps = [
        variant["steps"]
        for variant in found["summary"]["variants"]
        if variant["variant"] != "dense"
    ]
    assert all(sum(one) == 31 and max(one) - min(one) <= 1 for one in steps)
    for row in found["summary"]["b8"]:
        assert row["gap"] <= row["cost"]
        assert row["own"] + row["cost"] == pytest.approx(row["bound"], rel=1e-6)
    for row in found["summary"]["comparisons"]:
        assert row["minus_dense"]["mean"] == pytest.approx(
            row["nats_per_pixel"] - row["dense"], abs=1e-6
        )
    assert len(flows_report.groups([{"source": "a", "partition": "b"}] * 2)) == 1


@pytest.mark.slow
def test_killed_between_members_it_goes_on(result, images, monkeypatch, tmp_path):
    """Killed before its last member, a study reads the others and trains that one alone."""
    _, config, found = result
    out = shutil.copytree(config.out, tmp_path / "killed")
    for cell in out.glob("cells/*masked*"):
        cell.unlink()
    (out / "result.json").unlink()
    config = dataclasses.replace(config, out=out, sources=("masked",))
    train, last = language_training.train, out / "members" / "masked" / "random" / "router"
    shutil.rmtree(last)

    def killed(run, folder, **options):
        if folder == last:
            raise KeyboardInterrupt
        return train(run, folder, **options)

    monkeypatch.setattr(language_training, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        flows.run(config, images, Console(quiet=True))
    begun = []

    def counted(run, folder, **options):
        outcome = train(run, folder, **options)
        begun.append((folder, outcome.began_at))
        return outcome

    monkeypatch.setattr(language_training, "train", counted)
    flows.run(config, images, Console(quiet=True))
    assert len(begun) == 4
    assert {folder for folder, at in begun if at == 0} == {last}  # the others: read
    again = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert again["rows"] == [row for row in found["rows"] if row["source"] == "masked"]

    monkeypatch.setattr(flows, "measure", pytest.fail)  # with its cells, nothing is judged
    flows.run(config, images, Console(quiet=True))
