"""Attention by blocks of queries equals softmax(q kᵀ/√H) v of whole rows; so do its derivatives."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax.models import TransformerConfig, layers
from dfm_jax.models.layers import attend, attend_within

pytestmark = pytest.mark.usefixtures("x64")
HEADS, SIZE = 4, 6


def config_of(*, kv_heads: int = HEADS, causal: bool = True, dtype: str = "float64"):
    return TransformerConfig(
        num_tokens=5,
        width=HEADS * SIZE,
        num_layers=1,
        num_heads=HEADS,
        num_kv_heads=kv_heads,
        ffn_width=4,
        causal=causal,
        compute_dtype=dtype,
    )


def operands(count: int, kv_heads: int, dtype: str = "float64"):
    rng = np.random.default_rng(count)
    heads = (HEADS, kv_heads, kv_heads, HEADS)
    return [jnp.asarray(3 * rng.standard_normal((count, h, SIZE)), dtype) for h in heads]


def whole_rows(config):
    """The clear form: each query meets every key, and those that it does not see weigh 0."""

    def attention(q, k, v):
        places = jnp.arange(q.shape[0])
        visible = places[None] <= places[:, None] if config.causal else None
        return attend(q, k, v, visible, config)

    return attention


def blocks(config):
    return lambda q, k, v: attend_within(q, k, v, config)


@pytest.fixture
def small_blocks(monkeypatch):
    """At least 4 queries in a block and at most 3 blocks, so that few tokens make many cases."""
    monkeypatch.setattr(layers, "_LEAST_BLOCK", 4)
    monkeypatch.setattr(layers, "_MOST_BLOCKS", 3)


@pytest.mark.parametrize(
    ("count", "kv_heads", "causal"),
    [
        *((1, 4, True), (4, 4, True), (5, 2, True)),  # one block, its border, two
        *((12, 2, True), (13, 1, True), (20, 4, True)),  # three, larger ones, the last one shorter
        *((13, 2, False), (1, 1, False)),
    ],
)
def test_blocks_are_whole_rows_and_so_are_their_gradients(count, kv_heads, causal, small_blocks):
    config = config_of(kv_heads=kv_heads, causal=causal)
    q, k, v, cotangent = operands(count, kv_heads)

    @partial(jax.jit, static_argnums=0)
    def both(attention, cotangent, *x):
        mixed, back = jax.vjp(attention, *x)
        return mixed, *back(cotangent)

    ours = both(blocks(config), cotangent, q, k, v)
    for found, right in zip(ours, both(whole_rows(config), cotangent, q, k, v), strict=True):
        np.testing.assert_allclose(found, right, atol=1e-12)


@pytest.mark.parametrize("place", [1, 64, 150, 199])
def test_a_token_is_not_moved_by_later_ones(place):
    q, k, v, _ = operands(200, 4)
    attention = jax.jit(blocks(config_of()))
    later = [x.at[place:].add(7.0) for x in (q, k, v)]
    before, after = attention(q, k, v), attention(*later)
    np.testing.assert_array_equal(after[:place], before[:place])
    assert (after[place:] != before[place:]).all()


def test_long_sequences_have_few_blocks_and_each_meets_the_keys_that_it_sees():
    q, k, v, _ = operands(2048, 1)
    config = config_of(kv_heads=1)
    text = jax.jit(blocks(config)).lower(q, k, v).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 2 * 8
    scores = [re.search(r"-> tensor<1x1024x(\d+)xf64>", line) for line in products[::2]]
    seen = [int(found[1]) for found in scores if found]
    assert seen == [256 * number for number in range(1, 9)]


def test_second_derivatives_and_forward_mode(small_blocks):
    config = config_of(kv_heads=2)
    q, k, v, _ = operands(13, 2)
    rng = np.random.default_rng(1)
    direction = [jnp.asarray(rng.standard_normal(x.shape)) for x in (q, k, v)]

    def hessian_product(attention):
        energy = lambda *x: jnp.sum(jnp.sin(attention(*x)))  # noqa: E731
        product = lambda *x: jax.jvp(jax.grad(energy, argnums=(0, 1, 2)), x, tuple(direction))  # noqa: E731
        return jax.jit(product)(q, k, v)

    for found, right in zip(
        jax.tree.leaves(hessian_product(blocks(config))),
        jax.tree.leaves(hessian_product(whole_rows(config))),
        strict=True,
    ):
        np.testing.assert_allclose(found, right, atol=1e-10)


@pytest.mark.slow
def test_half_precision_has_softmax_in_float32():
    config = config_of(dtype="bfloat16")
    q, k, v, _ = operands(130, 4, "bfloat16")
    found = attend_within(q, k, v, config)
    assert found.dtype == jnp.bfloat16
    right = blocks(config_of())(*(x.astype(jnp.float64) for x in (q, k, v)))
    np.testing.assert_allclose(found.astype(jnp.float64), right, atol=0.03, rtol=0.02)
    np.testing.assert_array_equal(found, whole_rows(config)(q, k, v))


def test_mapped_over_a_batch():
    config = config_of(kv_heads=2)
    several = [jnp.stack(x) for x in zip(operands(65, 2)[:3], operands(65, 2)[:3], strict=True)]
    several[0] = several[0].at[1].multiply(0.5)
    found = jax.jit(jax.vmap(blocks(config)))(*several)
    for one, *row in zip(found, *several, strict=True):
        np.testing.assert_allclose(one, whole_rows(config)(*row), atol=1e-12)
