"""The config of a run as one frozen value: to JSON and back, hashed, compared field by field."""

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dfm_jax.checks import check_count, check_interval, check_seed, require
from dfm_jax.data.processors import PictureProcessor
from dfm_jax.data.templates import template_named
from dfm_jax.json_types import from_json as from_json
from dfm_jax.models import TransformerConfig
from dfm_jax.models.lora import LoraConfig
from dfm_jax.models.multimodal import MultimodalConfig, VisionConfig

Objective = Literal["autoregressive", "masked"]
Reduction = Literal["token", "square"]
Windows = Literal["stream", "documents"]
MAX_COUNT = 2**31 - 1  # what an int32 holds, as devices count


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a linear warm-up, a cosine decay, and clipping by the global norm.

    Raises:
        ValueError: if a rate, a decay or a norm lies outside its domain.
    """

    learning_rate: float = 1e-3  # the peak rate
    warmup_steps: int = 20
    final_fraction: float = 0.1  # the rate at the end of the cosine, as a share of the peak
    weight_decay: float = 0.1  # only matrices decay; norms, biases and other vectors do not
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    max_norm: float | None = 1.0  # the largest norm of the gradient; None does not clip
    decay_steps: int | None = None  # S, the end of the cosine; None means num_steps
    freeze: tuple[str, ...] = ()  # the parts of the network that are not trained; see `frozen`

    def __post_init__(self) -> None:
        """Refuse values that no optimizer can have."""
        check_interval("learning_rate", self.learning_rate, 0, np.inf, ends="()")
        check_count("warmup_steps", self.warmup_steps, at_least=0, at_most=MAX_COUNT)
        check_interval("final_fraction", self.final_fraction, 0, 1)
        check_interval("weight_decay", self.weight_decay, 0, np.inf, ends="[)")
        check_interval("b1", self.b1, 0, 1, ends="[)")
        check_interval("b2", self.b2, 0, 1, ends="[)")
        check_interval("epsilon", self.epsilon, 0, np.inf, ends="()")
        if self.max_norm is not None:
            check_interval("max_norm", self.max_norm, 0, np.inf, ends="()")
        if self.decay_steps is not None:
            check_count("decay_steps", self.decay_steps, at_most=MAX_COUNT)


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """What a network needs besides its language model to be trained on conversations with pictures.

    Raises:
        ValueError: if a count is below 1; if a name is not known; if the processor makes pictures
            of another size than the tower reads. `multimodal_config` checks what depends on the
            language model.
    """

    vision: VisionConfig
    processor: PictureProcessor
    image_token: int  # the id of the tokens that stand for the features of a picture
    feature_layer: int = -2  # these five are explained in `MultimodalConfig`
    with_class: bool = False
    shuffle: int = 1
    projector_norm: bool = False
    projector_bias: bool = True
    template: str = "llava-1.5"  # how a conversation becomes a text, see `data.templates`
    max_pictures: int = 1  # I, the pictures of a sequence; each tile of a picture counts as one
    cut: bool = False  # a row of more than N tokens is cut; otherwise it is refused
    packed: bool = False  # short rows share a sequence, and do not see each other
    reduction: Reduction = "token"  # each learnt token weighs 1, or 1/√(learnt tokens of its row)

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained."""
        check_count("max_pictures", self.max_pictures, at_most=MAX_COUNT)
        template_named(self.template)
        names = typing.get_args(Reduction)
        rule = f"`reduction` must be one of {', '.join(names)}"
        require(self.reduction in names, rule, self.reduction)
        size = self.vision.image_size
        rule = f"`processor.size` must be `vision.image_size`, which is {size}"
        require(self.processor.size == size, rule, self.processor.size)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that the parameters of a run depend on, except its data.

    Raises:
        ValueError: if a size is below 1, or the number of micro-batches does not divide the batch
            size. `check_objective` checks that `model` fits the objective.
    """

    model: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            num_tokens=256, num_states=257, width=128, num_layers=4, num_heads=4, ffn_width=352
        )
    )
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)  # with targets, adapters are trained
    objective: Objective = "autoregressive"  # next token; "masked": all-mask source, κ_t = t
    num_grid_steps: int = 32  # T, the steps of the grid, for the masked objective only
    seed: int = 0  # the seed of the parameters, the batches and the noise
    num_steps: int = 1000  # the number of updates
    batch_size: int = 16  # the number of sequences in an update
    num_micro_batches: int = 1  # the parts of a batch, in memory one at a time
    num_positions: int = 128  # N, the number of tokens of a sequence
    windows: Windows = "documents"  # a sequence lies in one document; "stream": anywhere
    held_out: float = 0.1  # the share of documents for evaluation, chosen by a hash
    ema_decay: float | None = None  # d of an average of the parameters; None keeps none
    task: str | None = None  # MODULE:FUNCTION that makes the task; see `tasks`
    pictures: PicturesConfig | None = None  # `model` reads pictures too, as LLaVA and InternVL do

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained."""
        check_seed("seed", self.seed)
        for name in ("num_grid_steps", "num_steps", "batch_size", "num_micro_batches"):
            check_count(name, getattr(self, name), at_most=MAX_COUNT)
        check_count("num_positions", self.num_positions, at_least=2, at_most=MAX_COUNT)
        rule = f"`num_micro_batches` must divide `batch_size`, which is {self.batch_size}"
        require(self.batch_size % self.num_micro_batches == 0, rule, self.num_micro_batches)
        check_interval("held_out", self.held_out, 0, 1, ends="[)")
        if self.ema_decay is not None:
            check_interval("ema_decay", self.ema_decay, 0, 1, ends="[)")
        for name, kinds in (("objective", Objective), ("windows", Windows)):
            names, value = typing.get_args(kinds), getattr(self, name)
            require(value in names, f"`{name}` must be one of {', '.join(names)}", value)
        rule = "`lora.targets` must be empty if `task` is given, whose network may have no adapters"
        require(self.task is None or not self.lora.adapts, rule, self.lora.targets)


