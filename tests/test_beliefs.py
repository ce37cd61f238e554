"""What today's jax, optax, flax and their kin do against a good guess, and what we do there.

First the surprise is shown, so that we learn when a new version no longer has it; then that the
project gives the right value, or refuses. What it never calls is in NEVER_CALLED. test_stack.py has
the surprises that were known before.
"""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from safetensors import numpy as safetensors

from dfm_jax import boundary, mixture, objectives, paths, schedules
from dfm_jax.data.arrays import read_tensors, tensors_to_bytes
from dfm_jax.fast import cross_entropy, generalized_kl
from dfm_jax.models import Network, TransformerConfig
from dfm_jax.models.layers import RMSNorm
from dfm_jax.sampling import next_token_log_probs, sample_next_token
from dfm_jax.sampling.jumps import Run, jumped, start
from dfm_jax.training.batches import Batch
from dfm_jax.training.config import OptimizerConfig
from dfm_jax.training.losses import masked_losses, next_token_losses
from dfm_jax.training.state import init_state, learning_rate_shape, make_optimizer
from dfm_jax.training.step import make_train_step

ROOT = Path(__file__).parents[1]
INF = float("inf")
HALF = [jnp.bfloat16, jnp.float16]

NEVER_CALLED = {
    "draws that are far off in half precision": r"jax\.random\.(bernoulli|choice)\b",
    "best_fn deletes the newest checkpoint": r"best_fn|CheckpointManager\b",
    "a sharded sampler never mixes its shards": r"grain\.\w*(Sampler|DataLoader|Shard)",
    "optax's schedules stay at 0 without a warm-up": r"optax\.(warmup|linear|polynomial)_\w+\(",
    "a tokenizer of transformers replaces the rules of its file": r"\bAutoTokenizer|Qwen2Tokenizer",
    "its variance is a difference of two large numbers": r"\b(nn|nnx|linen)\.LayerNorm\b",
    "the gradient is NaN at negative infinity": r"jnp\.logaddexp\b",
    "it is negative at a million in float32": r"\bpoisson\b",
}


def sources() -> dict[str, str]:
    """Package and studies, and what notebooks and guides tell a reader to write."""
    places = ("dfm_jax/**/*.py", "experiments/**/*.py", "notebooks/*.py", "docs/**/*.md")
    found = [path for place in places for path in ROOT.glob(place)]
    own = [path for path in found if not {"_build", "_generated"} & set(path.parts)]
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in own}


@pytest.mark.parametrize("why", NEVER_CALLED)
def test_it_is_never_called(why):
    rule = re.compile(NEVER_CALLED[why])
    found = {path: rule.findall(text) for path, text in sources().items()}
    assert not {path: names for path, names in found.items() if names}


# ── keys ────────────────────────────────────────────────────────────────────────────────────────


def same_keys(left, right) -> bool:
    return np.array_equal(jax.random.key_data(left), jax.random.key_data(right))


