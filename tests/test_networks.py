"""Networks but the transformer: each is the function that it says, and all keep one contract."""

import itertools

import chex
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax.interfaces import uncached_decoder
from dfm_jax.mixture import mixture_decoder, mixture_params
from dfm_jax.models import (
    TransformerConfig,
    mlp,
    network_from_nnx,
    router,
    tabular,
    transformer,
)

V = 3
ROUTED = TransformerConfig(
    num_tokens=V, width=8, num_layers=1, num_heads=2, ffn_width=8, time_conditioned=True
)


class Bag(nnx.Module):
    """Logits from the mean embedding: a user's module."""

    def __init__(self, rngs, rate=0.0):
        self.embed = nnx.Embed(V, 8, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(8, V, rngs=rngs)

    def __call__(self, x_t):
        h = self.dropout(self.embed(x_t))
        return self.head(h + jnp.mean(h, axis=0, keepdims=True))


NETWORKS = {
    "tabular": (tabular(V, order=3), (4, V)),
    "mlp": (mlp(4, 5, 2), (2,)),
    "router": (router(ROUTED, 5), (4, 5)),
    "router, last": (router(ROUTED, 5, last=True), (5,)),
    "nnx": (network_from_nnx(Bag), (4, V)),
}
QUICK = ("tabular", "mlp", "nnx")
ALL = [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n not in QUICK)]
X = np.array([[0, 1, 2, 0], [2, 2, 1, 0], [1, 1, 1, 1]])


