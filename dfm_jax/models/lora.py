"""Adapters of low rank (LoRA): kernels that are trained by a few numbers beside them.

    W' = W + (α / r) A B

A linear map W [in, out] of a network stays as it is, and only A [in, r], which is drawn, and B [r,
out], which starts at 0, are trained. They stand in the parameters beside the kernel, as `lora_a`
and `lora_b`. Every `linear.Linear` that finds them there computes

    y = x W + (x A) B

so the gradient in W, which is as large as W, is never formed. The factor α / r is not known to the
network: `scaled` multiplies B by it first. Transformers, towers and projectors of `multimodal` are
made of `Linear`; other networks do not see adapters. Source: Hu et al. (2106.09685), eq. 3.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.interfaces import Params
from dfm_jax.types import Key

KERNEL, DOWN, UP = "kernel", "lora_a", "lora_b"
_NOT_LAYERS = ("lm_head", "visual_projection")  # matrices that the network reads without a `Linear`
_MOST, _STREAM = 2**31 - 1, 1


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which linear maps are adapted, and how; the rest of the network is then frozen.

    An entry of `targets` or `train` is the names of a part from the outermost on, such as
    `layers_*/self_attn` or `language_model`, as in `OptimizerConfig.freeze`. All linear maps in a
    target are adapted; the head is not. Without a target there are no adapters.

    Raises:
        ValueError: if the rank is below 1, or α is not above 0; if another field is given and no
            target is.
    """

    rank: int = 8  # r
    alpha: float = 16.0  # α; the product A B is multiplied by α / r
    targets: tuple[str, ...] = ()
    train: tuple[str, ...] = ()  # parts that are trained whole, besides the adapters

    def __post_init__(self) -> None:
        """Refuse values that no adapter can have."""
        check_count("lora.rank", self.rank, at_most=_MOST)
        check_interval("lora.alpha", self.alpha, 0, np.inf, ends="()")
        for item in fields(self):
            value = getattr(self, item.name)
            rule = f"`lora.targets` must name a part if `lora.{item.name}` is {value}"
            require(bool(self.targets) or value == item.default, rule, self.targets)

    @property
    def adapts(self) -> bool:
        """Whether there are adapters."""
        return bool(self.targets)

    @property
    def scale(self) -> float:
        """α / r."""
        return self.alpha / self.rank


def lies_in(names: Sequence[str], part: str) -> bool:
    """Whether a leaf, by the names of its place, lies in a part such as `layers_*/mlp`."""
    own = part.split("/")
    return len(own) <= len(names) and all(map(fnmatchcase, names, own))


def is_adapter(names: Sequence[str]) -> bool:
    """Whether a leaf, by the names of its place, is an A or a B."""
    return names[-1] in (DOWN, UP)


def with_adapters(key: Key, params: Params, config: LoraConfig) -> Params:
    """The parameters with an A and a B beside the kernel of each target.

    A is normal with variance 1 / in, and B is 0, so the network is the same function as before.
    Kernels that lie in a stack of layers get stacks of A and B. The key may be the one from which
    the parameters were drawn, because it is only folded.

    Raises:
        ValueError: if a target has no linear map in it; if a kernel is smaller than the rank.
    """
    found = sorted(_linear_maps(params), key=itemgetter(0))  # of a dict, in whatever order
    for target in config.targets:
        rule = f"`lora.targets` must name parts with linear maps, such as {_some(found)}"
        require(any(lies_in(path, target) for path, _ in found), rule, target)
    chosen = {
        path: number
        for number, (path, _) in enumerate(found)
        if any(lies_in(path, target) for target in config.targets)
    }
    rank, drawn_from = config.rank, jax.random.fold_in(key, _STREAM)

    def pair(path: tuple[str, ...], kernel: Any) -> Params:
        *stack, inputs, outputs = kernel.shape
        side = min(inputs, outputs)
        rule = f"`lora.rank` must be at most {side}, the smaller side of {'/'.join(path)}"
        require(rank <= side, rule, rank)
        own, dtype = jax.random.fold_in(drawn_from, chosen[path]), kernel.dtype
        down = jax.random.normal(own, (*stack, inputs, rank), dtype) * inputs**-0.5
        return {DOWN: down, UP: jnp.zeros((*stack, rank, outputs), dtype)}

    def one(path: tuple[str, ...], node: Mapping[str, Any]) -> Params:
        return dict(node) | (pair(path, node[KERNEL]) if path in chosen else {})

    return _mapped(one, params)


def scaled(params: Params, config: LoraConfig) -> Params:
    """The parameters as the network reads them: B multiplied by α / r."""

    def one(path: tuple[str, ...], node: Mapping[str, Any]) -> Params:
        return dict(node) | ({UP: config.scale * node[UP]} if UP in node else {})

    return _mapped(one, params)


def merged(params: Params, config: LoraConfig) -> Params:
    """The parameters of the same function without adapters: W + (α / r) A B in the place of W."""

    def one(path: tuple[str, ...], node: Mapping[str, Any]) -> Params:
        if DOWN not in node:
            return dict(node)
        rest = {name: leaf for name, leaf in node.items() if name not in (DOWN, UP)}
        change = jnp.matmul(node[DOWN], node[UP], precision=jax.lax.Precision.HIGHEST)
        return rest | {KERNEL: node[KERNEL] + config.scale * change}

    return _mapped(one, params)


def _mapped(
    one: Callable[[tuple[str, ...], Mapping[str, Any]], Params],
    params: Params,
    path: tuple[str, ...] = (),
) -> Params:
    """`one` of each mapping that holds the leaves of a module, from the innermost on."""
    if not isinstance(params, Mapping):
        return params
    inner = {name: _mapped(one, node, (*path, name)) for name, node in params.items()}
    return one(path, inner)


def _linear_maps(
    params: Params, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The place of each linear map, and its kernel."""
    if not isinstance(params, Mapping) or (path and path[-1] in _NOT_LAYERS):
        return
    if KERNEL in params:
        yield path, params[KERNEL]
    for name, node in params.items():
        yield from _linear_maps(node, (*path, name))


def _some(found: Sequence[tuple[tuple[str, ...], Any]]) -> str:
    return ", ".join("/".join(path) for path, _ in found[:3]) or "none here"
