"""What a run will take, from the shapes of its config alone: tokens, FLOPs, memory on a chip.

Nothing is allocated, and neither weights nor data are needed. Bytes are a formula for stacked and
recomputed layers whose state is split over the chips; `experiments.compile_tpu` has the compiler's.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dfm_jax.checks import check_count, require
from dfm_jax.data.processors import FILES
from dfm_jax.json_text import read_json
from dfm_jax.models import TransformerConfig
from dfm_jax.models.multimodal import MultimodalConfig, flops_per_picture, num_vision_parameters
from dfm_jax.models.multimodal.sizes import num_projector_parameters
from dfm_jax.models.sizes import flops_per_token, num_parameters
from dfm_jax.training.config import (
    TrainConfig,
    check_objective,
    multimodal_config,
    without_adapters,
)
from dfm_jax.training.state import frozen as frozen_leaves
from dfm_jax.training.state import trained as trained_leaves
from dfm_jax.training.tasks import task_of

TOWER, PROJECTOR, TEXT = "vision_tower", "multi_modal_projector", "language_model"
_SINGLE, _HALF = 4, 2  # bytes of float32 and of bfloat16
_SEEN = 9 / 16  # of the square of scores: causal attention in 8 blocks
_WRITTEN = 2 * _SINGLE + _HALF  # bytes of a score, its gradient and its weight


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of a run: counts, and FLOPs and bytes by formula."""

    parameters: int
    trained: int  # of the parameters, those that are not frozen
    adapters: int  # of the parameters, those of adapters of low rank
    rows: int  # sequences of an update
    tokens: int  # of an update, image tokens and padding among them
    pictures: int  # of an update, at most
    steps: int
    flops: float  # of an update
    state: float  # bytes on a chip: parameters, moments, the average
    gradients: float  # bytes on a chip, of the sum over micro-batches and of one
    weights: float  # bytes on a chip that are whole while they are used, and their gradients
    activations: float  # bytes on a chip

    @property
    def memory(self) -> float:
        """Bytes on a chip."""
        return self.state + self.gradients + self.weights + self.activations


def plan_of(config: TrainConfig, *, chips: int = 1, frozen: Collection[str] = ()) -> Plan:
    """The plan of a run whose state and batches are split over so many chips.

        FLOPs = Σ over parts of (2 or 1 forward, 2 backward if trained) · forward FLOPs

    Layers that are recomputed take a second forward pass if they are trained. A frozen part before
    all that is trained takes one forward pass. If only adapters of low rank are trained in a part,
    or none in it but some before it, products with its kernels take one backward pass, and the
    products of attention two.

    Args:
        config: A config without a task of its own.
        chips: The number of chips; they must divide the rows of a micro-batch.
        frozen: The parts of a network of pictures that are not trained: `vision_tower`, or it and
            `multi_modal_projector`.

    Raises:
        ValueError: if the config has a task of its own; if the chips do not divide the rows; if a
            frozen part is not one of the network's, or comes after one that is trained, or has
            adapters, see `training.state.frozen`.
    """
    require(config.task is None, "`task` must be None, because its shapes are its own", config.task)
    check_objective(config)
    check_count("chips", chips)
    here = config.batch_size // config.num_micro_batches
    rule = f"`chips` must divide the rows of a micro-batch, of which there are {here}"
    require(here % chips == 0, rule, chips)
    system = None if config.pictures is None else multimodal_config(config)
    counts = _counts(config.model, system)
    rule = f"`frozen` must be the first of {', '.join(counts)}, and never all of them"
    given = list(frozen)
    first = list(counts)[: len(given)]
    require(set(given) == set(first) and len(given) < len(counts), rule, given)
    parts = {name: _Part(count, count * (name not in first), 0) for name, count in counts.items()}
    if config.lora.adapts:
        parts = _with_adapters(config, counts, given)
        first = list(itertools.takewhile(lambda name: not parts[name].trained, parts))
    total = sum(part.count + part.adapters for part in parts.values())
    trained = sum(part.trained for part in parts.values())
    pictures = 0 if config.pictures is None else config.pictures.max_pictures
    copies = 3 + (config.ema_decay is not None)
    sums = 1 + (config.num_micro_batches > 1)
    return Plan(
        parameters=total,
        trained=trained,
        adapters=sum(part.adapters for part in parts.values()),
        rows=config.batch_size,
        tokens=config.batch_size * config.num_positions,
        pictures=config.batch_size * pictures,
        steps=config.num_steps,
        flops=config.batch_size * _row_flops(config, system, pictures, parts, first),
        state=_SINGLE * (copies * trained + (copies - 2) * (total - trained)) / chips,
        gradients=_SINGLE * sums * trained / chips,
        weights=_weights(config.model, system, chips, whole=parts[TEXT].is_whole),
        activations=here / chips * _activations(config, system, pictures, first),
    )


class _Part(NamedTuple):
    """The parameters of a part: without its adapters, those that are trained, and its adapters."""

    count: int
    trained: int  # adapters among them
    adapters: int

    @property
    def is_whole(self) -> bool:
        """Whether all of it is trained, and not its adapters alone."""
        return self.trained == self.count + self.adapters


def _with_adapters(
    config: TrainConfig, counts: dict[str, int], freeze: Sequence[str]
) -> dict[str, _Part]:
    """The parts of a network with adapters of low rank, by the shapes of its parameters."""
    params = jax.eval_shape(task_of(config).init, jax.random.key(0))
    moving = trained_leaves(params, frozen_leaves(params, freeze, config.lora))
    base = jax.eval_shape(task_of(without_adapters(config)).init, jax.random.key(0))

    def size(tree: Any, name: str) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree if len(counts) == 1 else tree[name]))

    return {
        name: _Part(count, size(moving, name), size(params, name) - size(base, name))
        for name, count in counts.items()
    }


