"""Training on conversations with pictures: losses, data, packs, a run from start to end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfm_jax.data.processors import PictureProcessor
from dfm_jax.interfaces import Losses, Task
from dfm_jax.models import TransformerConfig
from dfm_jax.models.multimodal import VisionConfig, multimodal
from dfm_jax.training.batches import MultimodalBatch
from dfm_jax.training.config import PicturesConfig, TrainConfig, multimodal_config
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
