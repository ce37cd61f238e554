"""Training on conversations with pictures: losses, data, packs, a run from start to end."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_templates import trained

from dfm_jax import cli
from dfm_jax.data.conversations import ConversationError
from dfm_jax.data.packages import pillow
from dfm_jax.data.pictures import read_picture
from dfm_jax.data.processors import PictureProcessor
from dfm_jax.interfaces import Losses, Task
from dfm_jax.models import TransformerConfig
from dfm_jax.models.multimodal import VisionConfig, multimodal
from dfm_jax.training.batches import MultimodalBatch
from dfm_jax.training.config import (
    LogConfig,
    PicturesConfig,
    TrainConfig,
    multimodal_config,
    to_json,
)
from dfm_jax.training.conversation_rows import (
    ConversationRows,
    Places,
    conversation_examples,
    read_conversation_rows,
)
from dfm_jax.training.evaluation import load_member
from dfm_jax.training.fit import train_member
from dfm_jax.training.state import init_state
from dfm_jax.training.step import make_evaluation, make_train_step
from dfm_jax.training.tasks import task_of

IMAGE, EACH = 60, 9  # the image token, and how many of them stand for a picture
VISION = VisionConfig(
    image_size=24, patch_size=8, width=32, num_layers=3, num_heads=4, ffn_width=48, drop_path=0.5
)
PICTURES = PicturesConfig(
    vision=VISION, processor=PictureProcessor(size=24), image_token=IMAGE, max_pictures=2
)
CONFIG = TrainConfig(
    model=TransformerConfig(
        num_tokens=67, width=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=48
    ),
    pictures=PICTURES,
    num_positions=32,
    batch_size=2,
    num_steps=20,
)


def with_pictures(**changes) -> TrainConfig:
    return dataclasses.replace(CONFIG, pictures=dataclasses.replace(PICTURES, **changes))


def drawn_batch(seed: int = 0) -> MultimodalBatch:
    """Two sequences: two conversations and padding; one conversation."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, IMAGE, (2, 32)).astype(np.int32)
    tokens[0, 2 : 2 + EACH] = tokens[0, 16 : 16 + EACH] = tokens[1, 4 : 4 + EACH] = IMAGE
    segments = np.ones((2, 32), np.int32)
    segments[0, 14:28], segments[0, 28:] = 2, 0
    learnt = np.zeros((2, 32), bool)
    learnt[0, 11:15], learnt[0, 26:28], learnt[1, 20:] = True, True, True
    weights = np.where(segments == 2, 0.5, 0.25).astype(np.float32)
    return MultimodalBatch(
        tokens, learnt, segments, weights, random.integers(0, 256, (2, 2, 24, 24, 3), np.uint8)
    )


def row_of(batch, row: int):
    return jax.tree.map(lambda leaf: leaf[row], batch)


# ── weights of losses ─────────────────────────────────────────────────────────────────────────────


def weighted_task(weighted: bool) -> Task:
    """Squares of w minus a number: three positions, of which the last two may not count."""

    def losses(params, example, key=None):
        x, counts, weights = example
        nats = jnp.where(counts, jnp.square(params["w"] - x), 0)
        return Losses(nats, counts, weights if weighted else None)

    return Task(lambda key: {"w": jnp.array(0.5)}, losses, measure="loss")


@pytest.mark.parametrize("parts", [1, 2])
def test_a_weighted_gradient_is_that_of_the_formula(parts):
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 3))
    counts = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]], bool)
    weights = random.uniform(0.1, 2, size=(4, 3))
    means = {False: (counts * (0.5 - x) * 2).sum() / counts.sum()}
    means[True] = (counts * weights * (0.5 - x) * 2).sum() / (counts * weights).sum()
    optimizer = optax.sgd(1.0)
    moved = {}
    for weighted, mean in means.items():
        task = weighted_task(weighted)
        step = make_train_step(task.losses, optimizer, num_micro_batches=parts)
        state = init_state(jax.random.key(0), task, optimizer, ema=False)
        after, metrics = step(state, (x, counts, weights), jax.random.key(0))
        assert float(0.5 - after.params["w"]) == pytest.approx(mean, rel=1e-5)
        assert int(metrics.num_tokens) == counts.sum()
        size = weights if weighted else 1
        loss = (counts * size * (0.5 - x) ** 2).sum() / (counts * size).sum()
        assert float(metrics.loss) == pytest.approx(loss, rel=1e-5)
        moved[weighted] = float(after.params["w"])
        evaluated = make_evaluation(task.losses)({"w": jnp.array(0.5)}, (x, counts, weights))
        np.testing.assert_allclose(evaluated.nats, (counts * (0.5 - x) ** 2).sum(axis=1), rtol=1e-5)
    assert abs(moved[True] - moved[False]) > 1e-2


