"""`experiments.compile_tpu`: its programs compile here too; for TPUs where libtpu is installed."""

import copy
import dataclasses
import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console
from test_picture_training import CONFIG as PICTURES

import experiments
from dfm_jax.models.sizes import num_parameters
from dfm_jax.parallel import Collective, collectives, count_by_kind
from experiments.language import config as language_config
from experiments.lib.programs import programs, study_step, system_step
from experiments.systems.compile_tpu import __main__ as compile_tpu
from experiments.systems.compile_tpu import config as compile_config
from experiments.systems.compile_tpu import report
from experiments.systems.compile_tpu.whole_systems import ARMS

NAMES = (
    "expert step, shard_map",
    "expert sampler, shard_map",
    "expert step, pmap",
    "expert sampler, pmap",
    "expert × data step",
    "dense step, data-parallel",
    "dense step, sharded",
    "mixing step",
)
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))


def test_without_libtpu_it_says_what_to_install_and_succeeds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert compile_tpu.main(["--out", str(tmp_path)]) == 0
    assert "skipped: libtpu is not installed: run `make install-tpu`" in capsys.readouterr().out
    assert "make install-tpu" in json.loads((tmp_path / "result.json").read_text())["skipped"]


def test_an_unknown_number_of_topologies_is_refused(tmp_path):
    assert compile_tpu.main(["--topologies", "9", "--out", str(tmp_path)]) == 2


def test_the_programs_are_known_by_name_and_allocate_nothing():
    found = programs(jax.devices())
    assert tuple(found) == NAMES
    leaves = jax.tree.leaves([program.shapes for program in found.values()])
    assert {type(leaf) for leaf in leaves} == {jax.ShapeDtypeStruct}


def test_an_odd_number_of_devices_is_refused():
    with pytest.raises(ValueError, match="`devices` must hold an even number"):
        programs(jax.devices()[:3])


def test_what_leaves_an_expert_is_counted():
    inside = Collective("all-reduce", PAIRS, 4)
    outside = Collective("all-reduce", ((0, 2),), 4)
    everywhere, away = Collective("all-reduce", (), 4), Collective("send", (), 4)
    found = (inside, outside, everywhere, away)
    assert compile_tpu.across_experts("expert × data step", found, 8) == 3
    assert compile_tpu.across_experts("expert step, pmap", found, 8) == 4
    assert compile_tpu.across_experts("dense step, sharded", found, 8) is None
    one = [SimpleNamespace(slice_index=0)] * 4
    two = [*one, SimpleNamespace(slice_index=1)]
    assert [compile_tpu.crosses(each, two) for each in found] == [False, False, False, True]
    assert not any(compile_tpu.crosses(each, one) for each in found)


ROWS = (
    ("v5e:2x4", "expert step, shard_map", {}, 0, 0),
    ("v5e:2x2 × 2", "expert × data step", {"all-reduce": 2}, 0, 0),
    ("v5e:2x2 × 2", "dense step, sharded", {"send": 1, "recv": 1}, None, 2),
)


@pytest.mark.parametrize(
    ("number", "change", "claim"),
    [
        (0, {"collectives": {"all-gather": 1}}, "experts, one a chip: collectives"),
        (1, {"across_experts": 1}, "experts: exchanges that leave an expert"),
        (1, {"across_slices": 1}, "experts: exchanges between slices"),
        (1, {"collectives": {}}, "falsifier: collectives inside an expert"),
        (2, {"across_slices": 0}, "falsifier: exchanges of dense and mixing between slices"),
    ],
)
def test_each_claim_can_fail(number, change, claim):
    names = ("topology", "program", "collectives", "across_experts", "across_slices")
    rows = [dict(zip(names, row, strict=True)) for row in ROWS]
    rows.append({"topology": "v4:2x2x2", "program": "expert step, pmap", "skipped": "refused"})
    assert all(verdict.passed for verdict in compile_tpu.verdicts_of(rows))
    rows[number] |= change
    assert [v.claim for v in compile_tpu.verdicts_of(rows) if not v.passed] == [claim]


def test_each_claim_of_a_whole_system_can_fail():
    row = {"collectives": {}, "across_experts": None}
    rows = [
        {"topology": "v5e:2x2", "program": "expert", "across_slices": 0, "share_of_memory": 0.9},
        {"topology": "v5p:2x2 × 2", "program": "a", "across_slices": 4, "share_of_memory": 0.2},
    ]
    rows = [row | one for one in rows]
    assert all(verdict.passed for verdict in compile_tpu.verdicts_of(rows))
    rows[0]["share_of_memory"], rows[1]["across_slices"] = 1.01, 0
    assert [verdict.passed for verdict in compile_tpu.verdicts_of(rows)] == [False, True, False]


@pytest.mark.parametrize("name", ARMS)
def test_the_chips_of_an_arm_divide_its_rows(name):
    arm, config = ARMS[name], ARMS[name].config
    dims = [int(size) for size in arm.topology.name.partition(":")[2].split("x")]
    chips = math.prod(dims) * arm.topology.num_slices
    assert config.batch_size // config.num_micro_batches % chips == 0
    assert arm.topology.name.partition(":")[0] in compile_tpu.MEMORY
    assert (arm.topology.num_slices == 1) == name.endswith("expert")


def test_an_unknown_arm_is_refused(tmp_path, capsys):
    args = ["--preset", "systems", "--systems", "llava", "--out", str(tmp_path)]
    assert compile_tpu.main(args) == 2
    rule = "Each of `systems` must be one of llava-1.5-7b, expert; llava-1.5-7b, dense"
    assert rule in capsys.readouterr().err
    compile_config.check_config(compile_config.PRESETS["systems"])


