"""Training steps over 8 virtual devices: experts that share nothing, and the dense model that
does.
"""

from functools import cache, partial

import jax
import numpy as np
import pytest

from dfm_jax.interfaces import Losses
from dfm_jax.models import TransformerConfig, transformer
from dfm_jax.models.multimodal import MultimodalConfig, VisionConfig, multimodal
from dfm_jax.objectives import cross_entropy_loss
from dfm_jax.parallel import collectives, dense, independent, make_mesh, sharded_step
from dfm_jax.training.batches import Batch
from dfm_jax.training.config import OptimizerConfig
from dfm_jax.training.losses import next_token_losses
from dfm_jax.training.state import init_state, make_optimizer, with_hyperparameters
from dfm_jax.training.step import make_train_step, until_its_end

pytestmark = pytest.mark.slow  # all of it is compilation

K, B, N, STEPS = 8, 8, 6, 3
MODEL = TransformerConfig(
    num_tokens=16, num_states=17, width=16, num_layers=1, num_heads=2, ffn_width=32, dropout=0.1
)
ULPS = 2e-5  # relative, of sums in another order through steps of Adam


@cache
def parts():
    network = transformer(MODEL)
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=1), STEPS)
    step = make_train_step(next_token_losses(network, start=16), optimizer)
    begin = partial(init_state, network=network, optimizer=optimizer)
    return begin, step


@cache
def states():
    """In NumPy: to choose a run, or to change one, is no program."""
    begun = jax.jit(jax.vmap(parts()[0]))(jax.random.split(jax.random.key(0), K))
    return jax.device_get(begun)


def batches(seed: int) -> Batch:
    random = np.random.default_rng(seed)
    valid = np.arange(N)[None, None] < random.integers(1, N + 1, (K, B, 1))
    tokens = np.where(valid, random.integers(0, 16, (K, B, N)), 0)
    return Batch(tokens.astype(np.int32), valid)


@jax.jit
def keys(seed):
    """Made anew for each use."""
    return jax.random.split(jax.random.key(seed), K)


@jax.jit
def key_of(seed, number):
    return keys(seed)[number]


def one_of(tree, number):
    return jax.tree.map(lambda leaf: leaf[number], tree)


@cache
def single():
    """The step on one device, compiled once."""
    return jax.jit(parts()[1])


def trained(step, state, run=None):
    """After STEPS updates of all runs or of one, with the metrics of each."""
    seen = []
    for number in range(STEPS):
        if run is None:
            batch, key = batches(number), keys(number)
        else:
            batch, key = one_of(batches(number), run), key_of(number, run)
        state, metrics = step(state, batch, key)
        seen.append(metrics)
    return jax.device_get((state, jax.tree.map(lambda *x: np.stack(x), *seen)))


@cache
def alone():
    """Every run by itself, one after the other."""
    found = [trained(single(), one_of(states(), k), k) for k in range(K)]
    state, metrics = jax.tree.map(lambda *x: np.stack(x), *found)
    return state, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), metrics)


def assert_close(found, expected):
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=ULPS, atol=1e-6)


@pytest.mark.parametrize("shape", [{"expert": 8}, {"expert": 4, "data": 2}])
def test_experts_on_any_mesh(shape):
    """That the backends agree, and that runs left over are padded, test_parallel.py says."""
    step = independent(parts()[1], make_mesh(shape), data_args=(1,) * (len(shape) - 1))
    state, metrics = trained(step, states())
    assert_close((state, metrics), alone())
    assert np.abs(metrics.gradient_norm).min() > 0.1


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_the_dense_model_over_eight_devices_is_the_dense_model_on_one(placement):
    """And a sharded one holds an eighth of it on a device."""
    state = one_of(states(), 0)
    step = sharded_step(parts()[1], make_mesh({"data": 8}), state, placement=placement)
    found = trained(step, state, 0)
    expected = (
        one_of(alone()[0], 0),
        one_of(jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), alone()[1]), 0),
    )
    assert_close(found, expected)
    if placement == "sharded":
        after, _ = step(state, one_of(batches(0), 0), key_of(0, 0))
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(after))
        here = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(after))
        assert here < whole / 8 + 2**13  # the norms' scales and the mask's row lie everywhere
        assert here < 0.3 * whole


