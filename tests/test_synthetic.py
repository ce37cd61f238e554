"""`synthetic`: its items, its network, its partitions, exact match, the paper's sizes, files."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from experiments.synthetic import __main__ as synthetic
from experiments.synthetic import report as synthetic_report
from experiments.synthetic import variants as synthetic_variants
from experiments.synthetic.config import (
    PRESETS,
    Config,
    check_config,
    member_config,
    num_steps,
    sizes_of,
)
from experiments.synthetic.data import (
    END,
    HELD_OUT,
    SPLITS,
    TOKENS,
    Data,
    num_positions,
    principal_directions,
    splits_of,
)
from experiments.synthetic.measure import answered, expected_of, oracle
from experiments.synthetic.network import (
    Prefix,
    doubled_width,
    flops_of_item,
    network_of,
    num_parameters,
)
from experiments.synthetic.pictures import (
    ALPHABET,
    CORNERS,
    PROMINENCE,
    TASKS,
    drawn_item,
    drawn_picture,
)
from experiments.synthetic.variants import agreement, at_random, by_context, by_prominence

TINY = Config(
    train_items=200,
    validation_items=40,
    test_items=40,
    held_out_items=40,
    num_features=8,
    width=16,
    num_layers=1,
    num_heads=2,
    batch_size=100,
    epochs=1,
    num_draws=50,
)
BEFORE = Prefix(num_features=5, num_vectors=2)


@pytest.fixture(scope="module")
def items():
    return [drawn_item(i, seed=0, num_letters=3) for i in range(4_000)]


@pytest.fixture(scope="module")
def data():
    """Items with features that show the prominence, of the shapes of the study."""
    splits = splits_of(replace(TINY, test_items=8))
    prominence = np.concatenate([rows.prominence for rows in splits.values()])
    noise = np.random.default_rng(0).normal(size=(prominence.size, 7))
    whole = np.c_[prominence - 0.5, 0.1 * noise].astype(np.float32)
    return Data(splits=splits, features=whole[:, None], whole=whole)


# ── items ───────────────────────────────────────────────────────────────────────────────────────


def test_an_item_is_a_function_of_seed_and_index(items):
    assert drawn_item(7, seed=0, num_letters=3) == items[7]
    assert drawn_item(7, seed=1, num_letters=3) != items[7]
    picture = drawn_picture(items[7], 7, seed=0)
    np.testing.assert_array_equal(drawn_picture(items[7], 7, seed=0), picture)
    assert (drawn_picture(items[7], 8, seed=0) != picture).any()
    with pytest.raises(ValueError, match="`index` must be at least 0"):
        drawn_item(-1, seed=0, num_letters=3)
    with pytest.raises(ValueError, match="`num_letters` must be at least 1"):
        drawn_item(0, seed=0, num_letters=0)


def test_the_prominence_has_its_distribution(items):
    """Of one sample: that of Beta(0.197, 0.197) passes, that of a neighboring one does not."""
    prominence = [item.prominence for item in items]
    assert PROMINENCE == 0.197
    assert scipy.stats.kstest(prominence, scipy.stats.beta(0.197, 0.197).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(prominence, scipy.stats.beta(0.3, 0.3).cdf).pvalue < 1e-3
    mean_deviation = 2 ** (-2 * PROMINENCE) / (
        PROMINENCE * scipy.special.beta(PROMINENCE, PROMINENCE)
    )
    assert 0.5 + mean_deviation == pytest.approx(0.9, abs=5e-4)  # E max(p, 1 − p)


def test_tasks_are_drawn_by_prominence(items):
    task = np.array([item.task for item in items])
    prominence = np.array([item.prominence for item in items])
    for name, share in zip(TASKS, (1 / 2, 1 / 6, 1 / 6, 1 / 6), strict=True):
        assert abs((task == name).mean() - share) < 5 * (share * (1 - share) / task.size) ** 0.5
    surprise = (task == "OCR") - prominence
    assert abs(surprise.mean()) < 5 * surprise.std() / task.size**0.5
    guessed = ((task == "OCR") == (prominence > 0.5)).mean()
    assert abs(guessed - 0.9) < 5 * (0.09 / task.size) ** 0.5


def test_all_words_and_shapes_are_drawn_and_answered(items):
    assert {item.shape for item in items} == set(CORNERS)
    assert {letter for item in items for letter in item.word} == set(ALPHABET)
    said = {(item.shape, item.task): item.answer for item in items if item.task != "OCR"}
    assert said["kite", "names"] == "kite"
    assert said["kite", "type"] == "quadrilateral"
    assert said["kite", "angles"] == "4"
    assert {answer for (_, task), answer in said.items() if task == "angles"} == {"3", "4", "6"}
    assert all(item.answer == item.word for item in items if item.task == "OCR")


def test_what_is_prominent_is_large(items):
    """Rows of pixels that another polygon changes are its own, other rows with ink the word's."""
    for index in range(6):
        heights = []
        for prominence in (0.0, 1.0):
            shown = [items[index]._replace(prominence=prominence, shape=shape) for shape in CORNERS]
            pictures = np.stack([drawn_picture(item, index, seed=0) for item in shown])
            own = (pictures != pictures[:1]).any(axis=(0, 2, 3))
            pixels, counts = np.unique(pictures.reshape(-1, 3), axis=0, return_counts=True)
            ink = (pictures != pixels[counts.argmax()]).any(axis=(0, 2, 3))
            heights.append((own.sum(), (ink & ~own).sum()))
        (polygon_0, word_0), (polygon_1, word_1) = heights
        assert polygon_1 <= 16 < 40 < polygon_0
        assert word_0 <= 18 < 24 < word_1


