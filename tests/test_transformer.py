"""The transformer: its contracts, and its equation against a plain NumPy float64 network."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformer
import pytest

from dfm_jax.models import TransformerConfig, stack_layers, transformer, unstack_layers
from dfm_jax.models.layers import Block, Frame, rotary_angles
from dfm_jax.objectives import cross_entropy_loss

SMALL = {"num_tokens": 11, "width": 32, "num_layers": 2, "num_heads": 4, "ffn_width": 48}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_tokens": 0}, "`num_tokens` must be at least 1; got num_tokens = 0"),
        ({"num_states": 13}, "`num_states` must be V = 11, or 12 with a mask; got num_states = 13"),
        ({"num_heads": 5}, "`width` must be a multiple of `num_heads`, which is 5; got width = 32"),
        (
            {"num_kv_heads": 3},
            "`num_heads` must be a multiple of `num_kv_heads`, which is 3; got num_heads = 4",
        ),
        ({"num_heads": 32}, "`width / num_heads` must be even.*; got width / num_heads = 1"),
        ({"max_positions": 0}, "`max_positions` must be at least 1; got max_positions = 0"),
        ({"rope_base": 0.0}, "`rope_base` must lie in"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\); got dropout = 1.0"),
        (
            {"compute_dtype": "half"},
            "`compute_dtype` must be one of float32, .*; got compute_dtype = 'half'",
        ),
        (
            {"learned_positions": True, "max_positions": 8},
            "is given and causal=False; got learned_positions = True",
        ),
        ({"learned_positions": True, "causal": False}, "`learned_positions` must be False unless"),
        (
            {"attention": "flash"},
            "`attention` must be one of einsum, xla, cudnn; got attention = 'flash'",
        ),
        ({"compute_dtype": "float64", "attention": "xla"}, '`attention` must be "einsum"'),
    ],
)
def test_a_bad_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**SMALL | change)


@pytest.mark.parametrize(
    ("change", "x_t", "t", "message"),
    [
        ({}, [3, 11], None, r"`x_t` must hold ids in \[0, 10\]"),
        ({}, [-1], None, r"`x_t` must hold ids in \[0, 10\]"),
        (
            {},
            [3],
            0.5,
            "`t` must be None, because the network is not conditioned on time; got t = 0.5",
        ),
        ({"time_conditioned": True}, [3], None, "`t` must be given"),
        (
            {"max_positions": 2},
            [3, 3, 3],
            None,
            r"at most . tokens, because `max_positions` is 2.*; got len\(x_t\) = ",
        ),
        ({}, [[3]], None, r"`x_t` must be one sequence \[N\]; got x_t.shape = \("),
    ],
)
def test_a_bad_input_is_refused(change, x_t, t, message):
    network = transformer(TransformerConfig(**SMALL | change))
    with pytest.raises(ValueError, match=message):
        network.apply({}, jax.numpy.array(x_t), t)


# ── against NumPy ───────────────────────────────────────────────────────────────────────────────

TOKENS = np.array([3, 0, 7, 7, 10, 1])
TARGETS = np.array([0, 7, 7, 10, 1, 5])
CASES = {
    "causal, tied": {},
    "grouped, untied": {"num_kv_heads": 2, "tied": False, "rope_base": 100.0},
    "one head of keys, ε large": {"num_kv_heads": 1, "norm_epsilon": 0.1},
    "bidirectional, with a mask": {"causal": False, "num_states": 12},
    "everything": {"causal": False, "num_states": 12, "num_kv_heads": 2, "time_conditioned": True},
    "learned positions": {"causal": False, "learned_positions": True, "max_positions": 8},
    "causal in time, untied": {"time_conditioned": True, "tied": False},
}


def config_and_params(change, seed=0, dtype=np.float32):
    """Parameters from NumPy, none of them 0 or 1: nothing hides behind its initial value."""
    config = TransformerConfig(**SMALL | change)
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        normal = rng.standard_normal(leaf.shape)
        if path[-1].key == "scale":
            return (1 + 0.3 * normal).astype(dtype)
        fan_in = leaf.shape[-1] if path[-1].key == "embedding" else leaf.shape[-2]
        return (normal / np.sqrt(fan_in)).astype(dtype)

    shapes = jax.eval_shape(transformer(config).init, jax.random.key(0))
    return config, jax.tree_util.tree_map_with_path(drawn, shapes)


def time_of(config):
    return 0.37 if config.time_conditioned else None


def loss_of(config):
    network = transformer(config)

    def loss(params, tokens, targets):
        logits = network.apply(params, tokens, time_of(config))
        return jnp.mean(cross_entropy_loss(logits, targets))

    return loss


def tokens_of(config):
    return np.append(TOKENS[:-1], config.states - 1)  # the mask too, where there is one


def direction(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params)


def slope(params, along, config):
    """d/dh L(θ + h d) of NumPy's loss, by central differences of fourth order."""

    def odd(h):
        def moved(h):
            shifted = jax.tree.map(lambda leaf, d: leaf.astype(np.float64) + h * d, params, along)
            tokens = tokens_of(config)
            return numpy_transformer.loss(shifted, tokens, TARGETS, config, time_of(config))

        return (moved(h) - moved(-h)) / (2 * h)

    return (4 * odd(1e-5) - odd(2e-5)) / 3


