"""`experiments.training_speed`: its arithmetic, and our side of the work."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from dfm_jax.models import TransformerConfig, flops_per_token, transformer
from experiments.systems.training_speed import __main__ as study
from experiments.systems.training_speed import jax_side as ours
from experiments.systems.training_speed import sides

PLAN = sides.Plan("python", ("torch",), 1, 4, 0)
TINY = sides.Size(32, 2, 2, 16, 8, 2, steps=1)


def test_the_ratio_is_of_medians_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    load = rng.uniform(1, 3, 40)  # falls on both sides of a round
    theirs, mine = load * rng.normal(3, 0.05, 40), load * rng.normal(2, 0.05, 40)
    estimate, low, high = study.ratio(theirs, mine, seed=0)
    assert estimate == np.median(theirs) / np.median(mine)
    assert low < 1.5 < high
    assert high - low < 0.2
    # the falsifier: rounds drawn apart for either side would not share their load
    index = rng.integers(40, size=(2, 10_000, 40))
    apart = np.median(theirs[index[0]], axis=1) / np.median(mine[index[1]], axis=1)
    assert np.ptp(np.quantile(apart, [0.025, 0.975])) > 2 * (high - low)


@pytest.mark.parametrize("size", sides.SIZES, ids=lambda size: size.name)
def test_the_products_are_the_flops_without_attention(size):
    model = TransformerConfig(**size.model)
    tokens = size.batch_size * size.num_positions
    attention = 4 * size.num_positions * model.width * model.num_layers
    expected = 3 * tokens * (flops_per_token(model, size.num_positions) - attention)
    assert sum(2 * m * k * n for m, k, n in sides.products(model, size)) == expected


def test_a_verdict_fails_where_losses_part_or_time_is_lost():
    row = {"side": "torch", "ratio": 1.1, "loss_gap": 1e-6}
    rows = [row | {"allocator": name} for name in sides.ALLOCATORS]
    assert [v.passed for v in study.verdicts_of(rows)] == [True, True, True]
    rows[2] |= {"ratio": 0.94}  # of our side as commands start it
    assert [v.passed for v in study.verdicts_of(rows)] == [True, False, True]
    rows[1] |= {"ratio": 0.8}
    assert [v.passed for v in study.verdicts_of(rows)] == [True, False, False]
    rows[0] |= {"loss_gap": 0.1}
    assert [v.passed for v in study.verdicts_of(rows)] == [False, False, False]
    before = {"side": "before", "allocator": sides.AS_COMMANDS_START, "loss_gap": 0.0}
    for ratio, passed in ((1.62, True), (1.61, False)):
        assert study.verdicts_of([*rows, before | {"ratio": ratio}])[-1].passed == passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch_python": ""}, "`torch_python` must be given"),
        (
            {"peers": ("tf",)},
            r"`peers` must hold torch, torch.compile or both; got peers = \('tf',\)",
        ),
        (
            {"before": "no-such"},
            "`before` must be a commit of this checkout; got before = 'no-such'",
        ),
        ({"sizes": 4}, r"`sizes` must lie in \[1, 3\]; got sizes = 4"),
        ({"num_blocks": 3}, "`num_blocks` must be at least 4; got num_blocks = 3"),
        ({"num_threads": 10**6}, "`num_threads` must lie in"),
    ],
)
def test_a_bad_option_is_refused(change, message):
    config = dataclasses.replace(study.Config(torch_python="python"), **change)
    with pytest.raises(ValueError, match=message):
        study.check_config(config)


def test_a_python_without_torch_is_refused():
    with pytest.raises(ValueError, match="`torch_python` must be a Python that can import torch"):
        study.peer_versions("false")


def test_a_side_that_ends_is_named(tmp_path):
    side = sides.Trainer("torch", "glibc's default", tmp_path, PLAN._replace(torch_python="true"))
    with pytest.raises(ValueError, match="The side `torch` has ended with status 0"):
        side.told("step", 1)


@pytest.mark.slow
def test_our_side_does_what_it_says(tmp_path):
    sides.write_work(tmp_path, TINY, PLAN)
    phases = ours.phases(tmp_path)
    network = transformer(TransformerConfig(**TINY.model))
    params = ours.unflattened(np.load(tmp_path / "params.npz"))
    batch = np.load(tmp_path / "tokens.npy")[0]
    before = np.concatenate([batch[:, :1], batch[:, :-1]], axis=1)
    log_probs = jax.nn.log_softmax(jax.vmap(network.apply, in_axes=(None, 0))(params, before))
    paid = np.take_along_axis(np.asarray(log_probs), batch[:, :, None], axis=-1)[:, 1:]
    np.testing.assert_allclose(phases["forward"](), -paid.mean(), rtol=1e-5)
    losses = [phases["step"]() for _ in range(40)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1  # it learns
    weights = np.load(tmp_path / "weights.npz")
    assert weights["model.layers.1.mlp.down_proj.weight"].shape == (32, 96)
    assert json.loads((tmp_path / "work.json").read_text())["kv_width"] == 32
