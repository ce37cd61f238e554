"""D7: a masked network read from left to right is a decoder, and mixes with causal ones exactly."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_distributions import TOKENS, N, S, V, counts
from test_paths import assert_drawn_from

from dfm_jax.interfaces import uncached_decoder
from dfm_jax.mixture import mixture_decoder, mixture_params
from dfm_jax.models import TransformerConfig, transformer, transformer_denoiser
from dfm_jax.sampling import masked_decoder, sample_autoregressive

pytestmark = pytest.mark.statement("D7")
DRAWS = 20_000
START = jnp.array([V])


def rough(params, x_t, t):
    """A denoiser that is no posterior of anything, and reads the time."""
    seen = jax.nn.one_hot(x_t, S, dtype=params.dtype).reshape(-1)
    return (seen @ params).reshape(N, V) * (1 + t)


def causal(params, tokens):
    """Next-token logits of a chain that also knows the place: row i sees tokens[: i + 1]."""
    return params[jnp.minimum(jnp.arange(tokens.shape[0]), N - 1), tokens]


RANDOM = np.random.default_rng(3)
MASKED = RANDOM.normal(size=(N * S, N * V))
CAUSAL = RANDOM.normal(size=(N, S, V))
PRIOR = np.array([0.35, 0.65])


def softmax(logits):
    probs = np.exp(logits - logits.max())
    return probs / probs.sum()


def masked_probs():
    """Π_i p̂^i(x^i | x^{<i}, m … m), by hand: [V^N]."""
    found = np.ones(len(TOKENS))
    for index, x in enumerate(TOKENS):
        for i in range(N):
            x_t = np.where(np.arange(N) < i, x, V)
            logits = (np.eye(S)[x_t].reshape(-1) @ MASKED).reshape(N, V)[i] * (1 + i / N)
            found[index] *= softmax(logits)[x[i]]
    return found


def causal_probs():
    found = np.ones(len(TOKENS))
    for index, x in enumerate(TOKENS):
        before = np.concatenate([[V], x[:-1]])
        for i in range(N):
            found[index] *= softmax(CAUSAL[i, before[i]])[x[i]]
    return found


def sequence_probs(decoder, params):
    """From the logits of one call that reads all but the last token: [V^N]."""

    def one(x):
        read = jnp.concatenate([START, x[:-1]])
        rows = jax.nn.log_softmax(decoder.extend(params, decoder.init_cache(N), read)[0])
        return jnp.sum(jnp.take_along_axis(rows, x[:, None], axis=1))

    return np.exp(jax.vmap(one)(jnp.asarray(TOKENS)))


def test_it_is_a_distribution_whatever_the_network_is(x64):
    decoder = masked_decoder(rough, N, V)
    found = sequence_probs(decoder, jnp.asarray(MASKED))
    np.testing.assert_allclose(found, masked_probs(), atol=1e-14)
    assert found.sum() == pytest.approx(1.0, abs=1e-13)


def test_reading_token_by_token_is_reading_at_once(x64):
    decoder, params, x = masked_decoder(rough, N, V), jnp.asarray(MASKED), jnp.array([V, 1, 0])
    at_once, whole = decoder.extend(params, decoder.init_cache(N + 1), x)
    state = decoder.init_cache(N + 1)
    for i in range(3):
        rows, state = decoder.extend(params, state, x[i : i + 1])
        np.testing.assert_allclose(rows[0], at_once[i], atol=1e-15)
    padded = jnp.concatenate([x, jnp.array([1])])
    _, cut = decoder.extend(params, decoder.init_cache(N + 1), padded, 3)
    for found in (state, cut):
        np.testing.assert_array_equal(found.x_t, whole.x_t)
        assert found.count == whole.count


def test_a_masked_and_a_causal_expert_are_the_mixture_of_their_distributions(x64):
    decoders = (masked_decoder(rough, N, V), uncached_decoder(causal, S))
    params = mixture_params(decoders, jnp.log(PRIOR), (jnp.asarray(MASKED), jnp.asarray(CAUSAL)))
    found = sequence_probs(mixture_decoder(decoders), params)
    expected = PRIOR @ np.stack([masked_probs(), causal_probs()])
    np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.slow
def test_draws_of_the_mixture_have_its_distribution():
    decoders = (masked_decoder(rough, N, V), uncached_decoder(causal, S))
    both = (jnp.float32(MASKED), jnp.float32(CAUSAL))
    params = mixture_params(decoders, jnp.log(jnp.float32(PRIOR)), both)
    prompts, lengths = jnp.full((DRAWS, 1), V), jnp.ones(DRAWS, int)
    sample = sample_autoregressive(
        jax.random.key(0), params, mixture_decoder(decoders), prompts, lengths, max_new=N
    )
    tokens = np.asarray(sample.tokens)[:, 1 : N + 1]
    assert_drawn_from(PRIOR @ np.stack([masked_probs(), causal_probs()]), counts(tokens, V))


def test_a_transformer_of_masks_is_read_too(key):
    config = TransformerConfig(
        num_tokens=5,
        num_states=6,
        width=16,
        num_layers=1,
        num_heads=2,
        ffn_width=16,
        causal=False,
    )
    network = transformer(config)
    decoder = masked_decoder(transformer_denoiser(config), 4, 5)
    params = network.init(key)
    x = jnp.array([5, 1, 2, 3])
    rows, _ = decoder.extend(params, decoder.init_cache(4), x)
    state = jnp.array([1, 2, 5, 5])
    np.testing.assert_allclose(rows[2], network.apply(params, state)[2], atol=1e-5)


def test_what_has_no_room_is_refused():
    decoder = masked_decoder(rough, N, V)
    for call, message in (
        (
            lambda: decoder.init_cache(N + 2),
            f"`length` must lie in [1, {N + 1}]; got length = {N + 2}",
        ),
        (lambda: masked_decoder(rough, 0, V), "`num_positions` must be at least 1"),
        (
            lambda: decoder.extend(
                jnp.asarray(MASKED), decoder.init_cache(1), jnp.zeros(N + 2, int)
            ),
            f"The number of tokens in the cache must be at most its `length`, {N + 1}",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