def params_of(network, seed=0):
    """Parameters away from their start, which for a table says nothing."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype) / leaf.shape[0] ** 0.5,
        shapes,
    )


def inputs_of(name):
    """A batch, and the time where the network asks for one."""
    x = X.astype(np.float32) if name == "mlp" else X
    return x, jnp.float32(0.3) if "router" in name else None


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_batch_is_vmap_jit_is_eager_and_compiles_once(name):
    network, shape = NETWORKS[name]
    params, (x, t) = params_of(network), inputs_of(name)
    counted = chex.assert_max_traces(network.apply, n=1)
    batch = jax.jit(jax.vmap(counted, in_axes=(None, 0, None)))
    logits = batch(params, x, t)
    batch(params, x[::-1], t)
    assert logits.shape == (3, *shape)
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 0.1
    np.testing.assert_allclose(logits[1], network.apply(params, x[1], t), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_parameters_are_a_pytree_of_floats_drawn_from_the_key(name):
    network, _ = NETWORKS[name]
    init = jax.jit(network.init)
    one, same, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(one))
    chex.assert_trees_all_equal(one, same)
    if name == "tabular":
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(other))  # the uniform distribution
    else:
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        assert any(np.any(a != b) for a, b in pairs)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"nnx"}))  # its own signature says it
def test_time_is_refused_or_asked_for(name):
    network, _ = NETWORKS[name]
    x, t = inputs_of(name)
    message = "`t` must be None" if t is None else "`t` must be given"
    with pytest.raises(ValueError, match=message):
        network.apply(params_of(network), x[0], 0.3 if t is None else None)


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mask", [0, 1])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_table_has_a_row_for_each_context_and_no_other(order, mask):
    """Which row is its own affair: equal contexts share one, different ones never do."""
    network = tabular(V, order=order, num_states=V + mask)
    states = range(V + mask)
    x = np.array([*itertools.product(states, repeat=4)])
    params = params_of(network)
    assert params["logits"].shape == ((V + mask + 1) ** (order - 1), V)
    logits = np.asarray(jax.jit(jax.vmap(network.apply, in_axes=(None, 0)))(params, x))
    row_of = {}
    for sequence, rows in zip(x, logits, strict=True):
        seen = ["start"] * (order - 1)
        for token, row in zip(sequence, rows, strict=True):
            seen.append(int(token))
            context = tuple(seen[len(seen) - order + 1 :])
            assert row_of.setdefault(context, tuple(row)) == tuple(row)
    assert len(set(row_of.values())) == len(row_of)
    filled = sum((V + mask) ** min(order - 1, i) for i in range(1, order)) if order > 1 else 1
    assert len(row_of) == filled


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tabular(0, order=1), "`num_tokens` must be at least 1; got num_tokens = 0"),
        (lambda: tabular(V, order=0), "`order` must be at least 1; got order = 0"),
        (lambda: tabular(V, order=2, num_states=5), "`num_states` must be V = 3, or 4"),
        (lambda: tabular(256, order=4), "at most 134,217,728 entries; got entries = 4345495808"),
        (lambda: mlp(3), r"`sizes` must hold at least two numbers, .*; got sizes = \("),
        (lambda: mlp(3, 0), "`sizes` must be at least 1; got sizes = 0"),
        (lambda: router(ROUTED, 0), "`num_experts` must be at least 1; got num_experts = 0"),
    ],
)
def test_a_network_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "x_t", "message"),
    [
        ("tabular", [0, 3], r"`x_t` must hold ids in \[0, 2\]"),
        ("tabular", [0, -1], r"`x_t` must hold ids in \[0, 2\]"),
        ("mlp", [0.0, 0.0, 0.0], r"`features` must have shape \(4,\); got features.shape = \(3,\)"),
    ],
)
def test_an_input_of_another_kind_is_refused(name, x_t, message):
    network, _ = NETWORKS[name]
    with pytest.raises(ValueError, match=message):
        network.apply(params_of(network), np.array(x_t))


# ── perceptron, router, nnx ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sizes", [(4, 2), (4, 5, 2), (4, 6, 5, 2)])
def test_a_perceptron_is_numpys(sizes, x64):
    network = mlp(*sizes)
    params = jax.tree.map(np.float64, params_of(network))
    x = h = np.array([0.3, -1.2, 2.0, 0.7])
    for i in range(len(sizes) - 1):
        h = h / (1 + np.exp(-h)) if i else h
        h = h @ params[f"layers_{i}"]["kernel"] + params[f"layers_{i}"]["bias"]
    np.testing.assert_allclose(network.apply(params, x), h, atol=1e-13)


def test_a_router_is_the_trunk_under_its_own_head():
    """The head of an untied transformer over K tokens, on the same trunk."""
    per_position, last = (router(ROUTED, V, last=last) for last in (False, True))
    params = params_of(per_position)
    t = jnp.float32(0.3)
    untied = transformer(TransformerConfig(**vars(ROUTED) | {"tied": False}))
    networks = (untied, per_position, last)
    logits, rows, row = jax.jit(lambda *args: [n.apply(*args) for n in networks])(params, X[0], t)
    np.testing.assert_array_equal(rows, logits)
    np.testing.assert_array_equal(row, logits[-1])


@pytest.mark.slow
def test_an_nnx_module_is_itself():
    module = Bag(nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    network = network_from_nnx(Bag)
    np.testing.assert_array_equal(network.apply(params, X[0]), module(X[0]))

    def loss(params, x):
        return jnp.sum(network.apply(params, x) ** 2)

    def of_module(module):
        return jnp.sum(module(X[0]) ** 2)

    expected = nnx.to_pure_dict(nnx.jit(nnx.grad(of_module))(module))
    chex.assert_trees_all_close(jax.jit(jax.grad(loss))(params, X[0]), expected, rtol=1e-6)


def test_an_nnx_modules_dropout_follows_the_key():
    network = network_from_nnx(lambda rngs: Bag(rngs, rate=0.5))
    params = params_of(network)
    calm = network.apply(params, X[0])
    one, same, other = (network.apply(params, X[0], key=jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)
    assert np.any(one != calm)
    np.testing.assert_array_equal(network.apply(params, X[0]), calm)


def test_an_nnx_module_with_state_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"no state besides its parameters; got state = .*mean"):
        network_from_nnx(lambda rngs: nnx.BatchNorm(4, rngs=rngs))


@pytest.mark.parametrize("name", ["tabular", "nnx"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16])
def test_a_token_means_the_same_in_every_integer_type(name, dtype):
    """With 200 ids the row of a table is beyond what 8 bits can count."""
    network = tabular(200, order=2) if name == "tabular" else NETWORKS[name][0]
    params = params_of(network)
    x = np.array([100, 127, 5, 0]) if name == "tabular" else X[0]
    apply = jax.jit(network.apply)
    expected = apply(params, x.astype(np.int32))
    np.testing.assert_array_equal(apply(params, x.astype(dtype)), expected)
    np.testing.assert_array_equal(network.apply(params, x.astype(dtype)), expected)


@pytest.mark.slow
def test_a_decoder_reads_every_integer_type():
    network = tabular(200, order=2)
    decoder, params = uncached_decoder(network.apply, 200), params_of(network)
    both = mixture_params((decoder, decoder), np.log([0.5, 0.5]), (params, params))
    for one, of in ((decoder, params), (mixture_decoder((decoder, decoder)), both)):
        read = jax.jit(lambda x, one=one, of=of: one.extend(of, one.init_cache(3), x)[0])
        wide, narrow = (read(jnp.array([100, 127, 5], dtype)) for dtype in (jnp.int32, jnp.int8))
        np.testing.assert_array_equal(narrow, wide)
