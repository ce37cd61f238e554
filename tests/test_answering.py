"""Greedy answers about pictures: of one member, and of experts routed by picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax.data import PictureProcessor
from dfm_jax.models import TransformerConfig
from dfm_jax.models.multimodal import (
    MultimodalConfig,
    VisionConfig,
    multimodal,
    multimodal_decoder,
)
from dfm_jax.training.answering import Asked, greedy_answers

TEXT = TransformerConfig(num_tokens=23, width=16, num_layers=2, num_heads=2, ffn_width=24)
VISION = VisionConfig(
    image_size=16, patch_size=8, width=16, num_layers=2, num_heads=2, ffn_width=24
)
CONFIG = MultimodalConfig(text=TEXT, vision=VISION, image_token=22)
NETWORK, DECODER = multimodal(CONFIG), multimodal_decoder(CONFIG)
TABLE = PictureProcessor(size=16).table
IMAGE, NEW, STOP = [22] * 4, 7, 3


@pytest.fixture(scope="module")
def experts():
    """Two networks whose next tokens depend on the picture and on the prompt."""
    drawn = [NETWORK.init(jax.random.key(seed)) for seed in (1, 2)]
    return [jax.tree.map(lambda leaf: 2 * leaf, params) for params in drawn]


@pytest.fixture(scope="module")
def asked():
    rng = np.random.default_rng(0)
    texts = [rng.integers(4, 22, size=size).tolist() for size in (3, 9, 5, 4, 40)]
    prompts = [np.array([1, *IMAGE, *text]) for text in texts]
    prompts[3] = np.array([1, 9, 8])  # of text alone
    pixels = rng.integers(0, 256, (5, 1, 16, 16, 3)).astype(np.uint8)
    return Asked(prompts, lambda rows: pixels[rows])


def by_hand(params, log_weights, prompt, pixels, *, moves):
    """The mixture's most likely tokens, each by a whole forward pass of every expert."""
    pictures = jnp.asarray(TABLE)[pixels, np.arange(3)[None, None, None]]
    tokens, weights, answer = list(prompt), np.array(log_weights, np.float64), []
    for _ in range(NEW):
        # What stands behind is not seen, so one length and one program serve.
        padded = np.pad(tokens, (0, 64 - len(tokens)))
        rows = [_apply(own, padded, pictures)[len(tokens) - 1] for own in params]
        rows = [row.at[CONFIG.image_token].set(-jnp.inf) for row in rows]
        log_probs = np.array([jax.nn.log_softmax(row) for row in rows], np.float64)
        token = int(np.argmax(np.logaddexp.reduce(weights[:, None] + log_probs, axis=0)))
        if token == STOP:
            break
        answer.append(token)
        tokens.append(token)
        if moves:
            weights = weights + log_probs[:, token]
            weights -= np.logaddexp.reduce(weights)
    return answer


_apply = jax.jit(NETWORK.apply)


def answers(params, asked, **options):
    options = {"stop_tokens": (STOP,), "max_new": NEW, "batch_size": 2} | options
    return greedy_answers(DECODER, params, asked, table=TABLE, **options)


def test_one_member_answers_as_its_network_does(experts, asked):
    found = answers(experts[:1], asked)
    for prompt, pixels, ids, stopped in zip(
        asked.prompts, asked.pixels(np.arange(5)), found.ids, found.stopped, strict=True
    ):
        expected = by_hand(experts[:1], [0.0], prompt, pixels, moves=False)
        assert ids.tolist() == expected
        assert stopped == (len(expected) < NEW)
    assert len({tuple(ids) for ids in found.ids}) > 2
    assert found.expert.tolist() == [0] * 5


@pytest.mark.slow
def test_an_answer_does_not_depend_on_its_batch(experts, asked):
    sizes = []

    def told(rows):
        sizes.append(len(rows))
        return asked.pixels(rows)

    few, many = (
        answers(experts[:1], asked._replace(pixels=told), batch_size=size) for size in (1, 5)
    )
    assert sizes == [1] * 5 + [5]  # never more pictures in memory than a batch has
    for a, b in zip(few.ids, many.ids, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_expert_of_the_largest_weight_answers(experts, asked):
    log_weights = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9]]))
    found = answers(experts, asked, log_weights=log_weights)
    alone = [answers([params], asked) for params in experts]
    assert found.expert.tolist() == [0, 1, 1, 0, 1]
    for row, k in enumerate(found.expert):
        np.testing.assert_array_equal(found.ids[row], alone[k].ids[row])
    assert any(a.tolist() != b.tolist() for a, b in zip(alone[0].ids, alone[1].ids, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("route", ["soft", "bayes"])
def test_experts_together_take_the_most_likely_token_of_their_mixture(route, experts, asked):
    weights = np.array([[0.5, 0.5], [0.6, 0.4], [0.3, 0.7], [0.5, 0.5], [0.45, 0.55]])
    found = answers(experts, asked, log_weights=np.log(weights), route=route)
    for row, ids in enumerate(found.ids):
        moves = route == "bayes"
        own = by_hand(
            experts,
            np.log(weights[row]),
            asked.prompts[row],
            asked.pixels(np.array([row]))[0],
            moves=moves,
        )
        assert ids.tolist() == own
    assert found.expert.tolist() == [-1] * 5


def test_what_cannot_be_answered_is_refused(experts, asked):
    with pytest.raises(ValueError, match=r"`log_weights` must have the shape \[5, 2\]; got"):
        answers(experts, asked)
    with pytest.raises(ValueError, match="`route` must be one of top-1, soft, bayes; got"):
        answers(experts, asked, log_weights=np.zeros((5, 2)), route="top-2")
