"""Runs that start from a pretrained checkpoint: all members from the same parameters.

A checkpoint is what `models.pretrained.open_folder` opens. Its parameters are recorded by a digest
of the tensors, which does not depend on how they are divided among files.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dfm_jax.checks import require
from dfm_jax.data.processors import FILES, read_processor
from dfm_jax.interfaces import Params
from dfm_jax.models import TransformerConfig
from dfm_jax.models.multimodal import MultimodalConfig
from dfm_jax.models.pretrained import Checkpoint, checkpoint_params
from dfm_jax.models.pretrained.checkpoint import check_tensors
from dfm_jax.models.pretrained.families import PretrainedConfig, leaf_shapes
from dfm_jax.training.config import (
    TrainConfig,
    differences,
    multimodal_config,
    without_adapters,
)
from dfm_jax.training.digests import array_spec, named_leaves
from dfm_jax.training.tasks import task_of

# How the network is computed, and how it is trained: the parameters have no part in it.
_OPTIONS = (
    *("scan_layers", "remat", "compute_dtype", "attention"),
    *("dropout", "drop_path", "max_positions"),
)

_NATIVE = "internvl_chat"  # the `model_type` of InternVL as its authors keep it


class Initial(NamedTuple):
    """The parameters from which a run starts."""

    read: Callable[[Any], Params]  # with the shardings of the leaves, or None: the default device
    digest: str
    source: str


def initial_params(
    config: TrainConfig, checkpoint: Checkpoint, *, digest: str | None = None
) -> Initial:
    """The parameters of a checkpoint as the first ones of a run; they are read when it starts.

    Adapters are no part of them. `digest` is the `tensors_digest` of the checkpoint, if it is known
    already.

    Raises:
        ValueError: if the config describes another network than the checkpoint; the message names
            the field.
    """
    network = checkpoint.config
    if config.task is None:
        network = network_of(config)
        here, there = _sizes(network), _sizes(checkpoint.config)
        for name, mine, found in differences(here, there):
            rule = f"`{name}` must be {found!r}, as in {checkpoint.path}"
            raise ValueError(f"{rule}; got {name} = {mine!r}.")
    drawn = jax.eval_shape(task_of(without_adapters(config)).init, jax.random.key(0))
    expected = {name.replace("/", "."): leaf.shape for name, leaf in named_leaves(drawn)}
    check_tensors(leaf_shapes(network), expected, f"The network of {checkpoint.path}")
    read = partial(checkpoint_params, checkpoint._replace(config=network))
    digest = tensors_digest(checkpoint) if digest is None else digest
    source = str(checkpoint.path.absolute())
    return Initial(lambda shardings: read(shardings=shardings), digest, source)


def network_of(config: TrainConfig) -> PretrainedConfig:
    """The network of a config without a task of its own, as a checkpoint describes networks."""
    return config.model if config.pictures is None else multimodal_config(config)


def with_network_of(config: TrainConfig, checkpoint: Checkpoint) -> TrainConfig:
    """The config with the network of a checkpoint, and with its processor of pictures, if any.

    How the network is computed stays as it is. So does the processor if the folder has none, or is
    an InternVL of its authors: the crop in its `preprocessor_config.json` is not what their code
    does, which stretches.

    Raises:
        ValueError: if the checkpoint holds another kind of network than the config can name; if the
            processor that stays makes pictures of another size than the tower reads.
    """
    found, pictures = checkpoint.config, config.pictures
    kind = "text" if pictures is None else "multimodal"
    rule = f"{checkpoint.path} must hold a {kind} model, as the config describes one"
    good = isinstance(found, TransformerConfig if pictures is None else MultimodalConfig)
    require(good, rule, checkpoint.metadata.get("model_type"), name="model_type")
    if pictures is None:
        return replace(config, model=_computed_as(config.model, found))
    own = {item.name: getattr(found, item.name) for item in fields(found)}
    own |= {"vision": _computed_as(pictures.vision, found.vision)}
    native = checkpoint.metadata.get("model_type") == _NATIVE
    if not native and any((checkpoint.path / name).is_file() for name in FILES):
        own["processor"] = read_processor(checkpoint.path)
    else:
        side, here = found.vision.image_size, pictures.processor.size
        rule = f"`processor.size` must be that of the tower of {checkpoint.path}, which is {side}"
        then = "" if native else f"The folder has no {FILES[0]}, which would say it."
        require(here == side, rule, here, then=then)
    model = _computed_as(config.model, own.pop("text"))
    return replace(config, model=model, pictures=replace(pictures, **own))


def _computed_as(here: Any, found: Any) -> Any:
    """The sizes that were found, with the options of the config."""
    kept = {item.name for item in fields(here)} & set(_OPTIONS) - {"max_positions"}
    return replace(found, **{name: getattr(here, name) for name in kept})


def folder_tokenizer(checkpoint: Checkpoint) -> Path | None:
    """The tokenizer.json of a checkpoint's folder, if it has one."""
    path = checkpoint.path / "tokenizer.json"
    return path if path.is_file() else None


def tensors_digest(checkpoint: Checkpoint) -> str:
    """`sha256:` and the SHA-256 of the names, types, shapes and bytes of all tensors."""
    names = sorted(checkpoint.shapes)
    with ThreadPoolExecutor() as pool:  # SHA-256 and reading both leave Python's lock
        specs = pool.map(lambda name: array_spec(checkpoint.read(name)), names)
        text = json.dumps(dict(zip(names, specs, strict=True)), sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _sizes(config: PretrainedConfig) -> dict[str, Any]:
    """Everything on which the function of the parameters depends, as fields of a `TrainConfig`."""
    if isinstance(config, MultimodalConfig):
        rest = {item.name: getattr(config, item.name) for item in fields(config)}
        text, rest["vision"] = rest.pop("text"), _without_options(config.vision)
        return _sizes(text) | {"pictures": rest}
    values = _without_options(config)
    if isinstance(config, TransformerConfig):  # what has a default is filled in
        filled = {"num_states": config.states, "num_kv_heads": config.kv_heads}
        values |= filled | {"head_width": config.head_size}
    return {"model": values}


def _without_options(config: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in _OPTIONS}
