"""`experiments.language` on small texts: tokens, variants, members, cells, files."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from dfm_jax.comparison.loss_account import Account
from dfm_jax.comparison.record import of_group
from dfm_jax.data.tokens import TokenSet
from dfm_jax.models import TransformerConfig, transformer
from dfm_jax.parallel import make_mesh
from dfm_jax.training.config import LogConfig, TrainConfig
from dfm_jax.training.evaluation import evaluated, token_losses
from dfm_jax.training.examples import MemberData
from dfm_jax.training.fit import make_run
from dfm_jax.training.loop import METRICS
from dfm_jax.training.state import init_state, make_optimizer
from experiments.language import __main__ as language
from experiments.language import report as language_report
from experiments.language import router as language_router
from experiments.language import text as language_text
from experiments.language.__main__ import Config
from experiments.language.config import Variant, parsed_variant
from experiments.language.variants import Trainer
from experiments.lib import partitions
from experiments.lib import training as language_training


@pytest.fixture(scope="module")
def corpora(word_corpora):
    return word_corpora(" é\n")


@pytest.fixture(scope="module")
def text(corpora):
    return language_text.text_of(corpora, num_tokens=300, num_features=8)


def _config(out, **changes):
    small = Config(
        out=out,
        domain_bytes=0,
        variants=("domain", "warm:3"),  # as many experts: their gates and routers are one program
        controls=("warm:3",),
        num_tokens=300,
        width=16,
        num_layers=1,
        num_heads=2,
        num_positions=16,
        batch_size=4,
        training_tokens=6 * 64,
        rates=(1e-3, 3e-3),
        prefixes=(4,),
        num_features=8,
        num_seeds=2,
        num_draws=50,
    )
    return dataclasses.replace(small, **changes)


# ── text ────────────────────────────────────────────────────────────────────────────────────────


def test_byte_pairs_lose_no_byte():
    pieces = language_text.byte_pairs(["a banana, a bandana"] * 3, 260)
    widths = language_text.token_widths(pieces)
    for words in ("a banana", " ß é\n\t漢\x00", ""):
        ids = pieces.encode(words).ids
        assert widths[ids].sum() == len(words.encode())
        assert pieces.decode(ids) == words
    assert max(widths) > 1
    with pytest.raises(
        ValueError,
        match=(
            "`num_tokens` must be at least 256, because each byte is a token; got num_tokens = 255"
        ),
    ):
        language_text.byte_pairs(["a"], 255)
    with pytest.raises(
        ValueError,
        match=r"must be at most 2.., as many as the training text gives; got num_tokens = ",
    ):
        language_text.byte_pairs(["a"], 400)


def test_tokens_and_bytes_are_the_same_text(text):
    for tokens in text.tokens.values():
        for d in range(len(tokens.domains)):
            span = tokens.of_bytes(tokens.set.offsets[d : d + 2])
            ids = tokens.set.tokens[tokens.set.offsets[d] : tokens.set.offsets[d + 1]]
            assert tokens.flat[span[0] : span[1]].decode() == text.tokenizer.decode(ids.tolist())
            assert span[1] - span[0] == tokens.set.num_bytes[d]


def test_chosen_documents(text):
    tokens = text.tokens["train"]
    kept = np.arange(len(tokens.domains)) % 3 == 1
    chosen = tokens.chosen(kept)
    expected = [
        tokens.set.tokens[tokens.set.offsets[d] : tokens.set.offsets[d + 1]]
        for d in np.flatnonzero(kept)
    ]
    np.testing.assert_array_equal(chosen.tokens, np.concatenate(expected))
    np.testing.assert_array_equal(np.diff(chosen.offsets), list(map(len, expected)))
    np.testing.assert_array_equal(chosen.num_bytes, tokens.set.num_bytes[kept])


def test_a_context_ends_where_its_window_begins(text):
    """B9: of a window, a gate sees what stands before it in its own document."""
    tokens = text.tokens["test"]
    found = language_text.window_contexts(tokens, text.encode, 16)
    starts = tokens.window_starts(16)
    document = np.searchsorted(tokens.set.offsets, starts, side="right") - 1
    np.testing.assert_array_equal(found.spans[:, 1], starts)
    assert (found.spans[:, 0] >= tokens.set.offsets[document]).all()
    assert (np.diff(found.spans, axis=1) <= 16).all()
    np.testing.assert_array_equal(found.empty, starts == tokens.set.offsets[document])
    assert not found.known[found.empty].any()

    last = starts[-1]  # whatever stands in it, no context is another
    begin = int(tokens.begins[last])
    changed = dataclasses.replace(
        tokens, flat=tokens.flat[:begin] + b"x" * (len(tokens.flat) - begin)
    )
    again = language_text.window_contexts(changed, text.encode, 16)
    np.testing.assert_array_equal(again.features, found.features)


# ── losses by token ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_token_losses_are_those_of_the_evaluation():
    model = TransformerConfig(
        num_tokens=7, num_states=8, width=8, num_layers=1, num_heads=2, ffn_width=16
    )
    config = TrainConfig(model=model, num_positions=4, batch_size=3)
    network = transformer(model)
    state = init_state(jax.random.key(0), network, make_optimizer(config.optimizer, 10), ema=False)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 7, 21).astype(np.uint8)
    documents = TokenSet(tokens, np.array([0, 6, 6, 21]), np.array([6, 0, 15]))
    found = token_losses(state.params, config, documents, batch_size=2)
    assert found.shape == tokens.shape
    by_document = np.array([found[:6].sum(), 0, found[6:].sum()])
    np.testing.assert_allclose(by_document, evaluated(state, config, documents).nats, rtol=1e-5)

    window = np.r_[7, tokens[10:13]]  # the second of the last document, behind the mask
    log_probs = jax.nn.log_softmax(network.apply(state.params, window))
    np.testing.assert_allclose(
        found[10:14], -log_probs[np.arange(4), tokens[10:14]], rtol=1e-5, atol=1e-6
    )
    masked = dataclasses.replace(
        config, objective="masked", model=dataclasses.replace(model, causal=False)
    )
    with pytest.raises(ValueError, match=r"`config\.objective` must be autoregressive"):
        token_losses(state.params, masked, documents)


# ── variants ──────────────────────────────────────────────────────────────────────────────────────


def test_variants_by_name():
    assert parsed_variant("domain") == Variant(kind="domain", num_experts=None)
    assert parsed_variant("warm:3") == Variant(kind="warm", num_experts=3)
    assert parsed_variant("warm:3").name == "warm:3"
    for bad in ("domain:2", "cluster", "file:2", "cluster:two", "cluster:-1"):
        with pytest.raises(ValueError, match="`variants` must be `domain`, or KIND:K"):
            parsed_variant(bad)
    with pytest.raises(
        ValueError, match="`K of a variant` must be at least 2; got K of a variant = 1"
    ):
        parsed_variant("random:1")


@pytest.mark.slow
def test_clusters_are_balanced_by_load_and_one_rule_labels_all(text):
    trainer = Trainer(text=text, config=_config(Path()), mesh=make_mesh(1))
    variant = Variant(kind="cluster", num_experts=3)
    partition, part_of = trainer.partition(variant)
    sizes = np.diff(text.tokens["train"].set.offsets)
    loads = trainer.part_tokens(part_of["train"], "train", 3)
    assert loads.max() - loads.mean() <= sizes.max()
    np.testing.assert_allclose(trainer.weights(variant), loads / sizes.sum())
    assert partition.search is not None
    assert partition.search["drawn"] == 0
    free, _ = trainer.partition(Variant(kind="unbalanced", num_experts=3))
    assert free.search is not None
    assert free.search["mean_cosine"] >= partition.search["mean_cosine"] - 1e-6
    # The domains have no word in common: free clusters are the domains.
    found = np.array([text.tokens[s].domains[d] for s in text.tokens for d in _all(text, s)])
    assert len({(a, b) for a, b in zip(free.part_of, found, strict=True)}) == 3


def _all(text, split):
    return range(len(text.tokens[split].domains))


@pytest.mark.slow
def test_a_document_without_features_is_drawn(corpora):
    features = np.random.default_rng(0).standard_normal((120, 4))
    features[[3, 117]] = np.nan
    loads = np.ones(120, int)
    options = {"features": features, "loads": loads, "fitted_on": 100, "seed": 0}
    found = partitions.by_balanced_clusters(corpora, 4, **options)
    drawn = partitions.at_random(corpora, 4, seed=0)
    np.testing.assert_array_equal(found.part_of[[3, 117]], drawn.part_of[[3, 117]])
    assert found.search is not None
    assert found.search["drawn"] == 2


def test_too_many_parts_are_refused(text):
    trainer = Trainer(text=text, config=_config(Path(), num_positions=4000), mesh=make_mesh(1))
    with pytest.raises(
        ValueError, match="Each part of random:3 must have at least 4000 tokens of train"
    ):
        trainer.partition(Variant(kind="random", num_experts=3))


# ── members ─────────────────────────────────────────────────────────────────────────────────────


def _trained(text, folder, **changes):
    trainer = Trainer(text=text, config=_config(folder, **changes), mesh=make_mesh(1))
    return trainer, trainer.dense()


@pytest.mark.slow
def test_a_member_is_the_run_of_its_config(text, tmp_path):
    """A member's seeds and rates ride one program, and are what each would be alone."""
    # As many further seeds as rates: their sweeps are one program.
    trainer, member = _trained(text, tmp_path, num_seeds=3)
    assert member.num_tokens == 6 * 64
    assert len(member.rates) == 2
    best = min(member.rates, key=member.rates.__getitem__)
    assert member.config.optimizer.learning_rate == float(best)
    data = MemberData(text.tokens["train"].set, text.tokens["validation"].set, text.tokenizer, {})
    for number, seed in enumerate(trainer.seeds):
        run = make_run(dataclasses.replace(member.config, seed=seed), data, LogConfig())
        state = run.init()
        for step in range(run.num_steps):
            state, _ = run.update(state, step)
        for a, b in zip(
            jax.tree.leaves(member.of_seed(number)), jax.tree.leaves(state.params), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_rate_that_breaks_is_not_chosen(text, tmp_path):
    _, member = _trained(text, tmp_path, rates=(1e38, 1e-3), num_seeds=1)
    assert member.config.optimizer.learning_rate == 1e-3
    assert member.rates["1e+38"] == np.inf
    with pytest.raises(
        ValueError, match="`rates` must hold a learning rate at which the loss stays finite"
    ):
        _trained(text, tmp_path / "none", rates=(1e38, 1e37), num_seeds=1)


# ── the router that reads the prefix ────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.statement("D11")
def test_a_router_learns_the_part_and_reads_the_prefix_alone(text, tmp_path):
    """Cross-entropy finds r_k(x^{<i}); no token changes the distribution before it (B9)."""
    config = _config(tmp_path, training_tokens=20 * 64, router_share=8.0)
    trainer = Trainer(text=text, config=config, mesh=make_mesh(1))
    variant = Variant(kind="domain", num_experts=None)
    router = trainer.router(variant, 0)
    assert router.num_tokens == 160 * 64
    tokens = text.tokens["test"].set
    probs = language_router.router_probs(router, tokens)
    np.testing.assert_allclose(np.exp(probs).sum(1), 1, rtol=1e-5)
    _, part_of = trainer.partition(variant)
    own = np.repeat(part_of["test"], np.diff(tokens.offsets))
    place = np.arange(len(own)) - np.repeat(tokens.offsets[:-1], np.diff(tokens.offsets))
    nats = -probs[np.arange(len(own)), own]
    assert nats[place % 16 == 0].mean() > 0.5 * np.log(3)  # nothing read
    assert nats[place % 16 > 8].mean() < 0.2 * np.log(3)  # the domains share no word

    at = 5
    changed = tokens.tokens.copy()
    changed[at] = 0 if changed[at] else 1
    again = language_router.router_probs(router, tokens._replace(tokens=changed))
    np.testing.assert_array_equal(again[: at + 1], probs[: at + 1])
    assert (again[at + 1] != probs[at + 1]).any()


@pytest.mark.slow
def test_a_router_is_tempered_by_what_it_decodes():
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.ones(3), 4000)
    parts = (truth.cumsum(1) > rng.random((4000, 1))).argmax(1)
    # Experts that tell the part for certain: then what decodes best is the part's own distribution.
    log_probs = np.log(np.where(np.arange(3) == parts[:, None], 0.5, 1e-12))
    sharp = 2.5 * np.log(truth)
    sharp -= np.log(np.exp(sharp).sum(1, keepdims=True))
    probs, found = language_router.tempered(sharp, log_probs, sharp)
    assert found["temperature"] == pytest.approx(2.5, rel=0.1)
    assert not found["at_bound"]
    np.testing.assert_allclose(np.exp(probs).sum(1), 1)
    assert abs(np.exp(probs) - truth).max() < 0.05