@pytest.mark.slow
def test_the_update_of_a_system_is_split_over_all_devices():
    """Frozen, packed, in micro-batches: every device sends, and holds a part of the state."""
    optimizer = dataclasses.replace(PICTURES.optimizer, freeze=("vision_tower",))
    config = dataclasses.replace(PICTURES, optimizer=optimizer, batch_size=16, num_micro_batches=2)
    fn, shapes = system_step(config, jax.devices())
    placed = jax.tree.leaves(shapes[0].params)
    assert {leaf.dtype for leaf in placed} == {jnp.dtype("float32")}
    compiled = jax.jit(fn, donate_argnums=(0,)).lower(*shapes).compile()
    assert count_by_kind(collectives(compiled))["all-gather"] >= 1
    whole = sum(leaf.size for leaf in jax.tree.leaves(shapes[0])) * 4
    given = compiled.memory_analysis().argument_size_in_bytes
    batch = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes[1])) // 8
    assert 0.9 * whole / 8 <= given - batch <= whole / 4  # an argument that is not used is dropped


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_programs_compile_for_this_machine(name):
    fn, shapes = programs(jax.devices())[name]
    found = collectives(jax.jit(fn).lower(*shapes).compile())
    if name == "expert × data step":
        assert count_by_kind(found)["all-reduce"] >= 1
        assert all(one.groups and set(one.groups) <= set(PAIRS) for one in found)
    elif name.startswith("expert"):
        assert found == ()
    else:
        assert count_by_kind(found)["all-reduce"] >= 1


def test_the_presets_for_accelerators_are_as_large_as_they_say():
    for preset, least, most in (("tpu", 120e6, 130e6), ("tpu-1b", 1.0e9, 1.2e9)):
        member = language_config.member_config(language_config.PRESETS[preset], 1000)
        assert least < num_parameters(member.model) < most
        assert member.model.scan_layers
        assert member.model.remat


@pytest.mark.slow
def test_the_update_of_a_study_says_nothing_to_other_devices():
    """What `--preset tpu` runs, at a small size: scanned, recomputed, bfloat16, micro-batches."""
    small = dataclasses.replace(
        language_config.PRESETS["tpu"],
        num_tokens=300,
        width=32,
        num_layers=2,
        num_heads=2,
        num_positions=16,
        batch_size=4,
        micro_batches=2,
    )
    member = language_config.member_config(small, 10)
    assert member.num_micro_batches == 2
    fn, shapes = study_step(member, jax.devices())
    assert collectives(jax.jit(fn).lower(*shapes).compile()) == ()


def test_an_unknown_preset_of_language_is_refused(tmp_path, capsys):
    assert compile_tpu.main(["--language", "quick", "--out", str(tmp_path)]) == 2
    assert "Each of `language` must be one of tpu, tpu-1b" in capsys.readouterr().err


@pytest.mark.slow
def test_the_programs_compile_for_a_tpu(tmp_path):
    """Two slices of v5e: experts send nothing between them, the dense model does."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip(compile_tpu.MISSING)
    config = dataclasses.replace(compile_tpu.Config(), out=tmp_path)
    assert compile_tpu.run(config, Console(quiet=True))
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert {row["topology"] for row in rows} >= {"v5e:2x4", "v4:2x2x2", "v5e:2x2 × 2"}


def test_two_results_are_beside_each_other_where_they_differ(tmp_path, capsys):
    """What the README shows of the two versions; and a collective more is a line of the table."""
    results = Path(experiments.__file__).parent / "results"
    paths = [str(results / f"{name}.json") for name in ("compile_tpu", "compile_tpu_newest")]
    assert report.main(paths) == 0
    table = capsys.readouterr().out.strip()
    assert table in (results.parent / "README.md").read_text(encoding="utf-8")
    lowest = json.loads(Path(paths[0]).read_text(encoding="utf-8"))
    count = len(lowest["rows"])
    rest = f"{count} of {count} programs: no difference, and memory within 5 %"
    assert report.beside(lowest, lowest).splitlines()[2:] == [f"| {rest} | | | | | |"]
    changed = copy.deepcopy(lowest)
    changed["rows"][0]["collectives"] = {"all-reduce": 1}
    assert "| none → 1 all-reduce | 0 |" in report.beside(lowest, changed)
    assert report.main([paths[0], str(results / "equality.json")]) == 2
    assert "Both files must be what" in capsys.readouterr().err


def test_the_readme_has_the_memory_of_whole_systems_that_was_committed():
    results = Path(experiments.__file__).parent / "results"
    found = json.loads((results / "compile_tpu_systems.json").read_text(encoding="utf-8"))
    readme = (results.parent / "README.md").read_text(encoding="utf-8")
    assert all(verdict["passed"] for verdict in found["verdicts"])
    for row in found["rows"]:
        preset, run = row["program"].split(", ")
        (line,) = [
            line
            for line in readme.splitlines()
            if line.startswith(f"| {preset}, {row['size']} | {run} |")
        ]
        memory = compile_tpu.MEMORY[row["topology"].partition(":")[0]]
        peak, formula = row["peak_bytes"] / 1e9, row["memory_by_formula"] / 1e9
        share = f"{peak:.1f} of {memory / 1e9:.3g}"
        assert line.endswith(f"| {row['across_slices']} | {share} | {formula:.1f} |")
        assert f" | {sum(row['collectives'].values())} | " in line
