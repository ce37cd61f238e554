"""Adapters of low rank: the same function at the start, merged, its gradient, what moves, what not.

Equations are checked in float64, and training in float32 as it is.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax.models import (
    TransformerConfig,
    stack_layers,
    transformer,
    transformer_decoder,
    transformer_denoiser,
)
from dfm_jax.models.lora import LoraConfig, merged, scaled, with_adapters
from dfm_jax.models.multimodal import MultimodalConfig, VisionConfig, multimodal
from dfm_jax.parallel import make_mesh, sharded_step
from dfm_jax.training.batches import Batch
from dfm_jax.training.config import OptimizerConfig, TrainConfig, from_json, to_json
from dfm_jax.training.digests import named_leaves
from dfm_jax.training.losses import next_token_losses
from dfm_jax.training.presets import load_config
from dfm_jax.training.state import frozen, make_optimizer, state_of
from dfm_jax.training.step import make_train_step
from dfm_jax.training.tasks import task_of

TEXT = TransformerConfig(
    num_tokens=19, width=16, num_layers=2, num_heads=2, num_kv_heads=1, ffn_width=24, qkv_bias=True
)
STACKED = dataclasses.replace(TEXT, scan_layers=True, remat=True)
TIMED = dataclasses.replace(TEXT, causal=False, time_conditioned=True, num_states=20)
LORA = LoraConfig(rank=3, alpha=7.5, targets=("layers*/self_attn", "layers*/mlp/*_proj"))
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def exact(config: TransformerConfig) -> TransformerConfig:
    return dataclasses.replace(config, compute_dtype="float64")


def picture_config(**options) -> MultimodalConfig:
    vision = VisionConfig(
        image_size=8,
        patch_size=4,
        width=16,
        num_layers=3,
        num_heads=2,
        ffn_width=24,
        layer_scale=True,
        **options,
    )
    text = dataclasses.replace(TEXT, **options)
    return MultimodalConfig(text=text, vision=vision, image_token=18, projector_norm=True)


def adapted(init, lora: LoraConfig, *, moved: bool = True):
    """The parameters of a network with adapters, at the start or after some training."""
    begin = jax.jit(lambda key, other: with_adapters(other, init(key), lora))
    params = begin(jax.random.key(0), jax.random.key(1))

    def drawn(path, leaf):
        if not (moved and path[-1].key == "lora_b"):
            return leaf
        name = jax.tree_util.keystr(path)
        random = np.random.default_rng(list(name.encode()))
        return jnp.asarray(random.normal(size=leaf.shape, scale=0.3), leaf.dtype)

    return jax.tree_util.tree_map_with_path(drawn, params)


def without(params):
    """The parameters that a network has by itself."""
    if not isinstance(params, dict):
        return params
    return {k: without(v) for k, v in params.items() if k not in ("lora_a", "lora_b")}


def assert_equal(tree, other) -> None:
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), tree, other)


def applied(config):
    """(targets, init, params → logits) of a network."""
    if isinstance(config, MultimodalConfig):
        network, pictures = multimodal(config), np.random.default_rng(0).normal(size=(2, 8, 8, 3))
        tokens = np.array([1, *[18] * 4, 2, 3, *[18] * 4, 5])
        targets = ("vision_tower/encoder", "multi_modal_projector", "language_model")
        return targets, network.init, lambda params: network.apply(params, tokens, pictures)
    network, t = transformer(config), 0.3 if config.time_conditioned else None
    return LORA.targets, network.init, lambda params: network.apply(params, TOKENS, t)


NETWORKS = {
    "text": TEXT,
    "stacked layers": STACKED,
    "bidirectional": TIMED,
    "pictures": picture_config(),
    "pictures, stacked layers": picture_config(scan_layers=True, remat=True),
}


# ── the function ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["text", "stacked layers", "pictures"])
def test_at_the_start_the_network_is_the_same_to_the_bit(name):
    targets, init, logits = applied(NETWORKS[name])
    params = adapted(init, dataclasses.replace(LORA, targets=targets), moved=False)
    assert_equal(without(params), jax.jit(init)(jax.random.key(0)))
    assert len(jax.tree.leaves(params)) > len(jax.tree.leaves(without(params)))
    run = jax.jit(logits)
    np.testing.assert_array_equal(run(params), run(without(params)))


@pytest.mark.slow
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NETWORKS)
def test_merged_kernels_give_the_same_logits(name, x64):
    config = NETWORKS[name]
    if isinstance(config, MultimodalConfig):
        parts = {"text": exact(config.text)}
        parts["vision"] = dataclasses.replace(config.vision, compute_dtype="float64")
        config = dataclasses.replace(config, **parts)
    else:
        config = exact(config)
    targets, init, logits = applied(config)
    lora = dataclasses.replace(LORA, targets=targets)
    params, run = adapted(init, lora), jax.jit(logits)
    whole = merged(params, lora)
    assert jax.tree.structure(whole) == jax.tree.structure(without(params))
    found = run(scaled(params, lora))
    np.testing.assert_allclose(found, run(whole), rtol=0, atol=1e-12)
    # Another α is another function, and so is the network without adapters.
    other = merged(params, dataclasses.replace(lora, alpha=8.5))
    for wrong in (other, without(params)):
        assert np.abs(run(wrong) - found).max() > 1e-3


@pytest.mark.slow
def test_the_gradient_is_that_of_the_chain_rule_through_merged_kernels(x64):
    network, targets = transformer(exact(STACKED)), jnp.asarray(TOKENS)
    params = adapted(network.init, LORA)

    def loss(params):
        log_probs = jax.nn.log_softmax(network.apply(params, targets))
        return -log_probs[jnp.arange(7), targets[1:]].sum()

    beside = jax.jit(jax.grad(lambda params: loss(scaled(params, LORA))))(params)
    through = jax.jit(jax.grad(lambda params: loss(merged(params, LORA))))(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), beside, through)
    moved = beside["layers"]["self_attn"]["q_proj"]
    assert min(np.abs(moved[name]).max() for name in ("lora_a", "lora_b")) > 1e-3


@pytest.mark.slow
def test_a_decoder_and_a_denoiser_read_adapters_too(x64):
    """One token after another, rows of a batch, and the two halves of a denoiser."""
    config = exact(TEXT)
    params = adapted(transformer(config).init, LORA)
    pair, whole = scaled(params, LORA), merged(params, LORA)
    decoder, prompts, lengths = transformer_decoder(config), TOKENS[None, :4], np.array([4])

    def read(params):
        logits, cache = decoder.extend(params, decoder.init_cache(8), TOKENS[:5])
        one, _ = decoder.extend(params, cache, TOKENS[5:6])
        batched = decoder.batched
        first, block = batched.read(params, prompts, lengths, None, 4)
        weights, tokens = batched.weights(params), TOKENS[4:5]
        second, _ = batched.step(weights, (), block, tokens, jnp.array(0))
        return logits, one, first, second

    near = partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    jax.tree.map(near, jax.jit(read)(pair), jax.jit(read)(whole))
    config = exact(TIMED)
    params = adapted(transformer(config).init, LORA)
    halves = transformer_denoiser(config)

    @jax.jit
    def filled(params):
        return halves.head(params, halves.hidden(params, TOKENS, 0.4))

    near(filled(scaled(params, LORA)), filled(merged(params, LORA)))


@pytest.mark.slow
def test_experts_are_mapped_with_their_adapters():
    network = transformer(STACKED)
    one = adapted(network.init, LORA)
    each = [one, jax.tree.map(lambda leaf: 1.1 * leaf, one)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    found = jax.jit(jax.vmap(network.apply, (0, None)))(together, TOKENS)
    for logits, params in zip(found, each, strict=True):
        np.testing.assert_allclose(logits, network.apply(params, TOKENS), rtol=1e-4, atol=1e-5)


def test_stacked_layers_are_those_side_by_side():
    params = adapted(transformer(TEXT).init, LORA)
    found = jax.jit(transformer(STACKED).apply)(stack_layers(params), TOKENS)
    expected = jax.jit(transformer(TEXT).apply)(params, TOKENS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert_equal(merged(stack_layers(params), LORA), stack_layers(merged(params, LORA)))


def test_what_is_drawn_depends_on_the_kernel_alone():
    """Not on the other targets, nor on the order of a dict."""
    params = transformer(TEXT).init(jax.random.key(0))
    turned = dict(reversed(params.items()))
    few = dataclasses.replace(LORA, targets=("layers_1/mlp/up_proj",))
    one = with_adapters(jax.random.key(1), params, few)["layers_1"]["mlp"]["up_proj"]
    all_of_them = with_adapters(jax.random.key(1), turned, LORA)
    assert_equal(one, all_of_them["layers_1"]["mlp"]["up_proj"])
    drawn = [leaf for name, leaf in named_leaves(all_of_them) if name.endswith("lora_a")]
    assert len(drawn) == 14
    deviation = np.concatenate([np.ravel(a * a.shape[0] ** 0.5) for a in drawn]).std()
    assert abs(deviation - 1) < 0.1  # of 800 numbers: 4 standard errors
    assert len({float(a[0, 0]) for a in drawn}) == 14


# ── training ──────────────────────────────────────────────────────────────────────────────────────


def step_of(model: TransformerConfig, lora: LoraConfig | None, **options):
    """(a state at the start, the step)"""
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0, learning_rate=0.01), 9)
    task = task_of(TrainConfig(model=model, lora=lora or LoraConfig(), num_positions=6))
    step = make_train_step(task.losses, optimizer, lora=lora, **options)
    kept = options.get("ema_decay") is not None
    params = jax.jit(task.init)(jax.random.key(0))
    options = {"freeze": options.get("freeze", ()), "ema": kept}
    return state_of(params, optimizer, lora=lora, **options), step


def batch_of(seed: int, rows: int = 8) -> Batch:
    tokens = np.random.default_rng(seed).integers(0, TEXT.num_tokens, (rows, 6))
    return Batch(tokens.astype(np.int32), np.ones((rows, 6), bool))


def after(state, step, count: int = 3):
    for number in range(count):
        state, _ = step(state, batch_of(number), jax.random.key(number))
    return jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize("model", [TEXT, STACKED], ids=["side by side", "stacked"])
def test_only_adapters_move_and_have_moments(model):
    lora = dataclasses.replace(LORA, train=("norm",))
    begun, step = step_of(model, lora, ema_decay=0.5, num_micro_batches=2)
    last = after(begun, jax.jit(step))
    names = [name for name, _ in named_leaves(begun.params)]
    moves = {n for n in names if "lora_" in n or n == "norm/scale"}
    assert len(moves) == 1 + 2 * 7 * (1 if model.scan_layers else 2)
    for now in (last.params, last.ema):
        before = dict(named_leaves(begun.params))
        changed = {n for n, leaf in named_leaves(now) if (leaf != before[n]).any()}
        assert changed == moves
    moments = [n for n, _ in named_leaves(last.optimizer) if "/mu/" in f"/{n}/"]
    assert len(moments) == len(moves)


@pytest.mark.slow
def test_training_adapters_is_training_what_is_merged():
    """The loss of the next batch is that of the merged network, in a plain task."""
    begun, step = step_of(STACKED, LORA)
    last = after(begun, jax.jit(step))
    plain = task_of(TrainConfig(model=STACKED, num_positions=6))
    own = task_of(TrainConfig(model=STACKED, num_positions=6, lora=LORA))
    batch = jax.tree.map(lambda leaf: leaf[0], batch_of(9))
    whole = plain.losses(merged(last.params, LORA), batch).nats
    np.testing.assert_allclose(own.losses(last.params, batch).nats, whole, rtol=1e-4)
    first = plain.losses(without(last.params), batch).nats
    assert np.abs(whole - first).max() > 1e-2


def shapes_of_products(jaxpr) -> set[tuple[int, ...]]:
    """The shapes that products have in a program, wherever in it."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "rows_times"):
            found |= {variable.aval.shape for variable in equation.outvars}
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                found |= shapes_of_products(inner) if hasattr(inner, "eqns") else set()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model", [TEXT, STACKED], ids=["side by side", "stacked"])
def test_no_gradient_is_as_large_as_a_kernel(model):
    kernels = {(16, 16), (16, 8), (16, 24), (24, 16)}
    for lora, expected in ((None, kernels), (LORA, set())):
        state, step = step_of(model, lora)
        args = state, batch_of(0, rows=7), jax.random.key(0)
        shapes = shapes_of_products(jax.make_jaxpr(step)(*args).jaxpr)
        assert {shape for shape in shapes if shape in kernels} == expected
        assert ((16, 3) in shapes) == (lora is not None)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_a_member_over_eight_devices_is_one_on_one(placement):
    begun, step = step_of(STACKED, LORA)
    expected = after(begun, jax.jit(step))
    spread = sharded_step(step, make_mesh({"data": 8}), begun, placement=placement, donate=False)
    found = after(begun, spread)
    near = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6)
    jax.tree.map(near, found.params, expected.params)
    assert_equal(without(found.params), without(begun.params))


