"""The language model that reads a picture first: by parts, causal, with and without a cache."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from dfm_jax.interfaces import uncached_decoder
from dfm_jax.models import (
    TransformerConfig,
    transformer,
    transformer_decoder,
    vision_language,
    vision_language_decoder,
)
from dfm_jax.sampling import sample_autoregressive
from dfm_jax.training.batches import PictureBatch
from dfm_jax.training.losses import answer_losses
from dfm_jax.training.state import TrainState
from dfm_jax.training.step import make_train_step

CONFIG = TransformerConfig(num_tokens=11, width=16, num_layers=2, num_heads=2, ffn_width=24)
P, F = 3, 5


# That both are one decoder, test_transformer.py says; here, their caches, which differ.
EITHER = [pytest.param(False, id="unrolled"), pytest.param(True, id="scanned")]
UNROLLED = pytest.param(False, id="unrolled", marks=pytest.mark.exhaustive)


@pytest.fixture(scope="module", params=[UNROLLED, EITHER[1]])
def config(request):
    return dataclasses.replace(CONFIG, scan_layers=request.param)


@pytest.fixture(scope="module")
def params(config):
    return vision_language(config, F).init(jax.random.key(0))


@pytest.fixture(scope="module")
def features():
    return jax.random.normal(jax.random.key(1), (4, P, F))


TOKENS = jnp.array([3, 1, 4, 1, 5, 9, 2])


@pytest.mark.slow
def test_the_picture_is_vectors_before_the_tokens(config, params, features):
    """A projector whose rows are those of the embedding: then the picture is text."""
    words = jnp.array([7, 0, 10])
    network = vision_language(config, F)
    table = params["decoder"]["embed_tokens"]["embedding"]
    own = params["projector"]
    # gelu(h) of a large h is h: put the wanted rows there by hand.
    pictures = jnp.eye(P, F)
    first = {"kernel": jnp.zeros((F, 16)).at[jnp.arange(P), jnp.arange(P)].set(30.0)}
    first["bias"] = jnp.zeros(16)
    second = {"kernel": jnp.zeros((16, 16)).at[jnp.arange(P)].set(table[words] / 30.0)}
    second["bias"] = jnp.zeros(16)
    assert jax.tree.map(jnp.shape, {"layers_0": first, "layers_1": second}) == jax.tree.map(
        jnp.shape, own
    )
    changed = {"projector": {"layers_0": first, "layers_1": second}, "decoder": params["decoder"]}
    found = network.apply(changed, pictures, TOKENS)
    whole = transformer(config).apply(params["decoder"], jnp.concatenate([words, TOKENS]))
    np.testing.assert_allclose(found, whole[P:], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_projector_by_hand(config, params, features):
    own, pictures = jax.device_get((params["projector"], features))
    h = pictures[0] @ own["layers_0"]["kernel"] + own["layers_0"]["bias"]
    h = 0.5 * h * (1 + scipy.special.erf(h / 2**0.5))
    prefix = h @ own["layers_1"]["kernel"] + own["layers_1"]["bias"]
    # Two pictures whose projections are the same give the same logits.
    network = vision_language(config, F)
    straight = {
        "projector": {
            "layers_0": {"kernel": jnp.zeros((F, 16)), "bias": jnp.full(16, 40.0)},
            "layers_1": {"kernel": jnp.zeros((16, 16)), "bias": prefix[0]},
        },
        "decoder": params["decoder"],
    }
    one_patch = network.apply(params, features[0, :1], TOKENS)
    np.testing.assert_allclose(
        network.apply(straight, features[1, :1], TOKENS), one_patch, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_answers_see_the_picture_and_what_was_written(config, params, features):
    network = vision_language(config, F)
    found = network.apply(params, features[0], TOKENS)
    assert found.shape == (7, 11)
    assert np.abs(found - network.apply(params, features[1], TOKENS)).min(axis=1).max() > 1e-4
    later = network.apply(params, features[0], TOKENS.at[4].set(0))
    np.testing.assert_array_equal(found[:4], later[:4])
    assert np.abs(found[4:] - later[4:]).max() > 1e-4


@pytest.mark.slow
def test_both_parts_learn(config, params, features):
    def loss(params):
        logits = vision_language(config, F).apply(params, features[0], TOKENS)
        return -jax.nn.log_softmax(logits)[3, 1]

    gradient = jax.grad(loss)(params)
    for part in ("projector", "decoder"):
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient[part])) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("config", EITHER, indirect=True)
def test_the_cache_gives_the_same_logits(config, params, features):
    decoder = vision_language_decoder(config, P, F)
    assert decoder is vision_language_decoder(config, P, F)
    assert decoder.read_prefix is not None
    whole = vision_language(config, F).apply(params, features[0], TOKENS)
    cache = decoder.read_prefix(params, decoder.init_cache(7), features[0])
    first, cache = decoder.extend(params, cache, TOKENS[:4])
    rest = [first]
    for token in TOKENS[4:]:
        logits, cache = decoder.extend(params, cache, token[None])
        rest.append(logits)
    np.testing.assert_allclose(jnp.concatenate(rest), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_greedy_answers_are_those_without_a_cache(config, params, features):
    """Prompts of two lengths, each with its own picture."""
    prompts, lengths = jnp.array([[3, 1, 4], [2, 7, 0]]), jnp.array([3, 2])
    network = vision_language(config, F)

    plain = uncached_decoder(lambda p, x: network.apply(p[0], p[1], x), 11)
    options = {"max_new": 4, "temperature": 0.0}
    found = sample_autoregressive(
        jax.random.key(2),
        params,
        vision_language_decoder(config, P, F),
        prompts,
        lengths,
        prefixes=features[:2],
        **options,
    )
    for b in range(2):
        alone = sample_autoregressive(
            jax.random.key(3),
            (params, features[b]),
            plain,
            prompts[b : b + 1],
            lengths[b : b + 1],
            **options,
        )
        np.testing.assert_array_equal(found.tokens[b], alone.tokens[0])


@pytest.mark.slow
def test_only_answers_are_paid_for(config, params, features):
    """A5, term by term; and a training step on it moves both parts."""
    network = vision_language(config, F)
    answers = jnp.array([True, False, False, True, True, False, True])
    losses = jax.jit(answer_losses(network))
    terms = losses(params, PictureBatch(features[0], TOKENS, answers))
    log_probs = np.asarray(jax.nn.log_softmax(jax.jit(network.apply)(params, features[0], TOKENS)))
    expected = np.zeros(7)
    for i in (3, 4, 6):
        expected[i] = -log_probs[i - 1, TOKENS[i]]
    np.testing.assert_allclose(terms.nats, expected, rtol=1e-5)
    np.testing.assert_array_equal(terms.counts, answers.at[0].set(False))

    # What is given may be anything, if nothing that is paid for stands behind it.
    batch: Any = PictureBatch(
        features, jnp.tile(TOKENS, (4, 1)), jnp.tile(jnp.arange(7) == 2, (4, 1))
    )
    step = jax.jit(make_train_step(answer_losses(network), optax.sgd(0.1)))
    state = TrainState(jnp.array(0), params, optax.sgd(0.1).init(params), None)
    after, metrics = step(state, batch, jax.random.key(5))
    other, _ = step(state, batch._replace(tokens=batch.tokens.at[:, 3:].set(0)), jax.random.key(5))
    assert int(metrics.num_tokens) == 4
    for part in ("projector", "decoder"):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, params)[part]
        assert max(jax.tree.leaves(moved)) > 1e-6
    chex.assert_trees_all_close(after.params, other.params, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_bad_input_is_refused(config, params, features):
    network = vision_language(config, F)
    with pytest.raises(
        ValueError, match=r"`features` must have the shape \[P, 5\]; got features.shape"
    ):
        network.apply(params, features[0, :, :4], TOKENS)
    short = dataclasses.replace(config, max_positions=8)
    with pytest.raises(
        ValueError, match=("at most 5 tokens, because `max_positions` is 8 and 3 stand before")
    ):
        vision_language(short, F).apply(params, features[0], TOKENS)
    with pytest.raises(ValueError, match="`causal` must be True"):
        vision_language(dataclasses.replace(config, causal=False), F)
    decoder = vision_language_decoder(config, P, F)
    assert decoder.read_prefix is not None
    with pytest.raises(
        ValueError, match=r"`prefixes` must have 3 patches; got features.shape = \(2"
    ):
        decoder.read_prefix(params, decoder.init_cache(2), features[0, :2])
    asked = (jnp.array([[1, 2]]), jnp.array([2]))
    with pytest.raises(ValueError, match="`prefixes` must be given if `decoder` reads a prefix"):
        sample_autoregressive(jax.random.key(0), params, decoder, *asked, max_new=1)
    with pytest.raises(ValueError, match="`prefixes` must have 1 rows, one for each prompt"):
        sample_autoregressive(
            jax.random.key(0), params, decoder, *asked, max_new=1, prefixes=features[:2]
        )
    with pytest.raises(ValueError, match="`prefixes` must be None if `decoder` reads no prefix"):
        sample_autoregressive(
            jax.random.key(0),
            params["decoder"],
            transformer_decoder(config),
            *asked,
            max_new=1,
            prefixes=features[:1],
        )
