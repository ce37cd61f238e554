"""Tensors on disk and leaves of the parameters: the same numbers under two names and two shapes."""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from dfm_jax.checks import require
from dfm_jax.interfaces import Params
from dfm_jax.models.pretrained.checkpoint import Checkpoint, check_tensors
from dfm_jax.types import DType


class Leaf(NamedTuple):
    """One leaf of the parameters, and the tensors from which it is made.

    A tensor with the axes (0, …, n − 1) becomes the leaf by `np.transpose(tensor, axes)`, and then
    by a reshape to `shape`, if one is given. Stacked tensors get a leading axis of layers.
    """

    path: tuple[str, ...]
    tensors: tuple[str, ...]  # one; or one a layer, where the layers are stacked
    tensor_shape: tuple[int, ...]  # of each tensor
    axes: tuple[int, ...]
    stacked: bool = False
    shape: tuple[int, ...] | None = None  # of each leaf, if not that of the turned tensor

    @property
    def own_shape(self) -> tuple[int, ...]:
        """The shape of the leaf without the axis of layers."""
        turned = tuple(self.tensor_shape[i] for i in self.axes)
        return turned if self.shape is None else self.shape

    def read(self, tensor: np.ndarray) -> np.ndarray:
        """The leaf of a tensor."""
        return np.transpose(tensor, self.axes).reshape(self.own_shape)

    def written(self, values: np.ndarray) -> np.ndarray:
        """The tensor of a leaf: the inverse of `read`."""
        turned = values.reshape([self.tensor_shape[i] for i in self.axes])
        return np.ascontiguousarray(np.transpose(turned, np.argsort(self.axes)))


def vector(path: str, tensor: str, size: int) -> Leaf:
    """A leaf [size], the same on disk."""
    return as_it_is(path, tensor, (size,))


def matrix(path: str, tensor: str, outputs: int, inputs: int) -> Leaf:
    """A kernel [in, out], which on disk is [out, in]."""
    return Leaf(_path(path), (tensor,), (outputs, inputs), (1, 0))


def as_it_is(path: str, tensor: str, shape: tuple[int, ...]) -> Leaf:
    """A leaf that is on disk as it is here."""
    return Leaf(_path(path), (tensor,), shape, tuple(range(len(shape))))


def in_layers(
    leaves: Iterable[Leaf], num_layers: int, *, room: str, at: str, stacked: bool
) -> Iterator[Leaf]:
    """The leaves of one layer, for all layers: side by side, or stacked along a leading axis.

    Args:
        leaves: The leaves of a layer, with paths and names inside the layer.
        num_layers: The number of layers.
        room: The path of layer i without its number: `layers`, which becomes `layers_0`, ….
        at: The name of layer i on disk without its number: `model.layers`.
        stacked: Whether the parameters hold all layers as one.
    """
    leaves = tuple(leaves)
    groups = [tuple(range(num_layers))] if stacked else [(i,) for i in range(num_layers)]
    for layers in groups:
        own = _path(room if stacked else f"{room}_{layers[0]}")
        for leaf in leaves:
            tensors = tuple(f"{at}.{i}.{leaf.tensors[0]}" for i in layers)
            yield leaf._replace(path=own + leaf.path, tensors=tensors, stacked=stacked)


def under(leaves: Iterable[Leaf], path: str, at: str) -> Iterator[Leaf]:
    """The same leaves as a part of other parameters and another file: both get a prefix."""
    for leaf in leaves:
        names = tuple(f"{at}{name}" for name in leaf.tensors)
        yield leaf._replace(path=_path(path) + leaf.path, tensors=names)


def tensor_shapes_of(leaves: Iterable[Leaf]) -> dict[str, tuple[int, ...]]:
    """The tensors of all leaves by their names on disk, with their shapes."""
    return {name: leaf.tensor_shape for leaf in leaves for name in leaf.tensors}


def leaf_shapes_of(leaves: Iterable[Leaf]) -> dict[str, tuple[int, ...]]:
    """The leaves of the parameters by their paths, with their shapes."""
    return {
        ".".join(leaf.path): (len(leaf.tensors),) * leaf.stacked + leaf.own_shape for leaf in leaves
    }


def params_of(
    leaves: Iterable[Leaf], checkpoint: Checkpoint, dtype: DType, shardings: Any = None
) -> Params:
    """Read all leaves from a checkpoint, one by one, each to its place.

    Raises:
        ValueError: if a tensor is missing, is not known, has another shape, or does not hold
            floats.
    """
    leaves = tuple(leaves)
    check_tensors(checkpoint.shapes, tensor_shapes_of(leaves), checkpoint.path)
    params: dict[str, Any] = {}
    for leaf in leaves:
        node = params
        for name in leaf.path[:-1]:
            node = node.setdefault(name, {})
        lies = None if shardings is None else reduce(getitem, leaf.path, shardings)
        node[leaf.path[-1]] = _placed(_read(checkpoint, leaf, np.dtype(dtype)), lies)
    return params


def _read(checkpoint: Checkpoint, leaf: Leaf, dtype: np.dtype) -> np.ndarray:
    values = np.empty((len(leaf.tensors), *leaf.own_shape), dtype)
    for i, name in enumerate(leaf.tensors):
        tensor = checkpoint.read(name)
        floats = jnp.issubdtype(tensor.dtype, jnp.floating)
        rule = f"`{name}` of {checkpoint.path} must hold floating-point numbers"
        require(floats, rule, str(tensor.dtype), name=f"{name}.dtype")
        values[i] = leaf.read(tensor)
    return values if leaf.stacked else values[0]


def _placed(values: np.ndarray, lies: Sharding | None) -> jax.Array:
    if lies is None:
        return jnp.array(values)
    return jax.make_array_from_callback(values.shape, lies, lambda index: values[index])


def tensors_of(leaves: Iterable[Leaf], params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """The reverse of `params_of`: the tensors with their names on disk, one by one.

    Raises:
        ValueError: if the parameters belong to another network; it is said now, and not at the
            first tensor.
    """
    by_path = {".".join(leaf.path): leaf for leaf in leaves}
    found = dict(_flattened(params))
    shapes = {path: np.shape(value) for path, value in found.items()}
    check_tensors(shapes, leaf_shapes_of(by_path.values()), "`params`")
    return _written(by_path, found)


def _written(
    by_path: Mapping[str, Leaf], found: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in by_path.items():
        for i, name in enumerate(leaf.tensors):
            yield name, leaf.written(np.asarray(found[path][i] if leaf.stacked else found[path]))


def _flattened(params: Params, at: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        path = (*at, name)
        yield from (
            _flattened(value, path) if isinstance(value, Mapping) else [(".".join(path), value)]
        )


def num_entries(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of numbers in all tensors."""
    return sum(map(math.prod, shapes.values()))


def _path(text: str) -> tuple[str, ...]:
    return tuple(text.split("."))