# ── splits and tokens ───────────────────────────────────────────────────────────────────────────


def test_no_item_is_in_two_splits():
    splits = splits_of(
        replace(TINY, train_items=64, validation_items=8, test_items=8, held_out_items=40)
    )
    drawn = [
        (rows.seed, rows.index + i) for rows in splits.values() for i in range(len(rows.items))
    ]
    assert len(set(drawn)) == len(drawn) == 64 + 8 + 8 + 40
    assert {rows.seed for name, rows in splits.items() if name != HELD_OUT} == {0}
    assert splits[HELD_OUT].seed == 7
    pictures = np.concatenate([x for rows in splits.values() for x in rows.pictures()])
    assert len(np.unique(pictures.reshape(len(pictures), -1), axis=0)) == len(pictures)
    np.testing.assert_array_equal(
        np.concatenate([rows.row for rows in splits.values()]), np.arange(len(drawn))
    )


def test_only_answers_count_and_end_is_last():
    assert num_positions(3) == 8
    rows = splits_of(TINY)["train"]
    for i, item in enumerate(rows.items):
        prompt = [TOKENS[j] for j in rows.tokens[i, : rows.lengths[i]]]
        answer = [TOKENS[j] for j in rows.tokens[i, rows.counts[i]]]
        assert prompt == [*item.question.split(), "END"]
        parts = list(item.answer) if item.task == "OCR" else [item.answer]
        assert answer == [*parts, "END"]
        assert np.flatnonzero(rows.counts[i])[0] == rows.lengths[i]
    assert TOKENS[END] == "END"
    assert len(set(TOKENS)) == len(TOKENS)


def test_principal_directions_have_variance_1_and_no_correlation():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 2, 3)) * np.arange(1, 7).reshape(2, 3)
    rows[:, 1, 2] = rows[:, 0, 0]  # of 6 columns 5 are different
    mapped = principal_directions(rows, 9)(rows)
    assert mapped.shape == (50, 5)
    np.testing.assert_allclose(mapped.T @ mapped / 50, np.eye(5), atol=1e-5)
    assert principal_directions(rows, 2)(rows).shape == (50, 2)


# ── the network ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def sizes():
    config = replace(TINY, num_prefix=BEFORE.num_vectors, dropout=0.5)
    return sizes_of(config, 11, 7, width=16)


@pytest.fixture(scope="module")
def params(sizes):
    return network_of(sizes, BEFORE).init(jax.random.key(0))