def inner(gradient, along):
    products = jax.tree.map(lambda g, d: np.sum(np.asarray(g, np.float64) * d), gradient, along)
    return sum(jax.tree.leaves(products))


def value_and_gradient(change, params):
    config = TransformerConfig(**SMALL | change)
    return jax.jit(jax.value_and_grad(loss_of(config)))(params, tokens_of(config), TARGETS)


@functools.cache
def plain(name):
    """Parameters, loss and gradient of the form that is checked against NumPy."""
    _, params = config_and_params(CASES[name])
    return params, *value_and_gradient(CASES[name], params)


def numpys(config, params):
    return numpy_transformer.loss(params, tokens_of(config), TARGETS, config, time_of(config))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["everything", "grouped, untied"])
def test_one_step_is_numpys(name):
    config, (params, value, gradient) = TransformerConfig(**SMALL | CASES[name]), plain(name)
    assert 1 < value == pytest.approx(numpys(config, params), abs=1e-5)
    along = direction(params, 0)
    assert inner(gradient, along) == pytest.approx(slope(params, along, config), rel=5e-6, abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_step_is_numpys_in_float64(name, x64):
    change = CASES[name] | {"compute_dtype": "float64"}
    config, params = config_and_params(change, dtype=np.float64)
    value, gradient = value_and_gradient(change, params)
    assert value == pytest.approx(numpys(config, params), abs=1e-12)
    along = direction(params, 0)
    assert inner(gradient, along) == pytest.approx(slope(params, along, config), abs=1e-9)
    # One leaf at a time: an error in a small one would drown in a direction through all.
    drawn, tree = jax.tree.flatten(along)
    for i in range(len(drawn)):
        own = jax.tree.unflatten(tree, [d * (i == j) for j, d in enumerate(drawn)])
        assert inner(gradient, own) == pytest.approx(slope(params, own, config), abs=1e-9)


# ── one computation in several forms ────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("everything", {"scan_layers": True}),
        ("everything", {"remat": True, "attention": "xla"}),
        ("grouped, untied", {"scan_layers": True, "remat": True, "attention": "xla"}),
    ],
)
def test_another_form_computes_the_same(name, form):
    params, value, gradient = plain(name)
    scanned = "scan_layers" in form
    own = stack_layers(params) if scanned else params
    own_value, own_gradient = value_and_gradient(CASES[name] | form, own)
    own_gradient = unstack_layers(own_gradient) if scanned else own_gradient
    chex.assert_trees_all_close((own_value, own_gradient), (value, gradient), atol=2e-6)


@pytest.mark.slow
def test_remat_computes_the_layers_twice():
    def activations(remat):
        config, params = config_and_params({"remat": remat})
        jaxpr = jax.make_jaxpr(jax.grad(loss_of(config)))(params, TOKENS, TARGETS)
        return str(jaxpr).count("logistic")

    assert activations(True) > activations(False)