@cache
def pictured(num_micro_batches=1):
    """A step of a small network whose text and tower are stacks of three layers, its state."""
    stacked = {"scan_layers": True, "remat": True, "num_layers": 3}
    system = MultimodalConfig(
        text=TransformerConfig(
            num_tokens=64, width=32, num_heads=4, ffn_width=64, tied=False, **stacked
        ),
        vision=VisionConfig(
            image_size=8,
            patch_size=4,
            width=32,
            num_heads=2,
            ffn_width=64,
            qkv_bias=False,  # no logit depends on a bias of keys: Adam would enlarge its rounding
            drop_path=0.1,
            **stacked,
        ),
        image_token=5,
    )
    network = multimodal(system)

    def losses(params, example, key=None):
        tokens, picture = example
        logits = network.apply(params, tokens[:-1], picture[None], key=key)
        nats = cross_entropy_loss(logits, tokens[1:])
        return Losses(nats, np.ones(nats.shape, bool))

    optimizer = make_optimizer(OptimizerConfig(warmup_steps=1), STEPS)
    state = jax.jit(partial(init_state, network=network, optimizer=optimizer))(jax.random.key(0))
    random = np.random.default_rng(0)
    tokens = random.integers(6, 64, (8, 12)).astype(np.int32)
    tokens[:, 2:6] = 5
    batch = tokens, random.normal(size=(8, 8, 8, 3)).astype(np.float32)
    step = make_train_step(losses, optimizer, num_micro_batches=num_micro_batches)
    return step, jax.device_get(state), batch


def test_a_sharded_step_gathers_one_layer_of_a_stack_at_a_time(monkeypatch):
    step, state, batch = pictured()
    arguments = state, batch, jax.random.key(1)
    expected = jax.device_get(jax.jit(step)(*arguments))
    stack = 3 * 32 * 64 * 4  # bytes of the largest leaf of either stack

    def largest_gather():
        over = sharded_step(step, make_mesh({"data": 8}), state, placement="sharded", donate=False)
        compiled = jax.jit(over).lower(*arguments).compile()
        found = [one.num_bytes for one in collectives(compiled) if one.kind == "all-gather"]
        return max(found), compiled

    most, compiled = largest_gather()
    assert 32 * 64 * 4 <= most < stack
    assert_close(compiled(*arguments), expected)
    monkeypatch.setattr(dense, "_STACKED", "of no name")
    assert largest_gather()[0] >= stack


def test_each_device_computes_its_share_of_every_micro_batch():
    """XLA counts a loop once: two parts of 16 rows are, on a device, what one part of 8 rows is."""
    _, state, batch = pictured()
    twice = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), batch)

    def flops(number, rows):
        step = pictured(number)[0]
        over = sharded_step(step, make_mesh({"data": 8}), state, placement="sharded", donate=False)
        lowered = jax.jit(over).lower(state, rows, jax.random.key(1))
        return lowered.compile().cost_analysis()["flops"]

    assert flops(2, twice) < 1.3 * flops(1, batch)


# ── runs of different lengths, and runs that break ──────────────────────────────────────────────


def test_a_run_that_is_finished_or_broken_stays_as_it_is_and_the_others_go_on():
    """One batch that breaks a run stops it there: a missed update is never made up for."""
    lengths = np.array([3, 1, 2, 3, 3, 3, 3, 3])
    begun = state = with_lengths(states(), lengths)
    broken = jax.tree.map(np.copy, state.params)
    for leaf in jax.tree.leaves(broken):
        leaf[5] = np.nan  # at once
    state = state._replace(params=broken)
    step = independent(until_its_end(parts()[1]), make_mesh(8))
    moved, states_seen = [], [state]
    for number in range(STEPS):
        batch = batches(number)
        if number == 1:
            batch.valid[6] = False  # 0 nats / 0 tokens, and the next batch would be finite
        index = np.full(K, number)
        state, _, moves = jax.device_get(step(state, batch, keys(number), index, lengths))
        moved.append(moves)
        states_seen.append(state)
    expected = np.arange(STEPS)[:, None] < np.array([3, 1, 2, 3, 3, 0, 1, 3])[None]
    np.testing.assert_array_equal(np.array(moved), expected)
    assert state.step.tolist() == [3, 1, 2, 3, 3, 0, 1, 3]
    for run, length in ((1, 1), (2, 2), (5, 0), (6, 1)):
        for late, then in zip(
            jax.tree.leaves(one_of(state, run)),
            jax.tree.leaves(one_of(states_seen[length], run)),
            strict=True,
        ):
            np.testing.assert_array_equal(late, then)
    for run, length in ((0, 3), (2, 2)):
        by_itself = one_of(begun, run)
        for number in range(length):
            by_itself, _ = single()(by_itself, one_of(batches(number), run), key_of(number, run))
        assert_close(one_of(state, run), by_itself)


def with_lengths(state, lengths):
    changed = jax.vmap(lambda state, n: with_hyperparameters(state, num_steps=n))
    return jax.device_get(jax.jit(changed)(state, lengths))