def test_a_row_sees_the_picture_and_the_tokens_before_it(sizes, params):
    network, x = network_of(sizes, BEFORE), jnp.array([3, 1, 4, 1, 5])
    picture = jax.random.normal(jax.random.key(1), (1, 5))
    apply = jax.jit(network.apply)
    logits = apply(params, picture, x)
    assert logits.shape == (5, 11)
    later = apply(params, picture, x.at[3].set(9))
    np.testing.assert_allclose(later[:3], logits[:3], atol=1e-6)
    assert np.abs(later[3:] - logits[3:]).max(axis=1).min() > 1e-3
    other = apply(params, picture.at[0, 0].add(1.0), x)
    assert np.abs(other - logits).max(axis=1).min() > 1e-4
    shorter = apply(params, picture, x[:2])
    np.testing.assert_allclose(shorter, logits[:2], atol=1e-6)


def test_dropout_needs_a_key(sizes, params):
    apply, x = jax.jit(network_of(sizes, BEFORE).apply), jnp.array([3, 1, 4])
    picture = jnp.ones((1, 5)).at[0, 0].set(3.0)
    first, second = (apply(params, picture, x, key=jax.random.key(i)) for i in (1, 2))
    assert np.abs(first - second).max() > 1e-3
    still = jax.jit(network_of(replace(sizes, dropout=0.0), BEFORE).apply)
    np.testing.assert_array_equal(
        still(params, picture, x, key=jax.random.key(1)), apply(params, picture, x)
    )


@pytest.mark.parametrize(
    ("features", "tokens", "message"),
    [
        ((1, 4), (3,), r"`features` must have the shape \(1, 5\)"),
        ((2, 5), (3,), r"`features` must have the shape \(1, 5\)"),
        ((1, 5), (7,), "`x_t` must be one sequence of at most 6 tokens"),
        ((1, 5), (1, 3), "`x_t` must be one sequence of at most 6 tokens"),
    ],
)
def test_wrong_shapes_are_refused(sizes, params, features, tokens, message):
    network = network_of(sizes, BEFORE)
    with pytest.raises(ValueError, match=message):
        network.apply(params, jnp.zeros(features), jnp.zeros(tokens, int))


def test_flops_are_those_of_the_products():
    """By the kernels of the parameters: every one multiplies each position once."""
    config = replace(TINY, num_prefix=2)
    sizes = sizes_of(config, 11, 7, width=16)
    shapes = jax.eval_shape(network_of(sizes, BEFORE).init, jax.random.key(0))
    length, tokens = 8, 6

    def kernels(tree):
        found = jax.tree_util.tree_leaves_with_path(tree)
        return sum(x.size for path, x in found if "kernel" in jax.tree_util.keystr(path))

    products = kernels(shapes["projector"]) + length * kernels(shapes["layers_0"])
    products += 2 * length * length * 16 + tokens * shapes["embedding"].size
    assert flops_of_item(sizes, BEFORE) == 2 * products
    assert num_parameters(sizes, BEFORE) == sum(x.size for x in jax.tree.leaves(shapes))


# ── the paper's sizes ───────────────────────────────────────────────────────────────────────────


def test_the_preset_paper_has_the_papers_facts():
    config = PRESETS["paper"]
    items = (config.train_items, config.validation_items, config.test_items)
    assert (*items, config.held_out_items) == (150_000, 5_000, 5_000, 20_000)
    assert (config.held_out_seed, config.epochs, num_steps(config)) == (7, 50, 58_550)
    sizes = sizes_of(config, len(TOKENS), num_positions(config.num_letters), width=config.width)
    assert (sizes.width, sizes.num_layers, sizes.num_heads) == (128, 4, 4)
    assert (sizes.ffn_width, sizes.dropout, config.num_prefix) == (512, 0.1, 4)
    for size in (128, 64):
        member = member_config(config, sizes, num_positions(config.num_letters), size)
        chosen = member.optimizer
        assert (member.batch_size, member.num_steps) == (size, 58_550)
        assert (chosen.learning_rate, chosen.weight_decay) == (3e-4, 0.01)
        assert (chosen.b1, chosen.b2, chosen.max_norm) == (0.9, 0.95, 1.0)
        assert (chosen.final_fraction, chosen.warmup_steps) == (0.0, round(0.03 * 58_550))
    assert config.batch_size // synthetic_variants.NUM_EXPERTS == 64
    assert config.num_features == 512
    # They report 1.35 million; their vocabulary is not known.
    assert num_parameters(sizes, Prefix(512, 4)) == pytest.approx(1.35e6, rel=0.03)