def test_stacking_layers_is_undone_by_unstacking():
    _, params = config_and_params({})
    stacked = jax.jit(stack_layers)(params)
    shapes = jax.eval_shape(
        transformer(TransformerConfig(**SMALL, scan_layers=True)).init, jax.random.key(0)
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(stacked, shapes)
    chex.assert_trees_all_equal(jax.jit(unstack_layers)(stacked), params)


def test_stacking_refuses_what_has_no_layers():
    with pytest.raises(ValueError, match="`params` must have layers of the names `layers_0`"):
        stack_layers({"norm": 0})
    with pytest.raises(ValueError, match="`params` must have layers of the names"):
        stack_layers({"layers_0": 0, "layers_2": 0})
    with pytest.raises(ValueError, match="`params` must have stacked layers"):
        unstack_layers({"layers_0": 0})


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["einsum", "xla"])
def test_in_bfloat16_the_loss_is_close_and_float32(attention):
    params, exact, _ = plain("everything")
    half = {"compute_dtype": "bfloat16", "attention": attention}
    config = TransformerConfig(**SMALL | CASES["everything"] | half)

    def loss(params):
        logits = transformer(config).apply(params, tokens_of(config), time_of(config))
        return jnp.mean(cross_entropy_loss(logits, TARGETS)), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert logits.dtype == value.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    assert 1e-5 < abs(value - exact) < 0.03  # half the layers' digits, and really half of them


# ── contracts ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_init_starts_close_to_uniform_and_is_drawn_from_its_key():
    network = transformer(TransformerConfig(**SMALL | {"time_conditioned": True, "num_layers": 1}))
    params, other = map(jax.jit(network.init), (jax.random.key(0), jax.random.key(1)))
    assert not np.array_equal(
        params["layers_0"]["mlp"]["up_proj"]["kernel"],
        other["layers_0"]["mlp"]["up_proj"]["kernel"],
    )
    apply = jax.jit(jax.vmap(network.apply, in_axes=(None, None, 0)))
    logits = apply(params, TOKENS, jnp.array([0.0, 0.9]))
    assert np.std(logits) < 2
    np.testing.assert_array_equal(logits[0], logits[1])  # at first time has no effect