def _counts(text: TransformerConfig, system: MultimodalConfig | None) -> dict[str, int]:
    """The parameters of each part, in the order in which an update passes them."""
    if system is None:
        return {TEXT: num_parameters(text)}
    return {
        TOWER: num_vision_parameters(system.vision),
        PROJECTOR: num_projector_parameters(system),
        TEXT: num_parameters(text),
    }


def _row_flops(
    config: TrainConfig,
    system: MultimodalConfig | None,
    pictures: int,
    parts: dict[str, _Part],
    first: Collection[str],
) -> float:
    text, length = config.model, config.num_positions

    def passes(name: str, forward: float, squares: float, rows: int, *, remat: bool) -> float:
        if name in first:
            return forward
        part = parts[name]
        second = forward if part.is_whole else squares  # of two factors, and not of a frozen kernel
        return (2 + remat) * forward + second + (3 + remat) * 2 * part.adapters * rows

    squares = 4 * length**2 * text.num_heads * text.head_size * text.num_layers
    forward = length * flops_per_token(text, length)
    flops = passes(TEXT, forward, squares, length, remat=text.remat)
    if system is not None:
        vision, rows = system.vision, system.features_per_picture
        inputs = vision.width * system.shuffle**2
        projected = 2 * rows * (inputs + text.width) * text.width
        seen, tower = 1 + vision.num_patches, flops_per_picture(system) - projected
        squares = 4 * seen**2 * vision.width * vision.num_layers
        flops += pictures * passes(TOWER, tower, squares, seen, remat=vision.remat)
        flops += pictures * passes(PROJECTOR, projected, 0, rows, remat=False)
    return flops


def _weights(
    text: TransformerConfig, system: MultimodalConfig | None, chips: int, *, whole: bool
) -> float:
    """Of one layer, float32, bfloat16 and gradient; of what is in no layer, float32 and gradient.

    On one chip only the copy in bfloat16 is added to the state. If the text is not trained as a
    `whole`, there are no gradients of it.
    """
    gradients = _SINGLE * whole
    layer = 2 * text.width * (text.num_heads + text.kv_heads) * text.head_size
    layer += 3 * text.width * text.ffn_width
    outside = num_parameters(text) - text.num_layers * layer
    if system is not None:
        outside += num_projector_parameters(system)
    if chips == 1:
        return _HALF * layer
    return (_SINGLE + gradients + _HALF) * layer + (_SINGLE + gradients) * outside


def _activations(
    config: TrainConfig, system: MultimodalConfig | None, pictures: int, frozen: Collection[str]
) -> float:
    """Of one row: the inputs of all layers, and what is larger of one layer and of the logits."""
    text, length = config.model, config.num_positions
    kept = _HALF * text.width * text.num_layers * length
    branches = 5 * text.width + 2 * text.kv_heads * text.head_size + 3 * text.ffn_width
    scores = _WRITTEN * _SEEN * text.num_heads * length**2
    parts = [2 * _HALF * branches * length + scores, 2 * _SINGLE * text.num_tokens * length]
    if system is not None:
        vision, seen = system.vision, 1 + system.vision.num_patches
        pixels = 3 * vision.image_size**2 * (1 + _SINGLE)
        kept += pictures * (pixels + _HALF * text.width * system.features_per_picture)
        if TOWER not in frozen:
            kept += pictures * _HALF * vision.width * vision.num_layers * seen
        branches = 5 * vision.width + 2 * vision.ffn_width
        one = _WRITTEN * vision.num_heads * seen**2 + 2 * _HALF * branches * seen
        parts.append(pictures * one)
    return kept + max(parts)


# ── What a command would read, and what is not there ──────────────────────────────────────────────


def files_read(root: Path | None) -> list[tuple[Path, int]]:
    """The files of data, or of a checkpoint's folder, with their bytes; none where it is absent."""
    if root is None or not root.exists():
        return []
    found = sorted(root.rglob("*")) if root.is_dir() else [root]
    return [(path, path.stat().st_size) for path in found if path.is_file()]


def missing(config: TrainConfig, data: Path | None, folder: Path | None) -> Iterator[str]:
    """What has to be there before the run can begin, one sentence each."""
    if data is None or not data.exists():
        yield "the data (--data)" if data is None else f"the data: {data} does not exist"
    if folder is None:
        if config.pictures is not None:
            yield "the checkpoint from which all members start (--init)"
        return
    if not folder.is_dir():
        yield f"the checkpoint: {folder} is no folder"
        return
    if not (folder / "config.json").is_file():
        yield f"{folder / 'config.json'}: which network the checkpoint holds"
    if not (folder / "tokenizer.json").is_file():
        yield f"{folder / 'tokenizer.json'}: the tokens"
    if config.pictures is not None and not any((folder / name).is_file() for name in FILES):
        yield f"{folder / FILES[0]}: how a picture becomes pixels; without it, as the config says"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index)["weight_map"].values()))
        yield from (f"{folder / name}: a shard" for name in shards if not (folder / name).is_file())
    elif not any(folder.glob("*.safetensors")):
        yield f"{folder}: no file of weights ends in .safetensors"


def num_data_rows(data: Path | None) -> int | None:
    """The rows of a JSONL file, or of a JSON array in a file; None for other data."""
    if data is None or not data.is_file():
        return None
    if data.suffix == ".json":
        rows = read_json(data)
        return len(rows) if isinstance(rows, list) else None
    with data.open("rb") as file:
        return sum(bool(line.strip()) for line in file)