def doubly_used(text: str) -> list[str]:
    """Functions that split a key and fold the same key, unless the split replaces it."""
    found = []
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef):
            continue
        split, folded = set(), set()
        for node in ast.walk(function):
            targets = getattr(node, "targets", [])
            bound = {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            for call in ast.walk(node) if isinstance(node, ast.stmt) else ():
                if not isinstance(call, ast.Call):
                    continue
                name, used = ast.unparse(call.func), {ast.unparse(one) for one in call.args[:1]}
                if name == "jax.random.split" and not isinstance(node, ast.FunctionDef):
                    split |= used - bound
                if name == "jax.random.fold_in":
                    folded |= used
        found += [f"{function.name}: {key}" for key in split & folded]
    return found


def test_no_key_is_both_split_and_folded():
    """`split(key, n)[i]` is `fold_in(key, i)`: the two would draw the same numbers."""
    pair = jax.random.split(jax.random.key(3), 4)
    for index in range(4):
        assert same_keys(pair[index], jax.random.fold_in(jax.random.key(3), index))
    bad = "def f(key):\n    a, b = jax.random.split(key)\n    return jax.random.fold_in(key, 0)\n"
    assert doubly_used(bad) == ["f: key"]
    assert not doubly_used(bad.replace("a, b", "a, key"))
    both = ("split(", "fold_in(")
    python = {
        path: text
        for path, text in sources().items()
        if path.endswith(".py") and all(call in text for call in both)
    }
    assert len(python) > 5
    assert not {path: found for path, text in python.items() if (found := doubly_used(text))}


def test_no_time_is_folded_into_a_key():
    """`fold_in(key, 1.7)` is `fold_in(key, 1)`: two times would share their draws."""
    assert same_keys(*(jax.random.fold_in(jax.random.key(0), t) for t in (1.7, 1)))
    rule = re.compile(r"fold_in\(\s*\w+,\s*(t|time|times\S*|kappa\w*)\s*\)")
    assert rule.search("jax.random.fold_in(key, t)")
    assert not {path for path, text in sources().items() if rule.search(text)}


# ── half precision ──────────────────────────────────────────────────────────────────────────────


def test_a_uniform_number_in_half_precision_is_far_off():
    """Of bfloat16 it is a multiple of 1/128: what has the probability 0.003 comes in 0.0078."""
    p = jnp.bfloat16(0.003)
    assert jax.random.bernoulli(jax.random.key(0), p, (100_000,)).mean() > 2 * p


def everything(params, x_t, t):
    return params["logits"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALF)
def test_what_is_given_in_half_precision_is_drawn_in_float32(dtype):
    zeros, ones = jnp.zeros(2000, int), jnp.ones(2000, int)
    wide = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    half = jax.nn.log_softmax(wide).astype(dtype)
    keys = [lambda n=n: jax.random.fold_in(jax.random.key(0), n) for n in range(4)]

    def drawn(key, logits):
        return jax.random.categorical(key, logits.astype(jnp.float32), axis=-1, mode="high")

    kappa = jnp.asarray(0.003, dtype)
    np.testing.assert_array_equal(
        paths.sample_mixture(keys[0](), zeros, ones, kappa),
        jax.random.uniform(keys[0](), (2000,)) < kappa.astype(jnp.float32),
    )
    rows = jnp.tile(jnp.array([[0.5, 0.25, 0.25]], dtype), (400, 1))
    np.testing.assert_array_equal(
        paths.sample_path(keys[1](), rows), drawn(keys[1](), jnp.log(rows.astype(jnp.float32)))
    )
    each = [jax.random.split(keys[2](), 400) for _ in range(2)]
    np.testing.assert_array_equal(
        jax.vmap(sample_next_token, (0, None))(each[0], half),
        jax.vmap(drawn, (0, None))(each[1], half),
    )
    weights, both = jnp.array([0.25, 0.75], dtype), jnp.stack([half, half[::-1]])
    experts = jnp.tile(both[:, None], (1, 400, 1))
    expert_key, token_key = jax.random.split(keys[3]())
    who = drawn(expert_key, jnp.tile(jnp.log(weights.astype(jnp.float32))[None], (400, 1)))
    np.testing.assert_array_equal(
        mixture.sample_mixed_step(keys[3](), weights, experts), drawn(token_key, both[who])
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALF)
def test_who_jumps_in_half_precision_is_drawn_in_float32(dtype):
    """4,000 positions and a step of 1/256: in bfloat16 twice as many would be drawn anew."""
    zeros = jnp.zeros(4000, int)
    run = Run(lambda params, x_t, t: jnp.zeros((4000, 3)), 3, False, "sparse", 64)

    def moved(dtype):
        chance = jnp.full(4000, 1 / 256, dtype)
        return jumped(jax.random.key(1), {}, start(zeros), chance, jnp.zeros(()), run).x_t

    np.testing.assert_array_equal(moved(dtype), moved(jnp.float32))
    assert 0 < int((moved(dtype) != 0).sum()) < 20


@pytest.mark.slow
def test_more_terms_than_float16_can_count_have_a_sum():
    zeros = jnp.zeros(70_000, jnp.float16)
    assert float(jax.nn.softmax(zeros)[0]) == 0  # the surprise
    assert float(boundary.softmax(zeros)[0]) == pytest.approx(1 / 70_000, rel=0.01)
    assert float(boundary.log_sum_exp(zeros)) == pytest.approx(np.log(70_000), rel=1e-3)
    assert boundary.log_sum_exp(zeros).dtype == jnp.float16
    nats = objectives.cross_entropy_loss(zeros[None], jnp.array([3]))
    np.testing.assert_allclose(nats, np.log(70_000), rtol=1e-6)
    np.testing.assert_allclose(
        cross_entropy(zeros[None], jnp.array([3]), jnp.ones(1)), np.log(70_000), rtol=1e-6
    )


def test_parameters_in_half_precision_are_refused_where_they_would_be_trained():
    """Adam's b2 = 0.999 is 1 in bfloat16, an average stands still, and so do the parameters."""
    assert jnp.bfloat16(0.999) == 1
    average, value = jnp.ones((), jnp.bfloat16), jnp.bfloat16(2)
    assert 0.999 * average + (1 - 0.999) * value == average
    assert jnp.bfloat16(1) + jnp.bfloat16(1e-3) == 1
    init = {"w": lambda: jnp.ones((5, 4)), "bias": lambda: jnp.ones(4, jnp.bfloat16)}
    network = Network(lambda key: {n: make() for n, make in init.items()}, everything)
    optimizer = make_optimizer(OptimizerConfig(b2=0.999), 10)
    message = r"must be float32 or wider.* got params\['bias'\]\.dtype = 'bfloat16'"
    with pytest.raises(ValueError, match=message):
        init_state(jax.random.key(0), network, optimizer)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: init_state(jax.random.key(0), network, optimizer, ema=True))