@pytest.mark.slow
def test_the_batch_is_vmap_and_compiles_once():
    """That jit is eager, test_networks.py says of a router, which has the same trunk."""
    config, params = config_and_params(CASES["everything"])
    network = transformer(config)
    tokens = np.stack([TOKENS, TOKENS[::-1], 0 * TOKENS])
    times = np.array([0.1, 0.5, 0.9], np.float32)
    once = chex.assert_max_traces(network.apply, n=1)
    batch = jax.jit(jax.vmap(once, in_axes=(None, 0, 0)))
    logits = batch(params, tokens, times)
    batch(params, tokens[::-1], times)
    alone = jax.jit(network.apply)
    for row, x_t, t in zip(logits, tokens, times, strict=True):
        np.testing.assert_allclose(row, alone(params, x_t, t), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_who_sees_whom(causal):
    """Row i has a gradient at every earlier input and itself, at no later one, and a mask hides."""
    config, params = config_and_params({"causal": causal, "num_layers": 1})

    def rows(perturbation):
        table = params["embed_tokens"]["embedding"]
        # Every position gets a row of its own, so that its gradient is its own.
        own = jnp.concatenate([table, table[TOKENS] + perturbation])
        moved = params | {"embed_tokens": {"embedding": own}}
        wider = dataclasses.replace(config, num_tokens=len(own), tied=True)
        return jnp.sum(transformer(wider).apply(moved, len(table) + np.arange(6))[:, :11], axis=1)

    jacobian = jax.jit(jax.jacrev(rows))(jnp.zeros((len(TOKENS), config.width)))
    seen = np.abs(jacobian).max(axis=-1) > 0
    expected = np.tril(np.ones((6, 6), bool)) if causal else np.ones((6, 6), bool)
    np.testing.assert_array_equal(seen, expected)


def test_positions_are_relative():
    """Without a mask and with equal tokens nothing tells positions apart but the causal mask."""
    config, params = config_and_params({"causal": False, "num_layers": 1})
    apply = jax.jit(transformer(config).apply)
    logits = apply(params, np.array([4, 4, 4, 4, 4, 4]))
    np.testing.assert_allclose(logits, np.broadcast_to(logits[:1], logits.shape), atol=1e-5)
    assert np.ptp(apply(params, TOKENS)[2:4], axis=0).max() > 1e-3  # 7, 7 at two places


# ── dropout ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_dropout_is_keyed_and_unbiased():
    config, params = config_and_params({"dropout": 0.25, "num_layers": 1})
    network = transformer(config)
    apply = jax.jit(lambda key: network.apply(params, TOKENS, key=key))
    drawn = apply(jax.random.key(3))
    np.testing.assert_array_equal(drawn, apply(jax.random.key(3)))
    assert np.max(np.abs(drawn - apply(jax.random.key(4)))) > 0.1
    assert np.max(np.abs(drawn - jax.jit(network.apply)(params, TOKENS))) > 0.1

    # A layer is linear in what one branch adds, so its mean over keys is the layer without dropout.
    @jax.jit
    def calm(layer):
        return Block(config, True).apply({"params": layer}, h, None, frame())[0]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def wild(layer, key):
        rngs = {"dropout": key}
        return Block(config, False).apply({"params": layer}, h, None, frame(), rngs=rngs)[0]

    def frame():
        positions = jnp.arange(6)
        return Frame(positions, *rotary_angles(positions, config), None, None)

    h = np.random.default_rng(0).standard_normal((6, config.width)).astype(np.float32)
    for branch, silent in (("self_attn", ("mlp", "down_proj")), ("mlp", ("self_attn", "o_proj"))):
        layer = jax.tree.map(np.array, params["layers_0"])
        layer[silent[0]][silent[1]]["kernel"] *= 0
        many = np.asarray(wild(layer, jax.random.split(jax.random.key(5), 4096)))
        # 192 means at 5.5 standard errors each: a false alarm once in 100 thousand runs.
        error = np.abs(np.mean(many, axis=0) - calm(layer)) / (np.std(many, axis=0) / 64)
        assert error.max() < 5.5, branch
        kept = np.mean(many != h[None])
        assert kept == pytest.approx(0.75, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_each_layer_draws_dropout_of_its_own(scan_layers):
    """Two equal layers that add next to nothing: a channel gets both, one, or neither of them."""
    change = {"num_tokens": 32, "tied": False, "dropout": 0.5}
    config, params = config_and_params(change)
    params = jax.tree.map(np.array, params)
    layer = params["layers_0"]
    layer["self_attn"]["o_proj"]["kernel"] *= 0
    layer["mlp"]["down_proj"]["kernel"] *= 0.01
    layer["mlp"]["down_proj"]["kernel"][:, :16] = 0  # whose channels tell the last norm's factor
    params |= {"layers_1": layer, "lm_head": {"kernel": np.eye(32, dtype=np.float32)}}
    params["norm"]["scale"][:] = 1
    own = stack_layers(params) if scan_layers else params
    apply = jax.jit(transformer(dataclasses.replace(config, scan_layers=scan_layers)).apply)
    before = params["embed_tokens"]["embedding"][TOKENS]

    def added(key):
        logits = np.asarray(apply(own, TOKENS, key=key))
        factor = np.mean(logits[:, :16] / before[:, :16], axis=1, keepdims=True)
        return (logits / factor - before)[:, 16:]

    of_one = added(None) / 2
    clear = np.abs(of_one) > np.median(np.abs(of_one))
    kept = np.round(added(jax.random.key(0))[clear] / of_one[clear] / 2)  # a kept value is doubled
    np.testing.assert_array_equal(np.unique(kept), [0, 1, 2])
