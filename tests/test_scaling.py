"""`experiments.scaling`: its formulas by hand, and against what compiled programs send."""

import dataclasses
import json

import jax
import pytest
from rich.console import Console

from dfm_jax.models import num_parameters
from dfm_jax.parallel import Collective
from experiments.systems.scaling import __main__ as scaling
from experiments.systems.scaling import compiled as scaling_compiled
from experiments.systems.scaling.costs import (
    Chip,
    Rules,
    all_reduce,
    cost,
    gather,
    memory,
    sharded_cost,
    update_traffic,
)
from experiments.systems.scaling.crossover import crossovers, gains

CHIP = Chip(flops=1e12, memory=1e9, pod=4, fast=1e9, slow=1e8)
RULES = Rules(length=32, efficiency=0.5, usable=1.0, gradient_bytes=4, gather_bytes=2)
MODEL = scaling_compiled.MODEL
SIZE = num_parameters(MODEL)


def test_the_models_have_the_sizes_that_their_makers_state():
    sizes = {name: num_parameters(model) for name, model in scaling.MODELS.items()}
    assert sizes["7b"] == 6_738_415_616  # Llama 2
    assert sizes["34b"] == 33_743_970_304  # Code Llama
    assert sizes["70b"] == 68_976_648_192  # Llama 2
    assert 1.0e9 < sizes["1b"] < 1.01e9


def test_a_ring_inside_a_pod():
    assert all_reduce(800, 4, 8) == (2 * 3 / 4 * 800, 0)
    assert gather(800, 8, 8) == (7 / 8 * 800, 0)
    assert gather(800, 1, 8) == (0, 0)


def test_between_pods_goes_what_a_chip_of_a_pod_holds():
    """8 chips in 2 pods of 4: in each pod a quarter a chip, of which half comes from the other."""
    assert all_reduce(800, 8, 4) == (2 * 3 / 4 * 800, 2 * 1 / 2 * 800 / 4)
    # all bytes that enter a pod over the slow network: the other pod's half, twice
    assert 4 * all_reduce(800, 8, 4).slow == 800


@pytest.mark.parametrize(("name", "value"), [("pod", 0), ("fast", 0.0), ("memory", -1.0)])
def test_an_impossible_chip_is_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must"):
        dataclasses.replace(CHIP, **{name: value})


def test_a_span_that_fills_no_whole_pods_is_refused():
    with pytest.raises(ValueError, match="`span` must fill whole pods of 4 chips; got span = 6"):
        gather(800, 6, 4)


def test_an_update_moves_the_gradient_or_three_times_the_model():
    whole = update_traffic(MODEL, 8, 1, 16, 8, RULES)
    assert whole == (2 * 7 / 8 * 4 * SIZE, 0)  # whatever the number of micro-batches
    cut = update_traffic(MODEL, 8, 8, 3, 8, RULES)
    assert cut == (3 * 7 / 8 * (2 * 2 + 4) * SIZE, 0)


def test_copies_of_a_cut_state_sum_their_shards():
    """Two shards inside each pod of 4: the sum runs over 2 copies in a pod and over 2 pods."""
    found = update_traffic(MODEL, 8, 2, 1, 4, RULES)
    inside, shard = 1 / 2 * (2 * 2 + 4) * SIZE, 4 * SIZE / 2
    assert found == (inside + 2 * 1 / 2 * shard, 2 * 1 / 2 * shard / 2)


def test_a_cut_across_pods_sends_over_the_slow_network_at_every_gather():
    inside = update_traffic(MODEL, 8, 4, 4, 4, RULES)
    across = update_traffic(MODEL, 8, 8, 4, 4, RULES)
    assert inside.slow == 2 * 1 / 2 * 4 * SIZE / 4
    assert across.slow == 4 * 1 / 2 * (2 * 2 + 4) * SIZE / 4


def test_memory_falls_with_the_shards_and_with_the_micro_batch():
    state = [memory(MODEL, 0, shards, RULES) for shards in (1, 2, 4)]
    assert state[1] - state[2] == 16 * SIZE / 2 - 16 * SIZE / 4
    assert state[0] > 16 * SIZE
    per_token = memory(MODEL, 2, 1, RULES) - memory(MODEL, 1, 1, RULES)
    assert per_token > 2 * 4 * MODEL.num_tokens


def test_micro_batches_are_as_few_as_fit():
    one = memory(MODEL, 32, 1, RULES)
    tight = dataclasses.replace(CHIP, memory=one)
    found = cost(MODEL, 4 * 32, 1, 1, tight, RULES)
    assert (found.micro_batches, found.fits) == (4, True)
    assert cost(MODEL, 4 * 32, 1, 1, CHIP, RULES).micro_batches == 1
    tighter = dataclasses.replace(CHIP, memory=one - 1)
    assert not cost(MODEL, 4 * 32, 1, 1, tighter, RULES).fits


def test_time_without_overlap_is_the_sum_and_with_it_the_largest():
    found = cost(MODEL, 8 * 32, 8, 1, CHIP, RULES)
    assert found.in_turn == found.compute + found.fast + found.slow
    assert found.at_once == max(found.compute, found.fast, found.slow)
    assert found.slow == found.traffic.slow / CHIP.slow
    assert found.fast == found.traffic.fast / CHIP.fast