# ── the task ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_only_learnt_tokens_have_losses_and_no_token_sees_another_conversation():
    task, batch = task_of(CONFIG), row_of(drawn_batch(), 0)
    params = jax.jit(task.init)(jax.random.key(0))
    losses = jax.jit(lambda batch: task.losses(params, batch))(batch)
    expected = batch.learnt.copy()
    expected[14] = False  # the first token of the second conversation
    np.testing.assert_array_equal(losses.counts, expected)
    assert losses.weights is None
    assert np.all(np.asarray(losses.nats)[~expected] == 0)

    network = multimodal(multimodal_config(CONFIG))
    read = jax.jit(lambda tokens, pictures: network.apply(params, tokens, pictures))
    pixels = PICTURES.processor.normalized(batch.pixels)
    for number, (start, end) in enumerate(((0, 14), (14, 28))):
        tokens = batch.tokens[start:end]
        logits = np.asarray(read(tokens, pixels[number : number + 1]), np.float64)
        alone = log_softmax(logits)[np.arange(len(tokens) - 1), tokens[1:]]
        places = np.arange(start + 1, end)[expected[start + 1 : end]]
        found = np.asarray(losses.nats)[places]
        np.testing.assert_allclose(found, -alone[places - start - 1], rtol=2e-4)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.slow
def test_the_key_drops_layers_of_the_tower_and_weights_are_the_batchs():
    batch = row_of(drawn_batch(), 0)
    task = task_of(with_pictures(reduction="square"))
    params = jax.jit(task.init)(jax.random.key(0))
    losses = jax.jit(lambda key: task.losses(params, batch, key))
    first, second = losses(jax.random.key(1)), losses(jax.random.key(2))
    np.testing.assert_array_equal(first.weights, batch.weights)
    assert np.abs(np.asarray(first.nats) - np.asarray(second.nats)).max() > 1e-4
    np.testing.assert_array_equal(first.nats, losses(jax.random.key(1)).nats)


def test_pixels_are_what_the_processor_normalizes():
    processor = PICTURES.processor
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    square = dataclasses.replace(processor, size=16)
    table = jnp.asarray(processor.table)
    np.testing.assert_array_equal(table[pixels, jnp.arange(3)], square.normalized(pixels))


# ── the data ──────────────────────────────────────────────────────────────────────────────────────