# ── the study ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def result(corpora, tmp_path_factory):
    # One rate: then the first seed and the other one are sweeps of one run each, one program.
    config = _config(tmp_path_factory.mktemp("language"), rates=(3e-3,))
    holds = language.run(config, corpora, Console(quiet=True))
    return holds, config, json.loads((config.out / "result.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_claim_holds(result):
    holds, config, found = result
    assert holds
    assert all(verdict["passed"] for verdict in found["verdicts"])
    assert (config.out / "language.png").stat().st_size > 10_000
    fields = "variant partition num_experts gate top seed nats_per_byte tokens flops"
    assert all(list(row) == fields.split() for row in found["rows"])
    variants = {row["variant"] for row in found["rows"]}
    assert variants == {
        *("dense", "experts", "warm experts", "parameter average"),
        "dense, one expert's steps",
    }
    spent = {
        (row["tokens"], row["flops"])
        for row in found["rows"]
        if row["variant"] != "dense, one expert's steps"
    }
    assert len(spent) == 1
    (steps,) = {
        sum(variant["steps"])
        for variant in found["summary"]["variants"]
        if variant["variant"] == "domain"
    }
    assert steps == 6
    losses = [row["nats_per_byte"] for row in found["rows"]]
    assert np.isfinite(losses).all()
    assert min(losses) > 0


@pytest.mark.slow
def test_domains_sum_to_the_whole(result, text):
    _, _, found = result
    sizes = text.tokens["test"].set.num_bytes
    names = np.array(text.tokens["test"].domains)
    shares = {name: sizes[names == name].sum() / sizes.sum() for name in dict.fromkeys(names)}
    for row in found["summary"]["comparisons"]:
        own = {"variant": row["partition"], "gate": row["gate"]}
        here = [one for one in found["summary"]["domains"] if own.items() <= one.items()]
        if row["evaluation_set"] != "reset" or (row["top"] != "full" and row["gate"] != "oracle"):
            continue
        assert [one["domain"] for one in here] == list(shares)
        nll, minus = (
            sum(shares[one["domain"]] * one[what] for one in here) for what in ("nll", "mean")
        )
        assert nll == pytest.approx(row["nll"])
        assert minus == pytest.approx(row["minus"]["dense"]["mean"])
        for one in here:
            assert len(one["documents"]) == len(one["per_seed"]) == 2
            for (low, high), mean in zip(one["documents"], one["per_seed"], strict=True):
                assert low <= mean <= high


def test_a_group_of_one_unit_has_no_interval():
    found = Account(
        gate_variants=(("static", "full"),),
        nll=np.array([[3.0, 5.0, 1.0]]),
        uncut=np.zeros((1, 3)),
        bayes=np.zeros(3),
        own=np.zeros(3),
        cost=np.zeros(3),
        dense=np.array([2.0, 4.0, 2.0]),
        sizes=np.array([4.0, 1.0, 1.0]),
        evaluations=(2.0,),
        b1_residual=0.0,
        b11_slack=0.0,
        flattery={},
    )
    draws = {"num_draws": 50, "seed": 0}
    (one,) = of_group(found, np.array([True, False, False]), **draws)
    assert one == {"nll": 0.75, "minus": [0.25, None, None]}
    (two,) = of_group(found, np.array([True, True, False]), **draws)
    assert two["nll"] == pytest.approx(8 / 5)
    mean, low, high = two["minus"]
    assert (low, mean, high) == (0.25, pytest.approx(2 / 5), 1.0)


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(result, corpora, monkeypatch, tmp_path):
    """Killed before its last member, a study reads the others and trains that one alone."""
    _, config, found = result
    out = shutil.copytree(config.out, tmp_path / "killed")
    shutil.rmtree(out / "cells")
    (out / "result.json").unlink()
    config = dataclasses.replace(config, out=out, variants=("domain",), controls=())
    train, updates = language_training.train, []
    logs = [*out.glob("members/domain/*/rates/" + METRICS)]
    logs += out.glob("members/domain/*/seeds/" + METRICS)
    last = max(logs, key=lambda path: path.stat().st_mtime_ns).parent
    shutil.rmtree(last)

    def killed(run, folder, **options):
        if folder == last:
            raise KeyboardInterrupt
        return train(run, folder, **options)

    def counted(run, folder, **options):
        outcome = train(run, folder, **options)
        updates.append((folder == last, outcome.step - outcome.began_at))
        return outcome

    monkeypatch.setattr(language_training, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        language.run(config, corpora, Console(quiet=True))
    monkeypatch.setattr(language_training, "train", counted)
    language.run(config, corpora, Console(quiet=True))
    again = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert {trained > 0 for anew, trained in updates if anew} == {True}
    assert {trained for anew, trained in updates if not anew} == {0}
    assert again["rows"] == [row for row in found["rows"] if row["partition"] != "warm:3"]

    monkeypatch.setattr(language, "measure", None)  # with its cells, nothing is trained or scored
    language.run(config, corpora, Console(quiet=True))


@pytest.mark.slow
def test_the_tables(result):
    _, _, found = result
    spent, gate_comparison, account, domains = language_report.markdown(found)
    assert "| warm:3 |" in spent
    assert "| dense |" in spent
    assert "Bayes, full" in gate_comparison
    assert "domain: Bayes" in account
    assert domains.splitlines()[0] == "| variant: gate | kjv | shakespeare | stdlib |"
    assert "domain: running router" in domains


def test_bad_options(tmp_path, capsys):
    for options, words in (
        (("--variants", "files"), "`variants` must be `domain`, or KIND:K"),
        (("--controls", "random:9"), "`controls` must hold some of `variants`"),
        (("--rates", "0"), "`rates` must lie in (0, inf)"),
        (
            ("--micro-batches", "3"),
            "`micro_batches` must divide `batch_size`, which is 16; got micro_batches = 3",
        ),
        (("--num-seeds", "0"), "`num_seeds` must be at least 1; got num_seeds = 0"),
    ):
        assert language.main(["--out", str(tmp_path), *options]) == 2
        assert words in capsys.readouterr().err
