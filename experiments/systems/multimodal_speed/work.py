"""The work of `multimodal_speed`: a LLaVA in Hugging Face's form, and conversations about pictures.

Weights and pixels are drawn; only shapes matter for the speed. Both sides read the same files.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dfm_jax.data.processors import PictureProcessor
from dfm_jax.models import TransformerConfig
from dfm_jax.models.multimodal import MultimodalConfig, VisionConfig, multimodal
from dfm_jax.models.pretrained import write_folder
from dfm_jax.training.batches import MultimodalBatch
from dfm_jax.training.config import OptimizerConfig, PicturesConfig, TrainConfig
from experiments.systems.training_speed.sides import ADAMW

STEP, FROZEN, ANSWERS = "training step", "training step, tower frozen", "greedy answers"
WORKLOADS = (STEP, FROZEN, ANSWERS)
FIRST = "plain first version"  # a side of ours
FREEZE = {STEP: (), FROZEN: ("vision_tower",)}  # the parts that are not trained
OPTIMIZER: dict[str, Any] = {**ADAMW, "learning_rate": 1e-4}  # constant, without a warm-up
_FIRST_TOKEN, _COLORS = 1, 4  # the id that begins a row; the squares of color along a side


@dataclass(frozen=True, kw_only=True)
class Size:
    """A LLaVA, and the rows that it reads; each row is a picture, a question and its answer."""

    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    num_tokens: int
    tower_width: int
    tower_layers: int
    tower_heads: int
    image_size: int
    patch_size: int
    num_rows: int
    batch_size: int
    least: int  # tokens of a question, and of an answer in training
    most: int
    new: int  # tokens of an answer that is drawn

    @property
    def network(self) -> MultimodalConfig:
        """Its config; the last token stands for pictures."""
        text = TransformerConfig(
            num_tokens=self.num_tokens,
            width=self.width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            ffn_width=self.ffn_width,
            max_positions=2048,
            tied=False,
        )
        vision = VisionConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.tower_width,
            num_layers=self.tower_layers,
            num_heads=self.tower_heads,
            ffn_width=4 * self.tower_width,
        )
        return MultimodalConfig(text=text, vision=vision, image_token=self.num_tokens - 1)

    @property
    def num_positions(self) -> int:
        """N, the tokens of the longest row that can be drawn."""
        return 1 + self.network.features_per_picture + 2 * self.most


SIZES = {
    "tiny": Size(
        width=64,
        num_layers=2,
        num_heads=2,
        ffn_width=128,
        num_tokens=256,
        tower_width=48,
        tower_layers=2,
        tower_heads=2,
        image_size=28,
        patch_size=14,
        num_rows=16,
        batch_size=4,
        least=6,
        most=10,
        new=8,
    ),
    "28M": Size(
        width=384,
        num_layers=8,
        num_heads=6,
        ffn_width=1024,
        num_tokens=8192,
        tower_width=320,
        tower_layers=6,
        tower_heads=5,
        image_size=168,
        patch_size=14,
        num_rows=64,
        batch_size=8,
        least=24,
        most=36,
        new=32,
    ),
}


class Rows(NamedTuple):
    """Conversations as arrays: [R, N] tokens with 0 behind a row, and a picture for each."""

    tokens: np.ndarray
    prompts: np.ndarray  # [R], the tokens before the answer
    lengths: np.ndarray  # [R], with the answer
    pixels: np.ndarray  # [R, H, W, 3] of 8 bits

    def batch(self, number: int, size: int) -> "Rows":
        """Batch `number` of so many rows; after the last batch comes the first one again."""
        first = number * size % len(self.tokens)
        return Rows(*(array[first : first + size] for array in self))

    @property
    def learnt(self) -> np.ndarray:
        """[R, N], which tokens are of the answer."""
        places = np.arange(self.tokens.shape[1])[None]
        return (places >= self.prompts[:, None]) & (places < self.lengths[:, None])


def drawn_rows(size: Size, seed: int) -> Rows:
    """Rows of tokens drawn uniformly, with pictures of a few squares of color."""
    rng, network = np.random.default_rng(seed), size.network
    image = [network.image_token] * network.features_per_picture
    tokens = np.zeros((size.num_rows, size.num_positions), np.int32)
    words = rng.integers(size.least, size.most + 1, (size.num_rows, 2))
    for row, count in zip(tokens, words.sum(axis=1), strict=True):
        said = rng.integers(_FIRST_TOKEN + 1, network.image_token, count)
        row[: 1 + len(image) + count] = [_FIRST_TOKEN, *image, *said]
    colors = rng.integers(0, 256, (size.num_rows, _COLORS, _COLORS, 3), np.uint8)
    side = size.image_size // _COLORS
    pixels = colors.repeat(side, axis=1).repeat(side, axis=2)
    prompts = 1 + len(image) + words[:, 0]
    return Rows(tokens, prompts, prompts + words[:, 1], pixels)


def color_table(network: MultimodalConfig) -> np.ndarray:
    """[256, 3], what the network reads for each value of a color."""
    return PictureProcessor(size=network.vision.image_size).table


def write_work(folder: Path, size: Size, seed: int) -> None:
    """Write the network as a Hugging Face folder `model`, the rows and the optimizer's options."""
    params = multimodal(size.network).init(jax.random.key(seed))
    write_folder(folder / "model", size.network, params)
    arrays = {**drawn_rows(size, seed)._asdict(), "table": color_table(size.network)}
    for workload in WORKLOADS:  # a side reads a new file when the work changes
        np.savez(data_file(folder, workload), allow_pickle=False, **arrays)
    (folder / "work.json").write_text(json.dumps({"freeze": FREEZE, "optimizer": OPTIMIZER}))


def data_file(folder: Path, workload: str) -> Path:
    """The file of the rows of a workload."""
    return folder / f"{workload}.npz"


def rows_of(arrays: Mapping[str, np.ndarray]) -> Rows:
    """The rows from the arrays of a file."""
    return Rows(*(arrays[name] for name in Rows._fields))


def train_config(
    network: MultimodalConfig, rows: Rows, batch_size: int, freeze: tuple[str, ...]
) -> TrainConfig:
    """The config of a run of `train` on such rows."""
    own = {item.name: getattr(network, item.name) for item in fields(network)}
    text, processor = own.pop("text"), PictureProcessor(size=network.vision.image_size)
    return TrainConfig(
        model=text,
        pictures=PicturesConfig(processor=processor, **own),
        optimizer=OptimizerConfig(warmup_steps=0, final_fraction=1.0, freeze=freeze, **OPTIMIZER),
        num_steps=1_000_000,
        batch_size=batch_size,
        num_positions=rows.tokens.shape[1],
        held_out=0.0,
    )


def training_batch(rows: Rows) -> MultimodalBatch:
    """The rows as `train` makes them of conversations, each in a sequence of its own."""
    inside = np.arange(rows.tokens.shape[1])[None] < rows.lengths[:, None]
    return MultimodalBatch(
        tokens=rows.tokens,
        learnt=rows.learnt,
        segments=inside.astype(np.int32),
        weights=inside.astype(np.float32),
        pixels=rows.pixels[:, None],
    )
