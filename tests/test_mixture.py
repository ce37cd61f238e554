"""Several decoders as one: the distribution of the mixture of sequences, whatever way it is
read.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from dfm_jax.interfaces import uncached_decoder
from dfm_jax.mixture import Context, conditional_mixture_decoder, mixture_decoder, mixture_params
from dfm_jax.models import TransformerConfig, vision_language, vision_language_decoder
from dfm_jax.sampling import sample_autoregressive

V = 3
TABLES = np.random.default_rng(0).normal(size=(3, V + 1, V))
LOG_PRIOR = np.log([0.5, 0.3, 0.2])


def bigram(params, x_t):
    return params[x_t]


def shifted(params, x_t):
    """Another make of network over the same ids."""
    return params["table"][x_t] + 0.5 * params["table"][jnp.roll(x_t, 1).at[0].set(V)]


FIRST, SECOND = uncached_decoder(bigram, V + 1), uncached_decoder(shifted, V + 1)
DECODERS = (FIRST, SECOND, FIRST)


def experts():
    return [jnp.asarray(TABLES[0]), {"table": jnp.asarray(TABLES[1])}, jnp.asarray(TABLES[2])]


def log_probs(k: int, prefix: list[int]) -> np.ndarray:
    """log q_k(· | prefix) in NumPy float64, from the tables."""
    logits = TABLES[k][prefix[-1]]
    if k == 1:
        logits = logits + 0.5 * TABLES[1][prefix[-2] if len(prefix) > 1 else V]
    return logits - np.log(np.exp(logits).sum())


def log_sequence(k: int, x: tuple[int, ...]) -> float:
    """log q_k(x), begun at the mask."""
    return sum(log_probs(k, [V, *x[:i]])[token] for i, token in enumerate(x))


EXTEND = jax.jit(mixture_decoder(DECODERS).extend)  # compiled once for each length


def begin():
    params = mixture_params(DECODERS, jnp.asarray(LOG_PRIOR), experts())
    return params, mixture_decoder(DECODERS).init_cache(4)


def read(tokens, *sizes):
    """The logits of `tokens`, read in pieces of these sizes."""
    (params, cache), rows, at = begin(), [], 0
    for size in sizes:
        logits, cache = EXTEND(params, cache, jnp.asarray(tokens[at : at + size]), size)
        rows.append(logits)
        at += size
    return np.concatenate(rows), cache


@pytest.mark.statement("D7")
def test_the_mixture_of_sequences_token_by_token(x64):
    """Π_i q(x^i | x^{<i}) = Σ_k w_k q_k(x) for each of the 27 sequences; no static mixture is."""
    mixture = mixture_decoder(DECODERS)
    params = mixture_params(DECODERS, jnp.asarray(LOG_PRIOR), experts())
    every = np.array(list(itertools.product(range(V), repeat=3)))
    begun = jnp.asarray(np.concatenate([np.full((27, 1), V), every], axis=1))

    @jax.jit
    @jax.vmap
    def logits(row):
        return mixture.extend(params, mixture.init_cache(4), row)[0]

    rows = np.asarray(logits(begun))
    found = np.take_along_axis(rows[:, :-1], every[..., None], axis=2).sum(axis=(1, 2))
    whole = np.array([[log_sequence(k, tuple(x)) for k in range(3)] for x in every])
    expected = np.log(np.exp(whole + LOG_PRIOR[None]).sum(axis=1))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, atol=1e-12)
    static = np.zeros(27)
    for row, x in enumerate(every):
        for i in range(3):
            probs = [np.exp(log_probs(k, [V, *x[:i]])[x[i]]) for k in range(3)]
            static[row] += np.log(np.exp(LOG_PRIOR) @ probs)
    assert np.abs(static - expected).max() > 0.01


@pytest.mark.slow
def test_read_at_once_or_in_pieces_it_is_the_same_distribution(x64):
    tokens = [V, 1, 2, 0]
    whole, cache = read(tokens, 4)
    for sizes in ((1, 1, 1, 1), (2, 2)):
        pieces, moved = read(tokens, *sizes)
        np.testing.assert_allclose(pieces, whole, atol=1e-12)
        np.testing.assert_allclose(moved.gate.log_weights, cache.gate.log_weights, atol=1e-12)


@pytest.mark.slow
def test_padding_moves_neither_the_gate_nor_the_distributions(x64):
    """Behind `num_new` tokens anything may lie, and it is read over by the next call."""
    params, cache = begin()
    _, cache = EXTEND(params, cache, jnp.array([V, 1]), 1)
    _, still = EXTEND(params, cache, jnp.array([2, 2]), 0)
    logits, _ = EXTEND(params, still, jnp.array([2, 0]), 2)
    np.testing.assert_allclose(logits, read([V, 2, 0], 1, 2)[0][1:], atol=1e-12)


def test_the_first_token_and_the_mask_say_nothing_of_the_experts(x64):
    _, after_mask = read([1, V], 2)
    np.testing.assert_allclose(after_mask.gate.log_weights, LOG_PRIOR, atol=1e-12)


def test_a_prefix_that_no_expert_makes_has_no_next_distribution(x64):
    impossible = [jnp.asarray(np.where(np.arange(V) == 2, -np.inf, TABLES[k])) for k in (0, 2)]
    both = (FIRST, FIRST)
    mixture = mixture_decoder(both)
    params = mixture_params(both, jnp.log(jnp.array([0.5, 0.5])), impossible)
    logits, _ = jax.jit(mixture.extend)(params, mixture.init_cache(2), jnp.array([V, 2]))
    assert np.all(np.isfinite(logits[0][:2]))
    assert np.all(np.isneginf(logits[1]))


def test_experts_of_one_make_are_one_stack_and_come_back_in_their_order():
    params = mixture_params(DECODERS, LOG_PRIOR, experts())
    assert [jax.tree.leaves(stack)[0].shape for stack in params.stacks] == [(2, 4, 3), (1, 4, 3)]
    assert mixture_decoder(DECODERS) is mixture_decoder(DECODERS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixture_decoder(()), "`decoders` must hold an expert"),
        (
            lambda: mixture_decoder((FIRST, uncached_decoder(bigram, V))),
            r"the same `num_states`; got num_states = \[4, 3\]",
        ),
        (
            lambda: mixture_params(DECODERS, LOG_PRIOR[:2], experts()),
            "must have 3 entries, one for each expert",
        ),
        (
            lambda: mixture_params(DECODERS, LOG_PRIOR, experts()[:2]),
            "must have 3 entries, one for each expert",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ── conditioned on a context ────────────────────────────────────────────────────────────────────

PICTURES = TransformerConfig(num_tokens=7, width=16, num_layers=1, num_heads=2, ffn_width=24)
P, F, K = 3, 5, 3
CONTEXT_PRIOR = np.log([0.2, 0.5, 0.3])
PROMPT, ANSWER = jnp.array([4, 6, 1]), jnp.array([2, 5])


@pytest.fixture(scope="module")
def seeing():
    """Three experts that read a picture, and the picture."""
    network = vision_language(PICTURES, F)
    params = [network.init(jax.random.key(k)) for k in range(K)]
    picture = jax.random.normal(jax.random.key(9), (P, F))
    return network, params, picture


def conditional_logits(seeing, log_prior, gate):
    """Rows of the mixture behind the prompt and behind each token of the answer: [3, V].

    Not compiled as a whole: another program may round otherwise, whatever it computes.
    """
    _, params, picture = seeing
    decoders = (vision_language_decoder(PICTURES, P, F),) * K
    mixture = conditional_mixture_decoder(decoders, gate=gate)
    mixed = mixture_params(decoders, jnp.full(K, -np.log(K)), params)
    assert mixture.read_prefix is not None

    def logits(log_prior):
        cache = mixture.read_prefix(mixed, mixture.init_cache(5), Context(log_prior, picture))
        first, cache = mixture.extend(mixed, cache, PROMPT)
        rest = []
        for token in ANSWER:
            row, cache = mixture.extend(mixed, cache, token[None])
            rest.append(row[0])
        return jnp.stack([first[-1], *rest])

    return np.asarray(logits(jnp.asarray(log_prior, jnp.float32)))


def probs_of_experts(seeing):
    """log q_k behind the prompt and behind each token of the answer, uncached: [K, 3, V]."""
    network, params, picture = seeing
    tokens = jnp.concatenate([PROMPT, ANSWER])
    apply = jax.jit(lambda own: network.apply(own, picture, tokens)[len(PROMPT) - 1 :])
    logits = np.stack([apply(own) for own in params])
    return scipy.special.log_softmax(logits.astype(float), axis=-1)


@pytest.mark.slow
@pytest.mark.statement("D7")
def test_the_answer_moves_the_gate_and_the_question_does_not(seeing):
    probs = probs_of_experts(seeing)
    weights = [CONTEXT_PRIOR]
    for i, token in enumerate(ANSWER):
        weights.append(weights[-1] + probs[:, i, token])
    expected = np.stack(
        [
            scipy.special.logsumexp(scipy.special.log_softmax(w)[:, None] + probs[:, i], axis=0)
            for i, w in enumerate(weights)
        ]
    )
    found = conditional_logits(seeing, CONTEXT_PRIOR, "bayes")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    still = scipy.special.logsumexp(CONTEXT_PRIOR[:, None, None] + probs, axis=0)
    np.testing.assert_allclose(
        conditional_logits(seeing, CONTEXT_PRIOR, "static"), still, atol=1e-5
    )
    assert np.abs(still[1:] - expected[1:]).max() > 0.01


@pytest.mark.slow
@pytest.mark.statement("D8")
@pytest.mark.parametrize("gate", ["bayes", "static"])
def test_a_one_hot_context_posterior_is_the_expert_alone_bit_for_bit(seeing, gate):
    """The full mixture under r_0 = δ_{f(c)}, its K experts computed, is top-1."""
    _, params, picture = seeing
    decoders = (vision_language_decoder(PICTURES, P, F),) * K
    stack = mixture_params(decoders, jnp.full(K, -np.log(K)), params).stacks[0]
    one = decoders[0]
    assert one.read_prefix is not None

    def probs(own):
        cache = one.read_prefix(own, one.init_cache(5), picture)
        first, cache = one.extend(own, cache, PROMPT)
        rest = []
        for token in ANSWER:
            row, cache = one.extend(own, cache, token[None])
            rest.append(row[0])
        return jax.nn.log_softmax(jnp.stack([first[-1], *rest]))

    alone = np.asarray(jax.vmap(probs)(stack))
    for k in range(K):
        log_prior = np.where(np.arange(K) == k, 0.0, -np.inf)
        np.testing.assert_array_equal(conditional_logits(seeing, log_prior, gate), alone[k])
    nearly = np.log(np.where(np.arange(K) == 0, 1 - 2e-3, 1e-3))  # the falsifier
    assert (conditional_logits(seeing, nearly, gate) != alone[0]).any()


@pytest.mark.slow
def test_sampled_rows_have_contexts_of_their_own(seeing):
    """Each row of a batch under its own one-hot r_0 says what its expert says."""
    _, params, picture = seeing
    decoders = (vision_language_decoder(PICTURES, P, F),) * K
    prompts, lengths = jnp.stack([PROMPT] * K), jnp.full(K, len(PROMPT))
    options = {"max_new": 4, "temperature": 0.0}
    pictures = jnp.stack([picture] * K)
    found = sample_autoregressive(
        jax.random.key(0),
        mixture_params(decoders, jnp.full(K, -np.log(K)), params),
        conditional_mixture_decoder(decoders),
        prompts,
        lengths,
        prefixes=Context(jnp.where(jnp.eye(K, dtype=bool), 0.0, -jnp.inf), pictures),
        **options,
    )
    said = []
    for k in range(K):
        alone = sample_autoregressive(
            jax.random.key(0),
            params[k],
            decoders[0],
            prompts[:1],
            lengths[:1],
            prefixes=pictures[:1],
            **options,
        )
        said.append(np.asarray(alone.tokens[0]))
        np.testing.assert_array_equal(found.tokens[k], said[k])
    assert len({tuple(x) for x in np.stack(said)}) > 1


def test_refusals_of_a_conditional_mixture():
    with pytest.raises(
        ValueError, match="Every one of `decoders` must have a function `read_prefix`"
    ):
        conditional_mixture_decoder(DECODERS)
    with pytest.raises(ValueError, match="`gate` must be bayes or static; got gate = 'soft'"):
        conditional_mixture_decoder(DECODERS, gate="soft")  # pyright: ignore