def check_objective(config: TrainConfig) -> None:
    """Check that the objective can train the transformer `config.model`.

    Nothing is checked if the config names a task.

    Raises:
        ValueError: if it cannot; the message names the field of the model that must change.
    """
    if config.task is not None:
        return
    if config.pictures is not None:
        rule = "`objective` must be autoregressive if `pictures` is given"
        require(config.objective == "autoregressive", rule, config.objective)
        multimodal_config(config)
    model, causal = config.model, config.objective == "autoregressive"
    rule = f"`model.causal` must be {causal} if the objective is {config.objective}"
    require(model.causal == causal, rule, model.causal)
    if causal:
        rule = (
            "`model.time_conditioned` must be False, because the length of the prefix is the time"
        )
        require(not model.time_conditioned, rule, model.time_conditioned)
    else:
        rule = "`model.num_states` must be V + 1 if the objective is masked"
        require(model.states == model.num_tokens + 1, rule, model.states)


def multimodal_config(config: TrainConfig) -> MultimodalConfig:
    """The network of a config that has `pictures`: the tower, the projector, the language model.

    Raises:
        ValueError: if there are no `pictures`; if the parts do not fit together.
    """
    pictures = config.pictures
    require(pictures is not None, "`pictures` must be given", pictures)
    assert pictures is not None
    names = {item.name for item in dataclasses.fields(MultimodalConfig)} - {"text"}
    shared = {name: getattr(pictures, name) for name in names}
    return MultimodalConfig(text=config.model, **shared)


def without_adapters(config: TrainConfig) -> TrainConfig:
    """The config of the network into whose kernels the adapters of a run are merged."""
    return dataclasses.replace(config, lora=LoraConfig())


def hyperparameters(config: TrainConfig) -> dict[str, Any]:
    """The values in the optimizer's state; runs that differ only in them share one program."""
    names = ("learning_rate", "weight_decay", "warmup_steps")
    values = {name: getattr(config.optimizer, name) for name in names}
    return values | {"num_steps": config.optimizer.decay_steps or config.num_steps}