COLORS = ("red", "blue", "green")
LENGTH = 224  # N, of the small tokenizer, in which a row needs some 200 tokens


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve drawn pictures, two questions about each, and a row without a picture."""
    folder = tmp_path_factory.mktemp("data")
    trained(folder, "bytes")
    (folder / "images").mkdir()
    random, rows = np.random.default_rng(0), []
    for number in range(12):
        values = random.integers(0, 60, (30, 20 + number, 3), np.uint8)
        values[..., number % 3] += 150
        pillow().fromarray(values).save(folder / "images" / f"{number}.png")
        for question in ("What color?", "Is it red?"):
            color = COLORS[number % 3]
            answer = color if question == "What color?" else ("no", "yes")[color == "red"]
            rows.append(row(f"<image>\n{question}", answer, image=f"{number}.png"))
    written(folder / "rows.jsonl", [*rows, row("What is blue?", "a color")])
    return folder


def row(question: str, answer: str, **fields) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return fields | {"conversations": turns}


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def places_of(data: Path, pixels: Path | None = None) -> Places:
    return Places(data, data / "pixels" if pixels is None else pixels, data / "images")


def of_data(data: Path, **changes) -> TrainConfig:
    """A config for the data; what is of the pictures is changed in the pictures."""
    own = {name: changes.pop(name) for name in list(changes) if hasattr(PICTURES, name)}
    own = {"image_token": 2, "max_pictures": 4} | own
    pictures = dataclasses.replace(PICTURES, **own)
    model = dataclasses.replace(CONFIG.model, num_tokens=600)
    fixed = {"model": model, "pictures": pictures, "num_positions": LENGTH, "held_out": 0.0}
    return dataclasses.replace(CONFIG, **(fixed | changes))


def epoch(examples, config: TrainConfig, steps: int) -> MultimodalBatch:
    key = jax.random.key(0)
    batches = [examples.batches(key, step) for step in range(steps)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def test_a_batch_holds_rows_their_pictures_and_their_weights(data):
    config = of_data(data, batch_size=5, reduction="square")
    rows = read_conversation_rows(data / "rows.jsonl", config, places_of(data))
    examples = conversation_examples(data / "rows.jsonl", config, places_of(data))
    whole = epoch(examples, config, 5)
    assert (len(rows.rows), rows.num_cut, examples.description["train_documents"]) == (25, 0, 25)
    by_content = {(one.side, bytes(one.tokens)): one for one in rows.rows}
    assert len(by_content) == 25
    for b in range(25):  # each row once
        length = int((whole.segments[b] == 1).sum())
        (one,) = (
            r
            for r in rows.rows
            if np.array_equal(whole.tokens[b, :length], r.tokens)
            and pixels_match(data, r, whole.pixels[b])
        )
        by_content.pop((one.side, bytes(one.tokens)))
        np.testing.assert_array_equal(whole.learnt[b, :length], one.learnt)
        assert not whole.learnt[b, length:].any()
        assert not whole.segments[b, length:].any()
        expected = 1 / np.sqrt(one.learnt.sum())
        np.testing.assert_allclose(whole.weights[b, :length], expected, rtol=1e-6)
    assert not by_content
    again = examples.batches(jax.random.key(0), 3)
    np.testing.assert_array_equal(again.pixels, whole.pixels[15:20])


def pixels_match(data: Path, one, pixels: np.ndarray) -> bool:
    squares = [PICTURES.processor.pixels(read_picture(p.path)) for p in one.pictures]
    shown = np.concatenate([np.zeros((0, 24, 24, 3), np.uint8), *squares])
    rest = pixels[len(shown) :]
    return np.array_equal(pixels[: len(shown)], shown) and not rest.any()


@pytest.mark.slow
def test_packed_rows_have_the_losses_of_rows_alone(data):
    packed = of_data(data, packed=True, num_positions=3 * LENGTH, batch_size=1)
    alone = of_data(data, num_positions=LENGTH, batch_size=1)
    task = task_of(packed)
    params = jax.jit(task.init)(jax.random.key(0))
    losses = jax.jit(jax.vmap(lambda row: task.losses(params, row)))
    found = []
    for config in (alone, packed):
        told, nats = [], []
        places = places_of(data)
        examples = conversation_examples(data / "rows.jsonl", config, places, say=told.append)
        count = 25 if config is alone else int(told[0].split(" in ")[1].split()[0])
        for step in range(count):
            batch = examples.batches(jax.random.key(0), step)
            one = losses(batch)
            nats += np.asarray(one.nats)[np.asarray(one.counts)].tolist()
        found.append(np.sort(nats))
    assert count < 10
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_a_set_comes_as_often_as_its_file_says(data, tmp_path):
    sets = {
        "one": {"annotation": "rows.jsonl", "root": "images", "repeat_time": 1, "length": 25},
        "two": {"annotation": "more.json", "root": "images", "repeat_time": 3},
    }
    (data / "more.json").write_text(json.dumps([row("<image> Blue?", "no", image="0.png")]))
    path = data / "sets.json"
    path.write_text(json.dumps(sets))
    config = of_data(data)
    found = read_conversation_rows(path, config, places_of(data))
    assert (len(found.rows), sum(found.repeats)) == (26, 28)
    assert conversation_examples(path, config, places_of(data)).description["train_documents"] == 28
    for changed, message in (
        ({"repeat_time": 0}, "`repeat_time` of the set 'two' of .* must be"),
        ({"repeat_time": 0.5}, "must be a whole number"),
        ({"max_dynamic_patch": 6}, "must have known settings only"),
    ):
        path.write_text(json.dumps(sets | {"two": sets["two"] | changed}))
        with pytest.raises(ValueError, match=message):
            read_conversation_rows(path, config, places_of(data))


def test_one_report_names_all_that_is_wrong(data, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "images" / "a.png").write_bytes((data / "images" / "0.png").read_bytes())
    rows = [
        row("<image> What?", "red", image="a.png"),
        row("<image> What?", "red", image="broken.png"),
        row("What?", "red", image="absent.png"),
        row("What?" * 99, "red"),
        row("What?", "</s>"),
        row("What?", "red", image=["a.png"] * 5),
    ]
    path = written(tmp_path / "rows.jsonl", rows)
    places = Places(data, tmp_path / "pixels", tmp_path / "images")
    with pytest.raises(ConversationError) as error:
        read_conversation_rows(path, of_data(data), places)
    said = {fault.line: fault.what for fault in error.value.faults}
    assert list(said) == [2, 3, 4, 5, 6]
    assert "broken.png must be a picture that can be read" in said[2]
    assert "`image` must be a file in the folder of images" in said[3]
    assert f"a row must have at most {LENGTH} tokens (`num_positions`)" in said[4]
    assert "must not contain a special token" in said[5]
    faults = [fault.what for fault in error.value.faults if fault.line == 6]
    assert any("a row must have at most 4 pictures" in text for text in faults)


def test_long_rows_are_cut_where_that_is_asked_for(data, tmp_path):
    rows = [row("What?", "red " * 200), row("What?", "red")]
    path = written(tmp_path / "rows.jsonl", rows)
    config, told = of_data(data, cut=True), []
    found = read_conversation_rows(path, config, places_of(data))
    assert isinstance(found, ConversationRows)
    assert (len(found.rows[0].tokens), found.num_cut) == (LENGTH, 1)
    conversation_examples(path, config, places_of(data), say=told.append)
    assert told == [
        f"{path}: 2 rows, 2 an epoch; 1 of them had more than {LENGTH} tokens and were cut"
    ]
    written(path, [row("What? " * 200, "red")])
    with pytest.raises(ConversationError, match="an answer must begin in the first"):
        read_conversation_rows(path, config, places_of(data))


def test_a_tokenizer_of_another_network_is_refused(data):
    path = data / "rows.jsonl"
    with pytest.raises(ValueError, match=r"`pictures\.image_token` must be 2, the id of '<image>'"):
        read_conversation_rows(path, of_data(data, image_token=3), places_of(data))
    small = dataclasses.replace(CONFIG.model, num_tokens=67)
    with pytest.raises(ValueError, match="`tokenizer` must have at most 67 tokens"):
        read_conversation_rows(path, of_data(data, model=small), places_of(data))


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_run_learns_is_resumed_to_the_bit_and_is_judged(data, tmp_path, capsys):
    optimizer = dataclasses.replace(CONFIG.optimizer, learning_rate=3e-3, decay_steps=20)
    config = of_data(
        data,
        held_out=0.3,
        packed=True,
        reduction="square",
        num_positions=2 * LENGTH,
        optimizer=optimizer,
    )
    told, log_config = [], LogConfig(log_every=1, save_every=10, evaluate_every=20)
    options = {"tokenizer": data, "log_config": log_config, "say": told.append}
    source = data / "rows.jsonl"
    train_member(config, source, tmp_path / "whole", **options)
    assert "25 rows" in told[0]
    short = dataclasses.replace(config, num_steps=10)
    train_member(short, source, tmp_path / "parts", **options)
    train_member(config, source, tmp_path / "parts", **options)
    whole, parts = (load_member(tmp_path / name / "dense").state for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    log = tmp_path / "whole/dense/metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 20
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    capsys.readouterr()
    assert cli.main(["evaluate", "--run", str(tmp_path / "whole")]) == 0
    shown = capsys.readouterr().out.splitlines()[1].split()
    last = [line for line in lines if "validation" in line][-1]
    assert float(shown[3]) == pytest.approx(last["validation"], abs=1e-3)
    more = ["--data", str(source), "--tokenizer", str(data)]
    assert cli.main(["evaluate", "--run", str(tmp_path / "whole"), *more]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2] == "25"


@pytest.mark.slow
def test_the_command_line_trains_and_refuses(data, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_json(of_data(data, num_steps=2))))
    words = ["train", "--config", str(path), "--data", str(data / "rows.jsonl")]
    words += ["--run", str(tmp_path / "run")]
    assert cli.main(words) == 2
    assert "`tokenizer` must be given if the config has `pictures`" in capsys.readouterr().err
    words += ["--tokenizer", str(data)]
    assert (
        cli.main([*words, "--pixels", str(tmp_path / "pixels"), "--images", str(data / "images")])
        == 0
    )
    assert (tmp_path / "pixels").is_dir()
    sweep = ["sweep", *words[1:], "--grid", "seed=0:2"]
    assert cli.main(sweep) == 2
    assert "`pictures` of the config must be None" in capsys.readouterr().err
    texts = ["train", "--config", "tiny", *words[3:7], "--images", str(data / "images")]
    assert cli.main(texts) == 2
    assert "the config has no `pictures`" in capsys.readouterr().err
