"""Equal cost: what training costs, and steps that are divided so that it costs the same."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_launch import parsed

from dfm_jax.cli.launch import Members
from dfm_jax.launch import Job, data_loads
from dfm_jax.training.equal_cost import (
    cost_lines,
    cost_warning,
    divided_steps,
    member_cost,
    training_cost,
)
from dfm_jax.training.plan import plan_of
from dfm_jax.training.presets import load_config


def test_divided_steps_sum_to_the_steps():
    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = rng.dirichlet(np.ones(5))
        steps = divided_steps(weights, 97)
        assert steps.sum() == 97
        assert (steps >= 1).all()
        if (weights * 97 > 1).all():
            assert (abs(steps - weights * 97) < 1).all()
    assert divided_steps(np.array([0.999, 0.001]), 10).tolist() == [9, 1]
    with pytest.raises(ValueError, match="`num_steps` must be at least 2; got num_steps = 1"):
        divided_steps(np.array([0.5, 0.5]), 1)
    with pytest.raises(
        ValueError, match="`weights` must be non-negative and sum to 1; got weights = "
    ):
        divided_steps(np.array([0.5, 0.6]), 10)


# ── launch --total-steps ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def parts(tmp_path) -> Path:
    """Three experts with 100, 300 and 200 bytes each, in two files."""
    for number, size in enumerate((100, 300, 200)):
        folder = tmp_path / "parts" / f"expert_{number:03d}"
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("a" * (size - 10))
        (folder / "b.txt").write_text("b" * 10)
    return tmp_path / "parts"


def steps_of(jobs: list[Job]) -> dict[str, tuple[str, ...]]:
    """The changes of the config of each member."""
    return {job.name: parsed(job.arguments).set for job in jobs}


def test_the_total_of_the_steps_is_divided_by_the_shares_of_the_data(parts):
    given = {"config": "tiny", "data": parts, "folder": Path("r"), "set": ("seed=1",)}
    jobs = Members(**given, dense=True, total_steps=100).jobs()
    assert steps_of(jobs) == {
        "expert_000": ("seed=1", "num_steps=17"),
        "expert_001": ("seed=1", "num_steps=50"),
        "expert_002": ("seed=1", "num_steps=33"),
        "dense": ("seed=1", "num_steps=100"),
    }
    (one,) = Members(**given, experts=(1,), total_steps=100).jobs()
    assert parsed(one.arguments).set == ("seed=1", "num_steps=50")  # of all, not of those chosen
    without = Members(**given, dense=True).jobs()
    assert set(steps_of(without).values()) == {("seed=1",)}


def test_the_loads_of_a_partition_are_those_of_its_manifest(parts):
    manifest = {"sizes": [2, 2, 2], "token_loads": [30, 10, 10.0]}
    (parts / "manifest.json").write_text(json.dumps(manifest))
    assert data_loads(parts) == [30.0, 10.0, 10.0]
    given = {"config": "tiny", "data": parts, "folder": Path("r")}
    jobs = Members(**given, total_steps=7).jobs()
    assert list(steps_of(jobs).values()) == [("num_steps=4",), ("num_steps=2",), ("num_steps=1",)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_steps": 2}, r"`total_steps` must be at least 3; got total_steps = 2"),
        ({"set": ("num_steps=5",)}, r"`set` must not give num_steps if `total_steps` is given"),
        ({"data": Path("nowhere")}, r"`data` must (hold the folders|be a folder of this machine)"),
        ({"data": Path("nowhere"), "experts": (0,)}, r"`data` must be a folder of this machine"),
    ],
)
def test_a_total_that_cannot_be_divided_is_refused(parts, change, message):
    given = {"config": "tiny", "data": parts, "folder": Path("r"), "total_steps": 100} | change
    with pytest.raises(ValueError, match=message):
        Members(**given).jobs()


def test_an_expert_that_has_nothing_to_read_is_refused(parts):
    for path in (parts / "expert_001").iterdir():
        path.write_text("")
    with pytest.raises(ValueError, match=r"must have something to read; got loads\[1\] = 0\.0"):
        data_loads(parts)


# ── tokens and FLOPs ────────────────────────────────────────────────────────────────────────────


def test_the_cost_of_a_member_is_that_of_its_plan():
    config = load_config("tiny", ["batch_size=3", "num_positions=10"])
    cost = member_cost("expert_000", config, 7)
    assert cost["tokens"] == 7 * 30 == 7 * plan_of(config).tokens
    assert cost["flops"] == 7 * plan_of(config).flops
    own = load_config("tiny", ["task=a:b"])
    assert member_cost("dense", own, 7)["flops"] is None


def _costs(*steps: int):
    config = load_config("tiny")
    return [member_cost(f"expert_{k:03d}", config, step) for k, step in enumerate(steps)]


@pytest.mark.parametrize(
    ("steps", "warns"), [((400, 600), False), ((400, 609), False), ((400, 612), True)]
)
def test_a_warning_beyond_one_percent(steps, warns):
    dense, *experts = _costs(1000, *steps)
    found = training_cost(dense, experts)
    assert found["ratios"]["tokens"] == pytest.approx(sum(steps) / 1000)
    assert (found["warning"] is not None) == warns
    assert ("equal within 1 %" in cost_lines([dense], experts)[-1]) == (not warns)


def test_the_warning_says_how_many_times():
    dense, *experts = _costs(100, 100, 100, 100)
    said = cost_lines([dense], experts)
    assert said[0].startswith(f"3 experts: {3 * dense['tokens']:,} tokens, ")
    assert "the experts had 3 times the tokens and 3 times the FLOPs of the dense model" in said[2]
    assert "--total-steps" in said[2]
    assert "no dense model" in cost_lines([], experts)[-1]
    assert cost_lines([dense], [])[0].startswith("dense model: ")


@pytest.mark.slow
def test_a_launch_leaves_the_devices_to_its_members(parts):
    """It divides steps and counts what they cost, and starts no jax of its own."""
    code = f"""
from pathlib import Path
from dfm_jax.cli.launch import Local, Members
members = Members(config="tiny", data=Path({str(parts)!r}), folder=Path("r"), total_steps=9)
assert len(members.jobs()) == 3
Local(members=members).cost_lines()
from dfm_jax.training.equal_cost import member_cost
from dfm_jax.training.presets import load_config
assert member_cost("dense", load_config("tiny"), 3)["flops"] > 0
from jax._src import xla_bridge; print(len(xla_bridge._backends))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_what_is_not_known_is_not_compared():
    dense, *experts = _costs(100, 50, 50)
    unknown = [experts[0] | {"flops": None}, experts[1]]
    found = training_cost(dense, unknown)
    assert (found["experts"]["flops"], found["ratios"]["flops"]) == (None, None)
    assert cost_warning({"tokens": 1.0, "flops": None}) is None
    assert "FLOPs not known" in cost_lines([dense], unknown)[0]
