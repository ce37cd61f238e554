"""Decoders that are written for the batch compute what `jax.vmap` of the definition computes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax.interfaces import Decoder
from dfm_jax.mixture import Context, conditional_mixture_decoder, mixture_decoder, mixture_params
from dfm_jax.models import (
    TransformerConfig,
    transformer,
    transformer_decoder,
    vision_language,
    vision_language_decoder,
)
from dfm_jax.models.batched_decoder import block_sizes
from dfm_jax.sampling import sample_autoregressive

V = 7
CONFIG = TransformerConfig(num_tokens=V, width=16, num_layers=1, num_heads=4, ffn_width=24)
OTHER = dataclasses.replace(CONFIG, num_layers=2, num_kv_heads=2, tied=False, num_states=V + 1)
CONFIGS = {
    "plain": CONFIG,
    "grouped heads, a head of its own, a mask": OTHER,
    "scanned": dataclasses.replace(CONFIG, num_layers=2, scan_layers=True),
    "bfloat16": dataclasses.replace(CONFIG, compute_dtype="bfloat16"),
}


def slow(*values):
    """A case that the quick suite leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)


PROMPTS = np.random.default_rng(0).integers(V, size=(5, 3))
LENGTHS = np.array([1, 3, 2, 3, 1])


def params_of(config: TransformerConfig, seed: int = 0):
    """Weights that are large enough for uneven distributions."""
    params = transformer(config).init(jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf * 2, params)


def by_vmap(decoder: Decoder) -> Decoder:
    return decoder._replace(batched=None)


def read(decoder: Decoder, params, tokens: np.ndarray, rooms: tuple[int, ...]) -> np.ndarray:
    """The logits [B, 1 + the sum of `rooms`, V] after the prompts, then after each of `tokens`."""
    batched = decoder.batched
    assert batched is not None
    weights, step = batched.weights(params), jax.jit(batched.step)
    begin = jax.jit(lambda p: batched.read(p, PROMPTS, LENGTHS, None, rooms[0]))
    logits, memory = begin(params)
    found, past, at = [logits], (), 0
    for i, room in enumerate(rooms):
        if i > 0:
            past = (*past, memory)
            memory = batched.grow(memory, rooms[i - 1], room)
        for index in range(room):
            logits, memory = step(weights, past, memory, tokens[:, at], index)
            found.append(logits)
            at += 1
    return np.stack(found, axis=1)


@pytest.mark.parametrize("name", [*CONFIGS][:2] + [slow(name) for name in [*CONFIGS][2:]])
def test_every_step_gives_the_logits_of_the_whole_sequence(name):
    config, rooms = CONFIGS[name], (2, 1, 3)
    params = params_of(config)
    tokens = np.random.default_rng(1).integers(V, size=(5, sum(rooms)))

    def whole(config: TransformerConfig) -> np.ndarray:
        rows, apply = [], jax.jit(transformer(config).apply)
        for prompt, length, own in zip(PROMPTS, LENGTHS, tokens, strict=True):
            x = np.concatenate([prompt[:length], own])
            rows.append(apply(params, x)[length - 1 :])
        return np.array(rows)

    found, expected = read(transformer_decoder(config), params, tokens, rooms), whole(config)
    if name == "bfloat16":  # as far from float32 as the network itself is
        wide = whole(dataclasses.replace(config, compute_dtype="float32"))
        assert np.std(found - wide) < 1.5 * np.std(expected - wide)
    else:
        np.testing.assert_allclose(found, expected, atol=2e-5)
    # the falsifier: the tokens of another row give other logits
    swapped = read(transformer_decoder(config), params, tokens[::-1], rooms)
    assert np.max(np.abs(swapped[:, 1:] - found[:, 1:])) > 0.2


@pytest.mark.slow
def test_every_step_in_float64_is_exact(x64):
    config = dataclasses.replace(OTHER, compute_dtype="float64")
    params, rooms = params_of(config), (1, 2)
    tokens = np.random.default_rng(1).integers(V, size=(5, 3))
    found = read(transformer_decoder(config), params, tokens, rooms)
    apply = jax.jit(transformer(config).apply)
    for row, length in enumerate(LENGTHS):
        whole = np.concatenate([PROMPTS[row, :length], tokens[row]])
        expected = apply(params, whole)[length - 1 :]
        np.testing.assert_allclose(found[row], expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "max_new"),
    [
        ({}, 1),
        slow({}, 2),
        slow({"temperature": 0}, 33),
        slow({"top_k": 3, "stop_tokens": (2,)}, 33),
        ({"draw": "two_level", "temperature": 0.5}, 70),
    ],
    ids=str,
)
def test_the_tokens_are_those_of_a_cache_for_each_row(options, max_new):
    decoder, params = transformer_decoder(OTHER), params_of(OTHER)
    samples = [
        sample_autoregressive(
            jax.random.key(3), params, made, PROMPTS, LENGTHS, max_new=max_new, **options
        )
        for made in (decoder, by_vmap(decoder))
    ]
    for batched, plain in zip(*samples, strict=True):
        np.testing.assert_array_equal(batched, plain)


