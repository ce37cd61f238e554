"""Llama's tensors and our parameters: the same numbers under two names, matrices transposed."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import require
from dfm_jax.interfaces import Params
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.pretrained.checkpoint import Checkpoint, check_tensors
from dfm_jax.types import DType


class _Leaf(NamedTuple):
    """One leaf of the parameters, and the tensors from which it is made."""

    path: tuple[str, ...]
    tensors: tuple[str, ...]  # one; or one a layer, where the layers are stacked
    shape: tuple[int, ...]  # of each tensor
    stacked: bool


def llama_params(checkpoint: Checkpoint, *, dtype: DType = jnp.float32) -> Params:
    """The parameters of `transformer(checkpoint.config)`, read leaf by leaf.

    In addition to the parameters, a few copies of one leaf at a time are in memory. Set options
    that change no parameter (`scan_layers`, `compute_dtype`, `attention`) before the call:
    `checkpoint._replace(config=dataclasses.replace(checkpoint.config, scan_layers=True))`.

    Args:
        checkpoint: The result of `open_gguf` or `open_folder`.
        dtype: The type of the parameters; bfloat16 takes half the memory, and rounds them.

    Raises:
        ValueError: if a tensor is missing, is not known, has another shape, or does not hold
            floats.
    """
    check_llama(checkpoint.config)
    check_tensors(checkpoint.shapes, tensor_shapes(checkpoint.config), checkpoint.path)
    params: dict[str, Any] = {}
    for leaf in _leaves(checkpoint.config):
        node = params
        for name in leaf.path[:-1]:
            node = node.setdefault(name, {})
        node[leaf.path[-1]] = _read(checkpoint, leaf, np.dtype(dtype))
    return params


def _read(checkpoint: Checkpoint, leaf: _Leaf, dtype: np.dtype) -> Any:
    values = np.empty((len(leaf.tensors), *_turned(leaf, leaf.shape)), dtype)
    for i, name in enumerate(leaf.tensors):
        tensor = checkpoint.read(name)
        floats = jnp.issubdtype(tensor.dtype, jnp.floating)
        rule = f"`{name}` of {checkpoint.path} must hold floating-point numbers"
        require(floats, rule, str(tensor.dtype), name=f"{name}.dtype")
        values[i] = tensor.T if _is_matrix(leaf) else tensor
    return jnp.array(values if leaf.stacked else values[0])


def llama_tensors(config: TransformerConfig, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """The reverse of `llama_params`: the tensors of a checkpoint with their names, one by one.

    Raises:
        ValueError: if `config` does not describe a Llama, or the parameters belong to another
            network.
    """
    check_llama(config)
    found = dict(_flattened(params))
    leaves = {".".join(leaf.path): leaf for leaf in _leaves(config)}
    expected = {
        name: (len(leaf.tensors),) * leaf.stacked + _turned(leaf, leaf.shape)
        for name, leaf in leaves.items()
    }
    check_tensors({name: np.shape(leaf) for name, leaf in found.items()}, expected, "`params`")
    return _written(leaves, found)  # what is wrong is said now, not at the first tensor


def _written(
    leaves: Mapping[str, _Leaf], found: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in leaves.items():
        for i, name in enumerate(leaf.tensors):
            values = np.asarray(found[path][i] if leaf.stacked else found[path])
            yield name, np.ascontiguousarray(values.T if _is_matrix(leaf) else values)


def _flattened(params: Params, at: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        path = (*at, name)
        yield from (
            _flattened(value, path) if isinstance(value, Mapping) else [(".".join(path), value)]
        )


def check_llama(config: TransformerConfig) -> None:
    """Refuse a transformer that Llama's tensors cannot describe.

    Raises:
        ValueError: if an option of the config has no counterpart there; the message names it.
    """
    require(config.causal, "`causal` must be True, because Llama is causal", config.causal)
    timed = config.time_conditioned
    rule = "`time_conditioned` must be False, because Llama does not read a time"
    require(not timed, rule, timed)
    rule = f"`num_states` must be V = {config.num_tokens}, because Llama has no mask"
    require(config.states == config.num_tokens, rule, config.states)


def tensor_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama-type checkpoint by their Hugging Face names, with their shapes."""
    return {name: leaf.shape for leaf in _leaves(config) for name in leaf.tensors}


def _leaves(config: TransformerConfig) -> Iterator[_Leaf]:
    width, ffn = config.width, config.ffn_width
    kv = config.kv_heads * config.head_size
    in_layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (ffn, width),
        "mlp.up_proj": (ffn, width),
        "mlp.down_proj": (width, ffn),
    }
    head = (config.num_tokens, width)
    yield _Leaf(("embed_tokens", "embedding"), ("model.embed_tokens.weight",), head, False)
    groups = [tuple(range(config.num_layers))] if config.scan_layers else None
    for layers in groups or [(i,) for i in range(config.num_layers)]:
        room = "layers" if config.scan_layers else f"layers_{layers[0]}"
        for name, shape in in_layer.items():
            path = (room, *name.split("."), "kernel" if len(shape) == 2 else "scale")
            tensors = tuple(f"model.layers.{i}.{name}.weight" for i in layers)
            yield _Leaf(path, tensors, shape, config.scan_layers)
    yield _Leaf(("norm", "scale"), ("model.norm.weight",), (width,), False)
    if not config.tied:
        yield _Leaf(("lm_head", "kernel"), ("lm_head.weight",), head, False)


def _is_matrix(leaf: _Leaf) -> bool:
    """Whether a leaf is a kernel, [in, out] here and [out, in] there, and not an embedding."""
    return leaf.path[-1] == "kernel"


def _turned(leaf: _Leaf, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if _is_matrix(leaf) else shape
