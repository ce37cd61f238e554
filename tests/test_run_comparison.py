"""compare-runs: the numbers against evaluate and by hand, the refusals, the page."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dfm_jax import cli
from dfm_jax.comparison.page import comparison_page
from dfm_jax.comparison.report import (
    ensemble_of,
    group_table,
    training_table,
    variant,
    verdict_sentences,
)
from dfm_jax.data.tokens import byte_tokenizer
from dfm_jax.training import compared_rows as compared_rows_module
from dfm_jax.training.batches import Batch
from dfm_jax.training.compared_rows import (
    ComparedRows,
    TokenLogProbs,
    check_comparable,
    compared_rows,
    document_groups,
    parts_of,
    token_log_probs,
)
from dfm_jax.training.config import to_json
from dfm_jax.training.ensemble import read_ensemble
from dfm_jax.training.evaluation import evaluate_ensemble, evaluate_member, load_member
from dfm_jax.training.examples import HeldOut
from dfm_jax.training.members import write_member
from dfm_jax.training.presets import load_config
from dfm_jax.training.run_comparison import ComparisonOptions, _pieces, compare_run, example_texts
from dfm_jax.training.tasks import task_of
from experiments.lib.corpora import write_texts

SMALL = [
    *("--config", "tiny", "--log-every", "5", "--save-every", "20", "--evaluate-every", "10"),
    *("--set", "model.width=8", "model.num_heads=2", "model.num_layers=1", "model.ffn_width=8"),
    *("num_positions=16", "batch_size=4", "held_out=0.4"),
]
OPTIONS = ComparisonOptions(margin=0.02, prefix=4, num_draws=500)


def train(run: Path, data: Path, steps: int, *more: str) -> None:
    words = ["train", "--run", str(run), "--data", str(data), *SMALL, f"num_steps={steps}", *more]
    assert cli.main(words) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Forty documents in the files of a partition, each with a domain and a path as its id."""
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder / "all")
    rows = []
    for number, path in enumerate(sorted((folder / "all").iterdir())):
        turn = {"from": "document", "value": path.read_text()}
        domain = ("law", "sea")[number % 3 // 2]
        row = {"id": f"f{number % 2}/{path.name}", "domain": domain, "conversations": [turn]}
        rows.append((number % 3 // 2, json.dumps(row) + "\n"))
    parts = folder / "parts"
    for k in range(2):
        (parts / f"expert_{k:03d}").mkdir(parents=True)
        own = "".join(line for part, line in rows if part == k)
        (parts / f"expert_{k:03d}" / "rows.jsonl").write_text(own)
    (parts / "dense.jsonl").write_text("".join(line for _, line in rows))
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A dense model of 30 steps, and two experts of 20 and 10."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(folder, data / "parts", 30)
    for expert, steps in ((0, 20), (1, 10)):
        train(folder, data / "parts", steps, "--expert", str(expert))
    assert cli.main(["make-ensemble", "--run", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def found(run) -> dict:
    return compare_run(run, options=OPTIONS)


# ── the numbers ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_dense_model_and_ensemble_lose_what_evaluate_says(run, found):
    dense = evaluate_member(run / "dense")
    assert found["dense"] == pytest.approx(dense.per_byte[0], rel=1e-6)
    assert found["documents"] == dense.num_documents
    ensemble = evaluate_ensemble(run, read_ensemble(run / "ensemble.json"))
    row = ensemble_of(found)
    assert row["nll"] == pytest.approx(ensemble.per_byte[0], rel=1e-6)
    assert row["minus"]["dense"][0] == pytest.approx(row["nll"] - found["dense"], abs=1e-12)


@pytest.mark.slow
def test_the_account_sums_to_the_difference_and_its_own_term_is_that_of_the_experts(run, found):
    for row in found["gates"]:
        total = sum(row["terms"].values())
        assert total == pytest.approx(row["minus"]["dense"][0], abs=1e-12)
    assert found["residuals"]["sum"] < 1e-10
    assert found["residuals"]["b1"] < 1e-10
    own = [evaluate_member(run / name) for name in found["experts"]]
    groups = variant(found, "oracle", "top-1")["groups"]["expert"]
    losses = [groups[name]["nll"] for name in found["experts"]]
    assert losses == pytest.approx([one.per_byte[0] for one in own], rel=1e-6)
    assert ensemble_of(found)["terms"]["truncation"] == 0
    assert ensemble_of(found)["terms"]["gate"] == 0


@pytest.mark.slow
def test_every_gate_by_hand(run, data, found):
    """Static, last token, prefix and Bayes at each token, from the experts' own tables."""
    members = [run / "dense", run / "expert_000", run / "expert_001"]
    rows = compared_rows(members[0], members[1:])
    scores = []
    for member in members:
        trained = load_member(member)
        scores.append(token_log_probs(trained.state, trained.config, rows.rows))
    log_w = read_ensemble(run / "ensemble.json").log_weights
    log_p = np.stack([one.log_probs for one in scores[1:]], axis=1)
    total = dict.fromkeys(("static", "last token", "prefix 4", "Bayes"), 0.0)
    for end, count in zip(np.cumsum(scores[0].counts), scores[0].counts, strict=True):
        states = dict.fromkeys(total, log_w)
        for t, here in enumerate(log_p[end - count : end]):
            for name, state in states.items():
                total[name] -= np.log(np.exp(state + here).sum())
            bayes = states["Bayes"] + here
            bayes = bayes - np.log(np.exp(bayes).sum())
            last = log_w + here
            states["last token"] = last - np.log(np.exp(last).sum())
            states["Bayes"] = bayes
            states["prefix 4"] = bayes if t < 4 else states["prefix 4"]
    for name, nats in total.items():
        assert variant(found, name, "full")["nll"] == pytest.approx(nats / found["size"], rel=1e-9)


@pytest.mark.slow
def test_models_of_one_shape_share_a_program(run, found):
    compared_rows_module._compiled.cache_clear()
    again = compare_run(run, options=OPTIONS)
    assert again == found
    assert compared_rows_module._compiled.cache_info().currsize == 1
    config = load_member(run / "dense").config
    assert compared_rows_module._compiled(task_of(config).losses)._cache_size() == 1


@pytest.mark.slow
def test_groups_are_the_experts_the_domains_and_the_folders(found):
    row = ensemble_of(found)
    assert list(row["groups"]) == ["expert", "domain", "folder"]
    assert set(row["groups"]["domain"]) == {"law", "sea"}
    assert set(row["groups"]["folder"]) == {"f0", "f1"}
    by_expert, by_domain = row["groups"]["expert"], row["groups"]["domain"]
    assert by_domain["law"]["nll"] == by_expert["expert_000"]["nll"]  # the parts are the domains
    assert by_domain["sea"]["minus"] == by_expert["expert_001"]["minus"]
    assert len(group_table(found, "folder")) == 3


@pytest.mark.slow
def test_what_the_training_cost(found):
    training = found["training"]
    assert [one["step"] for one in training["members"]] == [30, 20, 10]
    assert training["ratios"] == {"tokens": 1.0, "flops": 1.0}
    assert training["warning"] is None
    table = training_table(found)
    assert table[-1] == ["experts / dense", "", "1.000", "1.000"]
    assert table[1][:3] == ["dense", "30", f"{30 * 4 * 16:,}"]


@pytest.mark.slow
def test_the_gate_along_a_text_is_the_posterior(run, found):
    log_w = read_ensemble(run / "ensemble.json").log_weights
    assert [text["expert"] for text in found["texts"]] == ["expert_000", "expert_001"]
    for text in found["texts"]:
        weights = np.array(text["weights"])
        assert len(text["pieces"]) == len(weights) <= 16
        np.testing.assert_allclose(weights[0], np.exp(log_w), atol=1e-4)
        np.testing.assert_allclose(weights.sum(1), 1, atol=2e-4)


def test_the_gate_along_a_text_by_hand():
    """Also of tokens that are certain, whose logarithm in single precision may round above 0."""
    log_w, seen = np.log([0.25, 0.75]), np.array([[1e-7, 1e-7], [-1.0, -3.0], [-2.0, -0.5]])
    batch = Batch(np.array([list(b"abc")]), np.ones((1, 3), bool))
    held_out = HeldOut([batch], document=np.array([0]), num_documents=1)
    rows = ComparedRows(held_out, num_bytes=np.array([3]), part=np.array([1]), groups={})
    scores = [TokenLogProbs(x, np.array([3])) for x in (-np.ones(3), *seen.T)]
    experts = (SimpleNamespace(name="expert_000"), SimpleNamespace(name="expert_001"))
    ensemble: Any = SimpleNamespace(log_weights=log_w, experts=experts)
    (text,) = example_texts(rows, scores, ensemble, byte_tokenizer())
    joint = np.exp(log_w + np.vstack([np.zeros(2), np.cumsum(seen, axis=0)]))
    np.testing.assert_allclose(
        text["weights"], joint[:3] / joint[:3].sum(1, keepdims=True), atol=6e-5
    )
    assert text["nats"]["ensemble"] == pytest.approx(-np.log(joint[3].sum()), rel=1e-12)
    assert text["nats"]["dense"] == 3
    assert (text["expert"], text["pieces"]) == ("expert_001", ["a", "b", "c"])
    certain = [TokenLogProbs(np.full(3, 1e-7), np.array([3]))] * 3
    (text,) = example_texts(rows, certain, ensemble, byte_tokenizer())
    assert text["nats"]["ensemble"] == pytest.approx(-3e-7, rel=1e-6)


@pytest.mark.slow
def test_all_rows_of_other_data_and_another_dense_run(run, data, tmp_path, found):
    """On the whole partition, and with the dense model in a folder of its own."""
    (run / "dense").rename(run / "aside")
    try:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "dense").symlink_to(run / "aside")
        there = {"dense_run": tmp_path / "other", "data": data / "parts"}
        other = compare_run(run, options=OPTIONS, **there)
    finally:
        (run / "aside").rename(run / "dense")
    assert other["documents"] == 40 > found["documents"]
    assert other["data"] == str(data / "parts")
    assert other["residuals"]["sum"] < 1e-10


# ── the command ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_both_files(run, tmp_path, capsys, found):
    out = tmp_path / "deep" / "out"
    words = ["compare-runs", "--run", str(run), "--out", str(out), "--margin", "0.02"]
    assert cli.main([*words, "--prefix", "4", "--draws", "500"]) == 0
    said = capsys.readouterr().out
    assert verdict_sentences(found)[0] in said
    for heading in ("Each gate", "Where each difference comes from", "by domain", "FLOPs"):
        assert heading in said
    assert json.loads((out / "comparison.json").read_text()) == json.loads(json.dumps(found))
    assert (out / "comparison.html").read_text() == comparison_page(found)
    assert cli.main(["compare-runs", "--run", str(run), "--draws", "100"]) == 0
    assert (run / "comparison.html").is_file()


@pytest.mark.slow
def test_bad_runs_are_one_sentence_each(run, data, tmp_path, capsys):
    def refused(*words: str) -> str:
        assert cli.main(["compare-runs", "--draws", "50", *words]) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        return said

    assert "no expert is there" in refused("--run", str(tmp_path))
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "expert_000").symlink_to(run / "expert_000")
    assert "must lie in the folder of the run" in refused("--run", str(lone))
    (run / "dense").rename(run / "aside")
    try:
        said = refused("--run", str(run))
    finally:
        (run / "aside").rename(run / "dense")
    assert "must hold the dense model with which the experts are compared" in said
    assert "`margin` must lie in (0, inf)" in refused("--run", str(run), "--margin", "0")
    one = tmp_path / "one"
    train(one, data / "parts" / "expert_000" / "rows.jsonl", 5)
    said = refused("--run", str(run), "--dense-run", str(one))
    assert "must have held out the same documents, or they are runs of different data" in said
    longer = tmp_path / "longer"
    words = [word.replace("num_positions=16", "num_positions=8") for word in SMALL]
    command = ["train", "--run", str(longer), "--data", str(data / "parts"), *words]
    assert cli.main([*command, "num_steps=5"]) == 0
    said = refused("--run", str(run), "--dense-run", str(longer))
    assert "must have the same `config.num_positions`; got num_positions = 8" in said


# ── refusals and rows, without training ─────────────────────────────────────────────────────────


def _record(**changes) -> dict:
    config = to_json(load_config("tiny", [f"{name}={value}" for name, value in changes.items()]))
    sides = [f"{side}_{what}" for side in ("train", "held_out") for what in ("tokens", "documents")]
    digests = {f"{side}_sha256": "" for side in ("train", "held_out")}
    data = dict.fromkeys(sides, 1) | digests | {"tokenizer": "bytes"}
    return {"config": config, "data": data}


def _member(folder: Path, record: dict) -> Path:
    folder.mkdir(parents=True)
    write_member(folder, record, folder)
    return folder


def test_models_that_are_not_comparable_are_refused_by_field(tmp_path):
    dense = _member(tmp_path / "dense", _record())
    same = _member(tmp_path / "expert_000", _record(num_steps=7))
    check_comparable(dense, [same])
    other = _record()
    other["data"]["tokenizer"] = "sha256:1"
    bpe = _member(tmp_path / "expert_001", other)
    with pytest.raises(ValueError, match=r"must have the same `data\.tokenizer`; got tokenizer = "):
        check_comparable(dense, [same, bpe])
    masked = {"objective": "masked", "model.causal": "false", "model.time_conditioned": "true"}
    bound = _member(tmp_path / "other" / "dense", _record(**masked))
    with pytest.raises(ValueError, match=r"must be exactly −log p\(x\).*got measure = 'bound'"):
        check_comparable(bound, [same])
    short_one = _member(tmp_path / "expert_002", _record(num_positions=8))
    with pytest.raises(ValueError, match=r"must have the same `config\.num_positions`; got"):
        check_comparable(dense, [short_one])


def test_nothing_held_out_is_refused(tmp_path):
    dense = _member(tmp_path / "dense", _record())
    expert = _member(tmp_path / "expert_000", _record(held_out=0))
    with pytest.raises(ValueError, match=r"`held_out` of .*expert_000 must be above 0.*got held_"):
        compared_rows(dense, [expert])


def test_parts_are_those_of_the_experts_that_have_the_documents():
    assert parts_of([b"a", b"b", b"c", b"b"], [[b"b", b"c"], [b"b", b"a"]]).tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError, match="got 1 of its 2 documents that no expert has, and 2 of"):
        parts_of([b"a", b"z"], [[b"a", b"b"], [b"b"]])


def test_groups_of_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    names = [("a/1", "x", None), ("a/2", "y", "s"), ("b/1", "x", "s")]
    rows = [
        {"id": name, "domain": domain, "text": f"text {name}"} | ({"source": s} if s else {})
        for name, domain, s in names
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert document_groups(path, None) == {"domain": ("x", "y", "x"), "folder": ("a", "a", "b")}
    assert document_groups(path, 0.0) == {}
    (tmp_path / "all.txt").write_text("one text")
    assert document_groups(tmp_path / "all.txt", None) == {}


def test_pieces_of_bytes_are_whole_characters():
    tokens = list("añb".encode())
    assert _pieces(tokens, byte_tokenizer()) == ["a", "", "ñ", "b"]
    assert "".join(_pieces(tokens[2:], byte_tokenizer())).endswith("b")  # begins inside ñ


def test_a_piece_is_decoded_from_the_piece_before_alone():
    tokenizer, lengths = byte_tokenizer(), []

    class Counting:
        def decode(self, tokens):
            lengths.append(len(tokens))
            return tokenizer.decode(tokens)

    assert _pieces(list(b"a long text"), Counting()) == list("a long text")
    assert max(lengths) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margin": -1.0}, r"`margin` must lie in \(0, inf\)"),
        ({"level": 0.4}, r"`level` must lie in \(0\.5, 1\)"),
        ({"alpha": 2.0}, r"`alpha` must lie in \[0, 1\]"),
        ({"prefix": 0}, "`prefix` must be at least 1"),
        ({"num_draws": 0}, "`num_draws` must be at least 1"),
    ],
)
def test_options_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        ComparisonOptions(**change)
