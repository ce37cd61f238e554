"""Numbers of parameters and FLOPs: by formula, and as counted in what jax makes of the network."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from dfm_jax.models import (
    SIZES,
    TransformerConfig,
    flops_per_token,
    num_parameters,
    router,
    transformer,
)

BASE = TransformerConfig(num_tokens=11, width=32, num_layers=2, num_heads=4, ffn_width=48)
CASES = {
    "plain": {},
    "untied": {"tied": False},
    "grouped, a mask": {"num_kv_heads": 2, "num_states": 12},
    "in time": {"time_conditioned": True, "causal": False},
    "positions": {"learned_positions": True, "max_positions": 9, "causal": False},
    "scanned": {"scan_layers": True, "num_layers": 3},
    "by xla": {"attention": "xla", "num_kv_heads": 1},
}
LENGTH = 7


def config_of(name):
    return dataclasses.replace(BASE, **CASES[name])


def counted(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_counted(name):
    config = config_of(name)
    assert num_parameters(config) == counted(transformer(config))
    assert num_parameters(config, num_outputs=5) == counted(router(config, 5))


@pytest.mark.parametrize("name", SIZES)
def test_a_size_is_of_its_name(name):
    config = SIZES[name]
    number, unit = float(name[:-1]), {"k": 1e3, "m": 1e6, "b": 1e9}[name[-1]]
    assert num_parameters(config) == pytest.approx(number * unit, rel=0.1)
    scanned = dataclasses.replace(config, scan_layers=True)  # thirty layers take seconds to trace
    assert num_parameters(config) == counted(transformer(scanned))


def product_flops(jaxpr):
    """2 per multiplication and addition of every product of matrices, through loops and calls."""
    total = 0
    for equation in jaxpr.eqns:
        inner = sum(product_flops(sub) for sub in jaxprs_in_params(equation.params))
        total += inner * equation.params.get("length", 1)
        if equation.primitive.name in ("dot_general", "rows_times"):
            rows_times = (((1,), (0,)), ((), ()))
            ((contracted, _), _) = equation.params.get("dimension_numbers", rows_times)
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
    return total


def traced(config, network, function=lambda f: f):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    t = jnp.float32(0.5) if config.time_conditioned else None

    def total(params):
        return jnp.sum(network.apply(params, np.zeros(LENGTH, int), t))

    return jax.make_jaxpr(function(total))(shapes)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_flops_are_those_of_the_products(name):
    config = config_of(name)
    forward = product_flops(traced(config, transformer(config)).jaxpr)
    assert LENGTH * flops_per_token(config, LENGTH) == forward
    of_router = product_flops(traced(config, router(config, 5)).jaxpr)
    assert LENGTH * flops_per_token(config, LENGTH, num_outputs=5) == of_router
    both = product_flops(traced(config, transformer(config), jax.grad).jaxpr)
    # Time itself needs no gradient: one product of the condition is not turned back.
    assert 3 * forward - both == 2 * config.width**2 * config.time_conditioned


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "grouped, a mask"])
def test_flops_are_most_of_what_the_compiler_counts(name):
    larger = {"width": 128, "ffn_width": 352, "num_tokens": 256, "num_states": 257}
    config = dataclasses.replace(config_of(name), **larger)
    network = transformer(config)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((64,), int)
    analysis = jax.jit(network.apply).lower(shapes, tokens).compile().cost_analysis()
    assert 1 <= analysis["flops"] / (64 * flops_per_token(config, 64)) < 1.1


def test_no_sequence_has_no_flops():
    with pytest.raises(ValueError, match="`length` must be at least 1; got length = 0"):
        flops_per_token(BASE, 0)