# ── what cannot be ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"`lora.rank` must .* got lora.rank = 0"),
        ({"rank": 2}, r"`lora.targets` must name a part if `lora.rank` is 2; got .* = \(\)"),
        ({"train": ("norm",)}, r"`lora.targets` must name a part if `lora.train` is \('norm',\);"),
        ({"targets": ("a",), "alpha": 0.0}, "`lora.alpha` must"),
    ],
)
def test_adapters_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("mlp",)}, r"with linear maps, such as layers_0/mlp/down_proj, .*= 'mlp'"),
        ({"targets": ("layers_*", "norm")}, r"`lora.targets` must .* got lora.targets = 'norm'"),
        ({"targets": ("embed_tokens",)}, "`lora.targets` must name parts with linear maps"),
        ({"targets": ("lm_head",)}, "`lora.targets` must name parts with linear maps"),
        ({"rank": 9}, r"`lora.rank` must be at most 8, .* of layers_0/self_attn/k_proj; got .* 9"),
    ],
)
def test_targets_that_the_network_does_not_have_are_refused(change, message):
    params = transformer(dataclasses.replace(TEXT, tied=False)).init(jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        with_adapters(jax.random.key(1), params, dataclasses.replace(LORA, **change))


@pytest.mark.parametrize(
    ("freeze", "train", "message"),
    [
        (("layers_0",), (), r"`freeze` must not name what `lora` trains, such as layers_0/"),
        (("norm",), ("norm",), "`freeze` must not name what `lora` trains, such as norm/scale"),
        ((), ("head",), r"`lora.train` must name parts of the network, .* got lora.train = 'head'"),
    ],
)
def test_what_is_frozen_and_trained_is_refused(freeze, train, message):
    params = adapted(transformer(TEXT).init, LORA)
    with pytest.raises(ValueError, match=message):
        frozen(params, freeze, dataclasses.replace(LORA, train=train))
    with pytest.raises(ValueError, match="`params` must have adapters if `lora` has targets"):
        frozen(without(params), (), LORA)


# ── the config ────────────────────────────────────────────────────────────────────────────────────


def test_a_config_names_adapters_only_if_it_has_some():
    plain = load_config("tiny")
    assert "lora" not in to_json(plain)
    words = ["lora.rank=2", "lora.alpha=4", 'lora.targets=["layers_*"]', 'lora.train=["norm"]']
    config = load_config("tiny", words)
    expected = LoraConfig(rank=2, alpha=4.0, targets=("layers_*",), train=("norm",))
    assert config.lora == expected
    assert to_json(config)["lora"]["targets"] == ["layers_*"]
    for one in (plain, config):
        assert from_json(TrainConfig, to_json(one)) == one
    with pytest.raises(ValueError, match=r"`lora\.targets` must be empty if `task` is given"):
        load_config("tiny", [*words, "task=own_networks:plain"])


@pytest.mark.slow
def test_a_task_with_adapters_draws_the_same_network():
    config = load_config("tiny", ["lora.rank=2", 'lora.targets=["layers_*"]'])
    own, plain = task_of(config), task_of(load_config("tiny"))
    params = own.init(jax.random.key(3))
    assert_equal(without(params), plain.init(jax.random.key(3)))
    assert own.decoder is None
    assert plain.decoder is not None


def test_a_loss_of_no_adapter_is_that_of_the_network():
    """The losses of a network that does not know of adapters are read through `scaled`."""
    network = transformer(TEXT)
    plain = next_token_losses(network, start=None)
    batch = jax.tree.map(lambda leaf: leaf[0], batch_of(0))
    params = network.init(jax.random.key(0))
    assert_equal(plain(scaled(params, LORA), batch), plain(params, batch))
    assert_equal(merged(params, LORA), params)