# ── ids ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_mask_of_bytes_is_not_byte_0():
    """`uint8 == 256` is true at 0, and a row of `one_hot` has two ones; ids become int32 first."""
    byte = jnp.zeros(1, jnp.uint8)
    assert bool((byte == 256)[0])
    assert float(jax.nn.one_hot(byte, 257).sum()) == 2
    np.testing.assert_array_equal(paths.point_mass(byte, 257)[0], np.eye(257)[0])
    x_t = jnp.array([256, 0])
    loss = objectives.generalized_kl_loss(
        jnp.zeros((2, 256)), jnp.zeros(2, jnp.uint8), x_t, 0.5, schedules.linear()
    )
    np.testing.assert_allclose(loss, [2 * np.log(256), 2 * (1 - 1 / 256)], rtol=1e-6)
    seen = []

    def apply(params, x_before, t=None, *, key=None):
        seen.append((x_before.dtype, x_before))
        return jnp.zeros((3, 256))

    losses = next_token_losses(Network(lambda key: {}, apply), start=256)
    losses({}, Batch(np.zeros(3, np.uint8), np.ones(3, bool)), None)
    assert seen[0][0] == jnp.int32
    assert seen[0][1].tolist() == [256, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("label", [-100, -1, 7])
def test_a_label_that_is_no_token_has_no_finite_loss(label):
    """Refused where it can be read; inside a program the loss is NaN, and a run stops."""
    logits, labels = jnp.zeros((1, 5)), jnp.array([label])
    raw = jax.grad(lambda z: optax.softmax_cross_entropy_with_integer_labels(z, labels).sum())
    if label == -100:
        assert np.isfinite(raw(logits)).all()  # the surprise
    one, masked, t = jnp.ones(1), jnp.array([5]), 0.5
    linear = schedules.linear()
    losses = {
        "clear": lambda z, y: objectives.cross_entropy_loss(z, y).sum(),
        "clear, by a bound": lambda z, y: objectives.generalized_kl_loss(
            z, y, masked, t, linear
        ).sum(),
        "fast": lambda z, y: cross_entropy(z, y, one),
        "fast, by a bound": lambda z, y: generalized_kl(z, y, masked, one),
    }
    for name, loss in losses.items():
        with pytest.raises(ValueError, match=r"`x_1` must hold ids in \[0, 4\]"):
            loss(logits, labels)
        nats, slope = jax.jit(jax.value_and_grad(loss))(logits, labels)
        assert np.isnan(nats), name
        if name.startswith("fast"):
            assert np.isnan(slope).all()
    unpaid = jax.jit(lambda z, y: cross_entropy(z, y, jnp.zeros(1)))(logits, labels)
    assert float(unpaid) == 0  # what has the weight 0 may be anything


# ── NaN, infinity and zero ──────────────────────────────────────────────────────────────────────


def test_a_gate_shows_a_nan_that_top_k_ranks_lowest():
    weights = jnp.array([0.0, 0.5, 0.3]) / jnp.array([0.0, 1.0, 1.0])
    largest, _ = jax.lax.top_k(weights, 2)
    assert np.isfinite(largest).all()  # the surprise: a NaN that was computed has its sign set
    gates = {
        "top": lambda w: mixture.top_experts_gate(w, 2),
        "hard": mixture.hard_gate,
        "nucleus": lambda w: mixture.nucleus_gate(w, 0.4),
    }
    for name, gate in gates.items():
        assert np.isnan(jax.jit(gate)(weights)).all(), name
        with pytest.raises(ValueError, match="`weights` must be non-negative"):
            gate(weights)
    assert np.isnan(jax.jit(lambda z: next_token_log_probs(z, top_k=2))(weights)).all()


@pytest.mark.slow
def test_a_token_that_cannot_come_leaves_the_gradient_of_a_truncation_finite():
    never = jnp.array([-INF, 0.0, 1.0, 2.0])
    assert np.isnan(jax.grad(lambda x: jax.lax.cumlogsumexp(x)[2])(never[jnp.array([0, 0, 1])])[0])
    assert np.isnan(jax.grad(jnp.logaddexp)(-INF, -INF))
    for options in ({"top_p": 0.95}, {"top_k": 3}, {"temperature": 0.7}):
        slope = jax.grad(lambda z, o=options: next_token_log_probs(z, **o)[3])(never)
        assert np.isfinite(slope).all()
        assert float(slope[0]) == 0
        assert float(slope[3]) > 0
    slopes = jax.grad(lambda z: boundary.log_sum_exp(z))(jnp.array([-INF, -INF, 1.0]))
    np.testing.assert_array_equal(slopes, [0, 0, 1])


@pytest.mark.slow
def test_a_gradient_whose_norm_overflows_is_seen_not_made_0():
    """`clip_by_global_norm` divides by an infinite norm; the step reports it, and the run stops."""
    large = {"w": jnp.full(4, 1e20)}
    clip = optax.clip_by_global_norm(1.0)
    np.testing.assert_array_equal(clip.update(large, clip.init(large))[0]["w"], 0)
    network = Network(
        lambda key: {"w": jnp.zeros((5, 4))},
        lambda params, x_t, t=None, *, key=None: 1e25 * params["w"][x_t],
    )
    optimizer = make_optimizer(OptimizerConfig(max_norm=1.0), 10)
    step = make_train_step(next_token_losses(network, start=4), optimizer)
    batch = Batch(jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool))
    state = init_state(jax.random.key(0), network, optimizer)
    _, metrics = jax.jit(step)(state, batch, jax.random.key(1))
    assert np.isfinite(metrics.loss)
    assert np.isinf(metrics.gradient_norm)