def shape_of(config: TrainConfig) -> TrainConfig:
    """The config without its seed and `hyperparameters`: what a compiled program depends on."""
    values = {"learning_rate": 1.0, "weight_decay": 0.0, "warmup_steps": 0, "decay_steps": None}
    optimizer = dataclasses.replace(config.optimizer, **values)
    return dataclasses.replace(config, seed=0, num_steps=1, optimizer=optimizer)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a run is logged, saved and evaluated; the parameters do not depend on it."""

    log_every: int = 10  # the steps between lines of metrics.jsonl
    save_every: int = 200  # the steps between checkpoints; the last step is saved too
    evaluate_every: int = 200  # the steps between evaluations on held-out documents
    keep_last: int = 2  # the number of checkpoints that are kept, besides the best
    evaluation_windows: int = 256  # the largest number of sequences of one evaluation

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        for item in dataclasses.fields(self):
            check_count(item.name, getattr(self, item.name))


def to_json(config: Any) -> dict[str, Any]:
    """A config as JSON values; fields that version 0.1 did not have appear only if they are set."""
    values = all_fields(config)
    optimizer, model = values.get("optimizer", {}), values.get("model", {})
    later = [(values, "task"), (values, "pictures")]
    later += [(optimizer, name) for name in ("decay_steps", "freeze")]
    later += [(model, name) for name in ("head_width", "qkv_bias", "qk_norm", "rope_scaling")]
    for place, name in later:
        if not place.get(name):
            place.pop(name, None)
    if values.get("lora") == all_fields(LoraConfig()):
        del values["lora"]
    return values


def all_fields(config: Any) -> dict[str, Any]:
    """A config as JSON values, with every field."""
    return _with_lists(dataclasses.asdict(config))


def _with_lists(value: Any) -> Any:
    """The same values, with a list for each tuple, as JSON has them."""
    if isinstance(value, dict):
        return {name: _with_lists(entry) for name, entry in value.items()}
    return [_with_lists(entry) for entry in value] if isinstance(value, tuple | list) else value


def config_digest(values: dict[str, Any]) -> str:
    """The SHA-256 of a config as JSON; the order of its fields does not matter."""
    text = json.dumps(values, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(
    expected: dict[str, Any], found: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(field, expected, found) for each difference of two configs; "absent" for a missing field."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        here, there = expected.get(name, "absent"), found.get(name, "absent")
        if isinstance(here, dict) and isinstance(there, dict):
            yield from differences(here, there, f"{prefix}{name}.")
        elif isinstance(here, list) and isinstance(there, list) and len(here) != len(there):
            yield f"the number of {prefix}{name}", len(here), len(there)
        elif isinstance(here, list) and isinstance(there, list):
            mine, theirs = ({str(i): v for i, v in enumerate(row)} for row in (here, there))
            yield from differences(mine, theirs, f"{prefix}{name}.")
        elif here != there or isinstance(here, bool) != isinstance(there, bool):
            yield f"{prefix}{name}", here, there


def differences_until(
    step: int, expected: dict[str, Any], found: dict[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """The `differences` of two records that affect the first `step` updates of a run.

    This allows a run to be made longer. Its number of updates is compared only up to `step`. The
    end of its cosine is compared only if an update was made at a rate that depends on it, which is
    never the case if `final_fraction` is 1.
    """
    return differences(_until(step, expected), _until(step, found))


def _until(step: int, values: Any) -> Any:
    """A record whose configs omit everything that the first `step` updates do not depend on."""
    if isinstance(values, list):
        return [_until(step, entry) for entry in values]
    if not isinstance(values, dict):
        return values
    if "num_steps" not in values or "optimizer" not in values:  # not a config
        return {name: _until(step, entry) for name, entry in values.items()}
    config = from_json(TrainConfig, values)
    optimizer, made = config.optimizer, min(config.num_steps, step)
    # Update W, the first behind the warm-up, is made at the peak, however long the cosine.
    depends = optimizer.final_fraction != 1 and made > optimizer.warmup_steps + 1
    end = hyperparameters(config)["num_steps"] if depends else None
    known = to_json(config)
    known["optimizer"]["decay_steps"] = end
    return {"num_steps": made} | known | {"num_steps": made}


def lengthening_hint(field: str, expected: Any, found: Any) -> str:
    """What to do about a difference that changes the length of a run; "" for other differences."""
    if re.fullmatch(r"configs?\.(\d+\.)?num_steps", field):
        ended = "This run of the sweep has ended, and other runs went on."
        made = f"A run cannot be shortened, and it has made {found} updates."
        return f" {made if expected < found else ended} Take another run folder."
    if re.fullmatch(r"configs?\.(\d+\.)?optimizer\.decay_steps", field):
        return (
            " The run has made updates whose learning rate depends on the end of the cosine. To go "
            f"on at the last rate, set `optimizer.decay_steps` to {found}. For another end, take "
            "another run folder."
        )
    return ""