def test_standard_is_a_twentieth_of_the_papers_items():
    paper, standard = PRESETS["paper"], PRESETS["standard"]
    for name in ("train_items", "validation_items", "test_items", "held_out_items"):
        assert getattr(paper, name) == 20 * getattr(standard, name)
    same = ("width", "num_layers", "num_heads", "num_prefix", "dropout", "batch_size", "warmup")
    assert all(getattr(paper, name) == getattr(standard, name) for name in (*same, "weight_decay"))
    for preset in PRESETS.values():
        if preset.encoder != "clip":
            check_config(preset)


@pytest.mark.parametrize("preset", PRESETS)
def test_twice_the_parameters_are_twice(preset):
    config = PRESETS[preset]
    before = Prefix(config.num_features, config.num_prefix)
    sizes = sizes_of(config, len(TOKENS), num_positions(config.num_letters), width=config.width)
    width = doubled_width(sizes, before)
    wider = sizes_of(config, len(TOKENS), num_positions(config.num_letters), width=width)
    ratio = num_parameters(wider, before) / num_parameters(sizes, before)
    assert ratio == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ("domain",)}, "Each of `variants` must be one of context, prominence"),
        ({"variants": ()}, "`variants` must hold at least one name"),
        ({"encoder": "clip"}, "`clip` must be given if, and only if, `encoder` is clip"),
        ({"batch_size": 15}, "`batch_size` must be a multiple of 2"),
        ({"train_items": 8}, "`train_items` must be at least 100"),
        ({"width": 15}, "`width` must be a multiple of `num_heads`"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0"),
        ({"held_out_seed": 0}, "`held_out_seed` must be at least 1"),
    ],
)
def test_values_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_config(replace(TINY, **changes))


# ── partitions and exact match ──────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.statement("D8")
def test_the_question_tells_the_part(data):
    parts = by_context(data)
    asked = data.splits["train"].task != "OCR"
    np.testing.assert_array_equal(parts.train, asked.astype(int))
    assert parts.facts["router"] == 1
    for name in SPLITS:
        other = data.splits[name].task != "OCR"
        np.testing.assert_array_equal(parts.log_weights[name].argmax(axis=1), other)
        np.testing.assert_array_equal(np.exp(parts.log_weights[name]).sum(axis=1), 1.0)


@pytest.mark.slow
def test_clusters_are_balanced_and_see_the_prominence(data):
    parts = by_prominence(data)
    assert abs(np.diff(parts.sizes)) <= 1
    assert parts.facts[f"prominence, {HELD_OUT}"] > 0.85
    assert 0.7 < parts.facts[f"task, {HELD_OUT}"] < 0.98
    near = parts.log_weights["train"].argmax(axis=1)
    assert (near == parts.train).mean() > 0.95  # but for ties that balance moved


def test_random_halves_know_nothing(data):
    parts = at_random(data)
    assert abs(np.diff(parts.sizes)) <= 1
    assert parts.gate == "average"
    np.testing.assert_allclose(np.exp(parts.log_weights[HELD_OUT]), 0.5)
    assert agreement(parts.train, data.splits["train"].task == "OCR") < 0.6
    assert agreement(np.array([0, 1, 1]), np.array([1, 0, 0])) == 1