@pytest.mark.slow
def test_a_probability_too_small_for_float32_has_its_loss():
    """A subnormal number is 0 for jax and not for NumPy: losses take logits, which are neither."""
    small = np.float32(1e-40)
    assert small != 0
    assert bool(jax.jit(lambda x: x == 0)(small))
    logits, x_1 = jnp.array([[0.0, -95.0]]), jnp.array([1])
    for loss in (
        lambda z: objectives.cross_entropy_loss(z, x_1)[0],
        lambda z: objectives.generalized_kl_loss(z, x_1, jnp.array([2]), 0.0, schedules.linear())[
            0
        ],
        lambda z: cross_entropy(z, x_1, jnp.ones(1)),
        lambda z: generalized_kl(z, x_1, jnp.array([2]), jnp.ones(1)),
    ):
        nats, slope = jax.jit(jax.value_and_grad(loss))(logits)
        assert float(nats) == pytest.approx(95, rel=1e-6)
        np.testing.assert_allclose(slope, [[1, -1]], rtol=1e-6)
    np.testing.assert_allclose(next_token_log_probs(logits[0]), logits[0], rtol=1e-6)


def test_without_a_warm_up_the_first_rate_is_the_peak():
    assert float(optax.linear_schedule(0.0, 1.0, 0)(5)) == 0  # the surprise
    assert float(learning_rate_shape(0, 0, 10, 0.1)) == 1
    assert float(learning_rate_shape(0, 2, 10, 0.1)) == 0.5


@pytest.mark.slow
def test_a_row_far_from_0_is_normalized():
    """flax's LayerNorm makes a row of mean 3,000 hundreds of times too large; ours has no mean."""
    row = 3000 + jnp.asarray(np.random.default_rng(0).normal(size=(1, 64)), jnp.float32)
    theirs = linen.LayerNorm()
    assert float(jnp.std(theirs.apply(theirs.init(jax.random.key(0), row), row))) > 2
    config = TransformerConfig(num_tokens=5, width=64, num_layers=1, num_heads=1, ffn_width=4)
    ours = RMSNorm(config)
    wide = np.asarray(row, np.float64)
    expected = wide / np.sqrt(np.mean(wide**2) + config.norm_epsilon)
    found = ours.apply(ours.init(jax.random.key(0), row, None), row, None)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
def test_counts_become_float64_where_it_is_on(x64):
    """`int32 / 3` is float32 even so."""
    assert (jnp.int32(1) / 3).dtype == jnp.float32
    log_weight = objectives.any_order_log_weight(jnp.int32(2), jnp.int32(3))
    assert float(log_weight) == pytest.approx(np.log(2 * 2 / 120), rel=1e-15)
    seen = []

    def apply(params, x_t, t=None, *, key=None):
        seen.append(t.dtype)
        return jnp.zeros((4, 3))

    table = schedules.masked(schedules.linear(), 7, 4)
    losses = masked_losses(Network(lambda key: {}, apply), table, time_conditioned=True)
    batch = Batch(np.zeros(4, np.int32), np.ones(4, bool))
    losses({}, batch, jax.random.key(0))
    assert set(seen) == {jnp.dtype("float64")}


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_an_array_with_strides_is_written_in_order(tmp_path):
    """safetensors 0.8 writes the memory as it lies, and another array comes back."""
    grid = np.arange(12.0).reshape(3, 4)
    arrays = {"transposed": grid.T, "strided": grid[:, ::2], "backwards": grid[::-1]}
    scrambled = safetensors.load(safetensors.save(arrays))
    assert not np.array_equal(scrambled["transposed"], grid.T)
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensors_to_bytes(arrays))
    for name, found in read_tensors(path, list(arrays)).items():
        np.testing.assert_array_equal(found, arrays[name])