def experts(*configs: TransformerConfig):
    decoders = tuple(map(transformer_decoder, configs))
    params = [params_of(config, seed) for seed, config in enumerate(configs)]
    prior = np.log(np.arange(1, len(configs) + 1) / sum(range(1, len(configs) + 1)))
    return decoders, mixture_params(decoders, prior, params)


@pytest.mark.slow
@pytest.mark.statement("D6", "D7")
@pytest.mark.parametrize("narrow", [slow(False), True], ids=["prompts", "first tokens"])
def test_a_mixture_is_gated_as_a_cache_for_each_row_is(narrow):
    """Two kinds of experts; a prompt is judged, but for its first token and masks."""
    decoders, params = experts(OTHER, dataclasses.replace(OTHER, num_layers=1), OTHER)
    decoder = mixture_decoder(decoders)
    prompts = np.where(PROMPTS == 1, V, PROMPTS)[:, : 1 if narrow else 3]
    lengths = np.minimum(LENGTHS, prompts.shape[1])
    samples = [
        sample_autoregressive(jax.random.key(4), params, made, prompts, lengths, max_new=40)
        for made in (decoder, by_vmap(decoder))
    ]
    np.testing.assert_array_equal(samples[0].tokens, samples[1].tokens)
    assert decoder.batched is not None
    read_all = decoder.batched.read
    logits, memory = jax.jit(lambda p: read_all(p, prompts, lengths, None, 1))(params)
    extend = jax.jit(decoder.extend)
    for row, length in enumerate(lengths):
        expected, cache = extend(params, decoder.init_cache(3), prompts[row, :length])
        np.testing.assert_allclose(logits[row], expected[-1], atol=2e-5)
        np.testing.assert_allclose(memory.gate.log_weights[row], cache.gate.log_weights, atol=2e-5)
    if not narrow:  # the falsifier: the gate has moved from the prior
        assert np.max(np.abs(memory.gate.log_weights - params.log_prior[None])) > 0.1


def test_a_mixture_with_one_expert_that_has_no_such_form_has_none():
    decoders = transformer_decoder(CONFIG), by_vmap(transformer_decoder(CONFIG))
    assert mixture_decoder(decoders).batched is None


@pytest.mark.slow
@pytest.mark.statement("D7", "D8")
@pytest.mark.parametrize("gate", ["bayes", "static"])
def test_a_conditional_mixture_reads_its_prefix_in_every_row(gate):
    network = vision_language(CONFIG, 6)
    one = vision_language_decoder(CONFIG, 2, 6)
    params = [
        jax.tree.map(lambda leaf: leaf * 2, network.init(jax.random.key(k))) for k in range(2)
    ]
    features = np.random.default_rng(2).normal(size=(5, 2, 6)).astype(np.float32)
    options = {"max_new": 36, "temperature": 0.7}
    for made, weights, prefixes in (
        (one, params[0], features),
        (
            conditional_mixture_decoder((one, one), gate=gate),
            mixture_params((one, one), np.log([0.5, 0.5]), params),
            Context(jax.nn.log_softmax(jnp.arange(10.0).reshape(5, 2) % 3), features),
        ),
    ):
        first, second = (
            sample_autoregressive(
                jax.random.key(5), weights, form, PROMPTS, LENGTHS, prefixes=prefixes, **options
            )
            for form in (made, by_vmap(made))
        )
        np.testing.assert_array_equal(first.tokens, second.tokens)
        other = sample_autoregressive(
            jax.random.key(5),
            weights,
            made,
            PROMPTS,
            LENGTHS,
            prefixes=jax.tree.map(lambda leaf: leaf[::-1], prefixes),
            **options,
        )
        assert np.any(other.tokens != first.tokens)


def test_the_blocks_hold_all_tokens_and_at_most_double():
    for before, count in itertools.product((1, 5, 31, 32, 200), (0, 1, 2, 31, 127, 500)):
        sizes = block_sizes(before, count)
        assert sum(sizes) == count
        assert len(sizes) == 1 or min(sizes) > 0
        ends = before + np.cumsum(sizes)
        for end, size in zip(ends, sizes, strict=True):
            assert size <= max(48, 1.5 * (end - size))
    assert block_sizes(1, 127) == (31, 32, 64)