def test_the_sharded_layout_is_the_quickest_that_fits():
    found = sharded_cost(MODEL, 8 * 32, 8, CHIP, RULES)
    others = [cost(MODEL, 8 * 32, 8, shards, CHIP, RULES) for shards in (2, 4, 8)]
    assert found.in_turn == min(one.in_turn for one in others)
    small = dataclasses.replace(CHIP, memory=memory(MODEL, 32, 8, RULES))
    assert sharded_cost(MODEL, 8 * 32, 8, small, RULES).shards == 8


def test_less_than_a_sequence_a_chip_is_refused():
    with pytest.raises(ValueError, match="`tokens` must give each of 8 chips a sequence of 32"):
        cost(MODEL, 7 * 32, 8, 1, CHIP, RULES)


# ── the variants ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def rows():
    return list(scaling.rows_of(scaling.PRESETS["standard"]))


def test_all_variants_compute_as_much(rows):
    """Equal tokens and equal FLOPs per token: what differs is traffic and memory alone."""
    for row in rows:
        same = [r for r in rows if all(r[k] == row[k] for k in ("kind", "size", "chips"))]
        assert {f"{r['compute_s']:.9g}" for r in same} == {f"{row['compute_s']:.9g}"}


def test_independence_alone_gains_little_and_a_larger_batch_gains_k(rows):
    """What the README says: the traffic of an update falls with the updates, not with the chips."""

    def row(kind, size, chips, variant, layout="data-parallel"):
        keys = {"kind": kind, "size": size, "chips": chips, "variant": variant, "layout": layout}
        (found,) = (r for r in rows if all(r[k] == v for k, v in keys.items()))
        return found

    dense = row("v5p", "1b", 4096, "dense")
    shared = row("v5p", "1b", 4096, "experts, shared batch")
    own = row("v5p", "1b", 4096, "experts, dense model's batch")
    assert 0.99 < shared["fast_gb"] / dense["fast_gb"] < 1
    assert own["fast_gb"] == pytest.approx(shared["fast_gb"] / 8)
    # where an expert fits into a pod, nothing crosses
    assert row("v5e", "1b", 2048, "experts, shared batch")["slow_gb"] == 0
    assert row("v5e", "1b", 2048, "dense")["slow_gb"] > 0


def test_experts_need_eight_times_the_chips(rows):
    """A whole model for each: what they do not give."""
    for entry in crossovers(rows):
        dense, experts = entry["dense_fits_from"], entry["experts_fit_from"]
        assert experts is None or experts >= dense
        if (entry["kind"], entry["size"]) == ("h100", "70b"):
            assert (dense, experts) == (32, 256)


def test_a_crossover_is_where_experts_are_ahead_for_good():
    row = {"kind": "a", "size": "b", "quickest": True, "at_once_s": 1.0}
    dense = [1.2, 1.0, 1.2, 1.3]
    rows = [
        row
        | {"chips": n, "variant": variant, "in_turn_s": t, "sites_s": 1.15 * (variant == "dense")}
        for n, time in zip((1, 2, 4, 8), dense, strict=True)
        for variant, t in (("dense", time), ("experts", 1.0))
    ]
    (found,) = crossovers(rows)
    assert found["in_turn_ahead_from"] == 4
    assert found["at_once_ahead_from"] is None
    assert found["apart_in_turn_ahead_from"] == found["apart_at_once_ahead_from"] == 1
    assert [gain["in_turn"] for gain in gains(rows)] == dense
    assert [gain["apart_at_once"] for gain in gains(rows)] == [1.15] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kinds": ("v6",)},
            r"`kinds` must hold at least one of v5e, v5p, h100, .*; got kinds = \('v6',\)",
        ),
        (
            {"num_experts": 3},
            "`num_experts` must divide 8, the smallest number of chips; got num_experts = 3",
        ),
        ({"tokens_per_step": 2**22}, "`tokens_per_step` must be a multiple of 8388608"),
        ({"efficiency": 0.0}, r"`efficiency` must lie in \(0, 1\]; got efficiency = 0"),
        ({"site_rate": 0.0}, r"`site_rate` must lie in \(0, inf\); got site_rate = 0"),
    ],
)
def test_a_bad_option_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        scaling.check_config(dataclasses.replace(scaling.Config(), **change))


# ── what compiled programs send ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "num_bytes"),
    [("all-reduce", 1.5), ("all-gather", 0.75), ("reduce-scatter", 3), ("send", 1)],
)
def test_a_ring_of_four_sends(kind, num_bytes):
    group = (0, 1, 2, 3)
    assert scaling_compiled.sent(Collective(kind, (group,), 100), 8) == 100 * num_bytes


@pytest.mark.slow
def test_the_study_holds_and_the_formulas_are_those_of_compiled_programs(tmp_path):
    """To the byte: nothing for experts, the gradient for the dense model, every extra byte by
    name.
    """
    config = dataclasses.replace(scaling.Config(), out=tmp_path)
    assert scaling.run(config, Console(quiet=True))
    result = json.loads((tmp_path / "result.json").read_text())
    rows = {row["program"]: row for row in result["summary"]["compiled"]}
    assert rows["experts, one a device"]["sent"] == 0
    assert rows["dense, data-parallel"]["sent"] == 2 * 7 / 8 * (4 * SIZE + 8)
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert len(jax.devices()) == 8