@pytest.mark.slow
def test_one_pass_tells_what_greedy_decoding_answers(data):
    """For both gates; half of the expected answers are what the mixture says, half are not."""
    rows = data.splits["test"]
    before = Prefix(data.features.shape[2], 2)
    sizes = sizes_of(replace(TINY, num_prefix=2), len(TOKENS), data.num_positions, width=16)
    network = network_of(sizes, before)
    experts = [network.init(jax.random.key(i)) for i in range(2)]
    rng = np.random.default_rng(0)
    hard = np.where(rng.integers(2, size=(len(rows.items), 1)) == np.arange(2), 0.0, -np.inf)
    average = np.full_like(hard, -np.log(2))
    apply = jax.jit(network.apply)

    def said(row, weights, count):
        tokens = rows.tokens[row].copy()
        for i in range(rows.lengths[row], rows.lengths[row] + count):
            logits = [apply(p, data.features[rows.row[row]], tokens[:-1])[i - 1] for p in experts]
            probs = sum(w * jax.nn.softmax(x) for w, x in zip(np.exp(weights), logits, strict=True))
            tokens[i] = int(np.argmax(probs))
        return tokens

    for weights in (hard, average):
        counts = rows.counts.sum(axis=1)
        greedy = np.stack([said(i, weights[i], counts[i]) for i in range(len(rows.items))])
        expected_tokens = np.where(np.arange(len(greedy))[:, None] % 2 == 0, greedy, rows.tokens)
        asked = replace(rows, tokens=expected_tokens)
        expected = expected_of(data, asked, sizes, before, experts, rows.row)
        found = answered(expected, weights)
        right = [
            (said(i, weights[i], counts[i]) == asked.tokens[i]).all() for i in range(len(greedy))
        ]
        np.testing.assert_array_equal(found.right, right)
        assert found.right[::2].all()
        assert not found.right.all()
    best = answered(expected, oracle(expected)).nats
    for k in range(2):
        own = np.where(np.arange(2) == k, 0.0, -np.inf)[None].repeat(len(best), axis=0)
        assert (best <= answered(expected, own).nats + 1e-5).all()


# ── the study ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture(scope="module")
def result(out):
    assert synthetic.main(_arguments(out)) == 0
    return json.loads((out / "result.json").read_text())


def _arguments(out):
    words = ["--out", str(out)]
    for name in Config.__dataclass_fields__:
        value = getattr(TINY, name)
        if name not in ("preset", "out") and value != getattr(PRESETS["quick"], name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


@pytest.mark.slow
def test_rows_of_every_variant_gate_split_and_task(result):
    rows = result["rows"]
    gates = {(row["variant"], row["gate"]) for row in rows if row["split"] == HELD_OUT}
    assert gates == {
        *(("dense", "none"), ("dense", "wrong picture"), ("twice", "none")),
        *(("context", gate) for gate in ("question", "average", "oracle")),
        *(("prominence", gate) for gate in ("nearest", "average", "oracle")),
        *(("random", gate) for gate in ("average", "oracle")),
    }
    assert {row["task"] for row in rows} == {"all", *TASKS}
    assert {row["split"] for row in rows} == set(SPLITS[1:])


@pytest.mark.slow
def test_experts_cost_what_the_dense_model_costs(result):
    spent = {row["variant"]: (row["tokens"], row["flops"]) for row in result["rows"]}
    assert spent["dense"] == spent["context"] == spent["prominence"] == spent["random"]
    assert spent["twice"][0] == spent["dense"][0]
    assert 1.5 < spent["twice"][1] / spent["dense"][1] < 3
    claims = {verdict["claim"]: verdict for verdict in result["verdicts"]}
    assert len(claims) == 5
    assert all(verdict["passed"] for verdict in result["verdicts"])
    steps = {
        row["variant"]: (row["steps"], row["batch_size"]) for row in result["summary"]["variants"]
    }
    assert steps["dense"] == (2, 100)
    assert steps["context"] == (2, 50)


@pytest.mark.slow
def test_tables_and_the_picture_come_of_what_was_found(result, out):
    assert (out / "synthetic.png").stat().st_size > 10_000
    main, authors, reported, splits, parts = synthetic_report.markdown(result)
    assert "| prominence | nearest |" in main
    assert "| +0.30 |" in authors
    assert "| -2.03 |" in authors
    assert "| full-model MoE | 65.96 |" in reported
    assert "| dense |" in splits
    assert "83.9%" in parts


@pytest.mark.slow
def test_a_run_again_measures_nothing_and_finds_the_same(result, out, monkeypatch):
    monkeypatch.setattr(synthetic, "measure", None)
    monkeypatch.setattr(synthetic, "measure_dense", None)
    shutil.rmtree(out / "members")
    assert synthetic.main(_arguments(out)) == 0
    assert json.loads((out / "result.json").read_text())["rows"] == result["rows"]


def test_the_authors_numbers_are_what_they_report():
    """Their means by task give their means of all, with OCR as half of the questions."""
    for name, (whole, ocr, *others) in synthetic_report.AUTHORS.items():
        assert ocr / 2 + sum(others) / 6 == pytest.approx(whole, abs=0.15), name
