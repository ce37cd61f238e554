"""Four networks of an outsider, each trained by `--set task=own_networks:NAME`.

docs/guides/own_network.md shows them; a test trains, sweeps, mixes, judges and draws from each.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dfm_jax.models import (
    Network,
    network_from_equinox,
    network_from_nnx,
    vision_language,
    vision_language_decoder,
)
from dfm_jax.sampling import sample_autoregressive
from dfm_jax.training.batches import PictureBatch
from dfm_jax.training.evaluation import load_member
from dfm_jax.training.examples import array_examples
from dfm_jax.training.tasks import answer_task, next_token_task


# begin plain
def plain(config):
    """A recurrent network as two functions of a dictionary."""
    v, width = config.model.num_tokens, config.model.width

    def init(key):
        keys = jax.random.split(key, 3)
        shapes = {"read": (v + 1, width), "keep": (width, width), "say": (width, v)}
        return {
            n: jax.random.normal(k, shapes[n]) * width**-0.5
            for n, k in zip(shapes, keys, strict=True)
        }

    def apply(params, tokens, t=None, *, key=None):
        def step(hidden, token):
            hidden = jnp.tanh(params["read"][token] + hidden @ params["keep"])
            return hidden, hidden @ params["say"]

        return jax.lax.scan(step, jnp.zeros(width), tokens)[1]

    return next_token_task(Network(init, apply), num_tokens=v, start=v)


# end plain
# begin nnx
class PrefixMean(nnx.Module):
    """The mean of what was read, through a hidden layer."""

    def __init__(self, v, width, rngs):
        self.embed = nnx.Embed(v + 1, width, rngs=rngs)
        self.inner = nnx.Linear(2 * width, 2 * width, rngs=rngs)
        self.outer = nnx.Linear(2 * width, v, rngs=rngs)

    def __call__(self, tokens):
        read = self.embed(tokens)
        mean = jnp.cumsum(read, axis=0) / (1 + jnp.arange(len(tokens)))[:, None]
        return self.outer(nnx.silu(self.inner(jnp.concatenate([read, mean], axis=1))))


def of_nnx(config):
    """A module of flax nnx."""
    v, width = config.model.num_tokens, config.model.width
    network = network_from_nnx(lambda rngs: PrefixMean(v, width, rngs))
    return next_token_task(network, num_tokens=v, start=v)


# end nnx
# begin equinox
class Gru(eqx.Module):
    """A gated recurrent unit."""

    embed: eqx.nn.Embedding
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, v, width, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(v + 1, width, key=keys[0])
        self.cell = eqx.nn.GRUCell(width, width, key=keys[1])
        self.head = eqx.nn.Linear(width, v, key=keys[2])

    def __call__(self, tokens, *, key=None):
        def step(hidden, token):
            hidden = self.cell(self.embed(token), hidden)
            return hidden, self.head(hidden)

        return jax.lax.scan(step, jnp.zeros(self.cell.hidden_size), tokens)[1]


def of_equinox(config):
    """A module of equinox."""
    v, width = config.model.num_tokens, config.model.width
    network = network_from_equinox(lambda key: Gru(v, width, key))
    return next_token_task(network, num_tokens=v, start=v)


# end equinox
# begin pictures
NUM_FEATURES = 12  # F, of a patch


def of_pictures(config):
    """The answers of `answers.npz`: a projector and the transformer of `config.model`."""

    def read_examples(config, source):
        rows = PictureBatch(**np.load(source / "answers.npz"))
        held = np.arange(len(rows.tokens)) % 5 == 0
        sides = [jax.tree.map(lambda x, side=side: x[side], rows) for side in (~held, held)]
        count = int(sides[0].answers.sum())  # the mass of an expert
        return array_examples(sides[0], config.batch_size, held_out=sides[1], num_tokens=count)

    network = vision_language(config.model, NUM_FEATURES)
    return answer_task(network)._replace(read_examples=read_examples)


def drawn_answers(member, key, features, questions, **options):
    """Answers of a trained member: pictures [B, P, F] and questions [B, N] to tokens."""
    trained = load_member(member)
    decoder = vision_language_decoder(trained.config.model, *features.shape[1:])
    lengths = np.full(len(questions), questions.shape[1])
    return sample_autoregressive(
        key, trained.state.params, decoder, questions, lengths, prefixes=features, **options
    )


# end pictures
