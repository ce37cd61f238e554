"""Configs to start from: by name, or from a file, with changes of single fields."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dfm_jax.checks import require
from dfm_jax.data.processors import PictureProcessor
from dfm_jax.data.tokens import load_tokenizer
from dfm_jax.json_text import parse_json, read_json
from dfm_jax.models import TransformerConfig
from dfm_jax.models.multimodal import SYSTEMS, MultimodalConfig
from dfm_jax.models.pretrained import Checkpoint
from dfm_jax.training.config import (
    OptimizerConfig,
    PicturesConfig,
    TrainConfig,
    all_fields,
    check_objective,
    from_json,
)
from dfm_jax.training.pretrained import with_network_of


def _bytes_model(width: int, layers: int, heads: int) -> TransformerConfig:
    """A model over 256 bytes and the mask, which also stands before a sequence."""
    return TransformerConfig(
        num_tokens=256,
        num_states=257,
        width=width,
        num_layers=layers,
        num_heads=heads,
        ffn_width=8 * (width // 3),
    )


def _pictures(system: MultimodalConfig, **options: Any) -> PicturesConfig:
    """What a system reads besides its text."""
    values = all_fields(system) | {"vision": system.vision}
    return PicturesConfig(**{name: values[name] for name in values if name != "text"}, **options)


_LLAVA, _INTERNVL = SYSTEMS["llava-1.5-7b"], SYSTEMS["internvl2.5-1b"]
# Neither script states them: the defaults of the trainer that both scripts call.
_OF_TRAINER: dict[str, Any] = {"b1": 0.9, "b2": 0.999, "epsilon": 1e-8, "final_fraction": 0.0}
_SMALL = TrainConfig(model=_bytes_model(128, 4, 4), num_steps=2000)

PRESETS = {
    "tiny": TrainConfig(  # seconds on a laptop
        model=_bytes_model(32, 2, 2), num_steps=100, batch_size=8, num_positions=64
    ),
    "small": _SMALL,  # a million parameters
    "small-masked": replace(
        _SMALL, objective="masked", model=replace(_SMALL.model, causal=False, time_conditioned=True)
    ),
    "medium": TrainConfig(  # 26 million: one accelerator
        model=replace(_bytes_model(512, 8, 8), compute_dtype="bfloat16"),
        optimizer=OptimizerConfig(learning_rate=6e-4, warmup_steps=500),
        num_steps=20_000,
        batch_size=64,
        num_positions=512,
    ),
    # The second stage of LLaVA-1.5 (2310.03744): 665,298 conversations, one epoch.
    "llava-1.5-7b": TrainConfig(
        model=_LLAVA.text,
        pictures=_pictures(
            _LLAVA,
            template="llava-1.5",
            processor=PictureProcessor(size=336, fit="pad"),
            cut=True,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-5,
            warmup_steps=156,
            weight_decay=0.0,
            freeze=("vision_tower",),
            **_OF_TRAINER,
        ),
        num_steps=5198,
        batch_size=128,
        num_micro_batches=8,
        num_positions=2048,
        held_out=0.01,
    ),
    # The paper's fine-tuning of InternVL2.5-1B: 12 packed rows, 858 steps, one tile a picture.
    "internvl2.5-1b": TrainConfig(
        model=_INTERNVL.text,
        pictures=_pictures(
            _INTERNVL,
            template="internvl2.5",
            processor=PictureProcessor(
                size=448,
                fit="stretch",
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
            ),
            max_pictures=24,
            packed=True,
            reduction="square",
        ),
        optimizer=OptimizerConfig(
            learning_rate=4e-5, warmup_steps=26, weight_decay=0.05, **_OF_TRAINER
        ),
        num_steps=858,
        batch_size=12,
        num_micro_batches=3,
        num_positions=8192,
        held_out=0.01,
    ),
}
# What neither the paper nor the public scripts say, or what they do in another way.
UNKNOWN: dict[str, tuple[str, ...]] = {
    "llava-1.5-7b": (
        "the paper's own batch, rate, steps and data: those of the public second stage here",
        "betas, epsilon and the norm that clips the gradient: the trainer's defaults here",
        "the share of rows that is held out: 0.01 here",
        "the weight of a token: there a mean over each device's batch, here over the whole batch",
        "the checkpoint after the projector stage: to be joined of Vicuna, CLIP and the projector",
        "the clusters: their number and their features",
    ),
    "internvl2.5-1b": (
        "betas, epsilon and the norm that clips the gradient: the trainer's defaults here",
        "the share of rows that is held out: 0.01 here",
        "tiles: on in the script, off in the README; off here, `pictures.processor.fit=tiles`",
        "which rows are packed together: there the best of a buffer of 20",
        "which rows each expert reads: the sets and their repeats are known, the split is not",
        "the steps of an expert: 858 here, as of the dense model",
    ),
}


MAX_RUNS = 100_000  # of a grid: what one command may list


def load_config(
    source: str,
    changes: Sequence[str] = (),
    *,
    tokenizer: Path | None = None,
    init: Checkpoint | None = None,
) -> TrainConfig:
    """The preset of that name, or the config in a JSON file, with the changes `FIELD=VALUE`.

    A field is named by its path, as in `optimizer.learning_rate=3e-4`. A value is JSON, or a bare
    word. A preset of texts gets the V tokens of the `tokenizer`, plus the mask if it had one,
    unless `model.num_tokens` is among the changes. With `init` a preset gets the network of this
    checkpoint.

    Raises:
        ValueError: if there is no such preset or file; if a field does not exist; if a value is not
            allowed.
    """
    values = _preset_or_file(source)
    if init is not None and source in PRESETS:
        values = all_fields(with_network_of(PRESETS[source], init))
    given: set[str] = set()
    for change in changes:
        name, sign, text = change.partition("=")
        require(bool(sign), "`set` must be FIELD=VALUE", change)
        _check_apart("set", name, given)
        given.add(name)
        set_field(values, name, _json_or_word(text), option="set")
    sizes = {"model", "model.num_tokens", "model.num_states"}
    # The rows of a checkpoint, or of what reads pictures, are more than its tokenizer's tokens.
    sized = init is not None or values["pictures"] is not None or bool(given & sizes)
    if tokenizer is not None and source in PRESETS and not sized:
        model = values["model"]
        masks = model["num_states"] - model["num_tokens"]
        model["num_tokens"] = load_tokenizer(tokenizer).num_tokens
        model["num_states"] = model["num_tokens"] + masks
    config = from_json(TrainConfig, values)
    check_objective(config)
    return config


def with_freeze(changes: Sequence[str], freeze: Sequence[str]) -> tuple[str, ...]:
    """The changes of `load_config`, and one that freezes these parts of the network, if any."""
    given = f"optimizer.freeze={json.dumps(list(freeze))}"
    return (*changes, given) if freeze else tuple(changes)


def load_axes(texts: Sequence[str], changes: Sequence[str] = ()) -> dict[str, tuple[Any, ...]]:
    """The axes of a grid, by field; see `load_axis`.

    Raises:
        ValueError: if a field has two axes, or is also among the `changes` of `load_config`,
            because only one of the two could be used.
    """
    axes: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, values = load_axis(text)
        _check_apart("grid", name, axes)
        axes[name] = values
    for change in changes:
        _check_apart("set", change.partition("=")[0], axes)
    return axes


def _check_apart(option: str, name: str, given: Iterable[str]) -> None:
    """Check that no given field is this one, contains it or lies in it."""
    for other in given:
        apart = not f"{name}.".startswith(f"{other}.") and not f"{other}.".startswith(f"{name}.")
        require(apart, f"`{option}` must name a field that {other} does not give already", name)


def set_field(values: dict[str, Any], name: str, value: Any, *, option: str = "grid") -> None:
    """Set a field of a config given as JSON; `name` is the path of the field.

    Raises:
        ValueError: if there is no such field.
    """
    *outer, last = name.split(".")
    place: Any = values
    for part in outer:
        place = place.get(part) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        near = get_close_matches(name, _paths(values), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"`{option}` must name a field of the config; got {option} = {name!r}.{hint}"
        )
    place[last] = value


def load_axis(text: str) -> tuple[str, tuple[Any, ...]]:
    """The field and values of `FIELD=VALUE,VALUE`, or of `FIELD=FROM:TO`: the integers below TO.

    Raises:
        ValueError: if the text has neither form.
    """
    name, sign, listed = text.partition("=")
    require(bool(sign and listed), "`grid` must be FIELD=VALUE,VALUE or FIELD=FROM:TO", text)
    if span := re.fullmatch(r"(\d{1,18}):(\d{1,18})", listed):
        values: Sequence[Any] = range(*map(int, span.groups()))
    else:
        values = [_json_or_word(word) for word in listed.split(",")]
    rule = f"`grid` must give `{name}` at most {MAX_RUNS:,} values"
    require(len(values) <= MAX_RUNS, rule, listed)
    single = not any(isinstance(value, dict | list) for value in values)
    require(single, f"`grid` must give numbers or words to `{name}`", listed)
    rule = f"`grid` must give `{name}` values that differ"
    require(len(values) > 0 and len(set(values)) == len(values), rule, listed)
    return name, tuple(values)


def _json_or_word(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _preset_or_file(source: str) -> dict[str, Any]:
    if source in PRESETS:
        return all_fields(PRESETS[source])
    path = Path(source)
    if not path.is_file():
        names = ", ".join(PRESETS)
        raise ValueError(f"`config` must be a file, or one of {names}; got config = {source!r}.")
    try:
        values = read_json(path)
    except ValueError as error:
        raise ValueError(f"`config` must be JSON; got another content: {error}") from error
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        values = values["config"]  # the config.json of a run
    return all_fields(from_json(TrainConfig, values))


def _paths(values: dict[str, Any], prefix: str = "") -> list[str]:
    paths = []
    for name, value in values.items():
        paths.append(prefix + name)
        if isinstance(value, dict):
            paths += _paths(value, f"{prefix}{name}.")
    return paths
