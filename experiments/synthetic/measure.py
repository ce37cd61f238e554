"""One cell of `synthetic`: one variant of all seeds, its gates, exact match beside the dense model.

An answer is the greedy one, and it is right if every token and its END are. Greedy decoding gives
the expected answer if, and only if, each expected token is the most probable one after the expected
tokens before it. So one pass over the expected answers tells exact match, and nothing is decoded.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.comparison import document_comparison, document_interval
from dfm_jax.mixture import mix_logits
from dfm_jax.models import Params, TransformerConfig
from dfm_jax.types import Array
from experiments.synthetic.config import EXPERTS, NUM_EXPERTS, TWICE, Config
from experiments.synthetic.data import HELD_OUT, SPLITS, Data, Examples
from experiments.synthetic.network import Prefix, network_of
from experiments.synthetic.pictures import TASKS
from experiments.synthetic.variants import Member, Trainer

DENSE = "dense"
WRONG, AVERAGE, ORACLE = "wrong picture", "average", "oracle"
_BATCH = 500  # items that are read together


class Expected(NamedTuple):
    """The expected answers, and what experts predict of them."""

    tokens: np.ndarray  # [Q, A]
    counts: np.ndarray  # [Q, A] False after END
    log_probs: np.ndarray  # [Q, K, A, V] of each position after the expected tokens before it


class Found(NamedTuple):
    """What a mixture answers."""

    right: np.ndarray  # [Q] whether the greedy answer is the expected one
    nats: np.ndarray  # [Q] −log p of the expected answer


def measure_dense(trainer: Trainer) -> dict[str, Any]:
    """The dense model of every seed on all splits but training, and with wrong pictures."""
    member, data = trainer.dense(), trainer.data
    seeds = []
    for number in range(trainer.config.num_seeds):
        tests = {}
        for split in SPLITS[1:]:
            rows = data.splits[split]
            shown = {"": rows.row}
            if split == HELD_OUT:
                shown[WRONG] = np.roll(rows.row, len(rows.items) // 2)
            tests[split] = {
                gate: _judged(rows, _alone(data, member, number, rows, pictures))
                for gate, pictures in shown.items()
            }
        seeds.append(tests)
    return {"variant": DENSE, **_costs([member]), "seeds": seeds, "guess": guess(data)}


def measure(trainer: Trainer, name: str, dense: Mapping[str, Any]) -> dict[str, Any]:
    """Train a variant, and compare it, under each of its gates, with the dense model by seed."""
    data, config = trainer.data, trainer.config
    members = trainer.experts(name) if name in EXPERTS else (trainer.twice(),)
    parts = trainer.parts(name) if name in EXPERTS else None
    seeds = []
    for number in range(config.num_seeds):
        tests = {}
        for split in SPLITS[1:]:
            rows = data.splits[split]
            if parts is None:
                found = {"": _alone(data, members[0], number, rows, rows.row)}
            else:
                params = [member.of_seed(number) for member in members]
                expected = expected_of(
                    data, rows, members[0].config.model, trainer.before, params, rows.row
                )
                gates = {parts.gate: parts.log_weights[split]}
                gates.setdefault(AVERAGE, np.full_like(gates[parts.gate], -np.log(NUM_EXPERTS)))
                gates[ORACLE] = oracle(expected)
                found = {gate: answered(expected, weights) for gate, weights in gates.items()}
            base = dense["seeds"][number][split][""]
            tests[split] = {
                gate: _judged(rows, one) | _minus(rows, one, base, config)
                for gate, one in found.items()
            }
        seeds.append(tests)
    about = {}
    if parts is not None:
        about = {"gate": parts.gate, "sizes": parts.sizes.tolist(), "facts": dict(parts.facts)}
    else:
        assert name == TWICE
    return {"variant": name, **_costs(members), "seeds": seeds, **about}


def guess(data: Data) -> dict[str, float | None]:
    """Exact match on held-out items of the most frequent training answer of each task."""
    train, rows = data.splits["train"], data.splits[HELD_OUT]
    found = {}
    for task in TASKS:
        known = Counter(item.answer for item in train.items if item.task == task)
        most = [answer for answer, _ in known.most_common(1)]
        asked = [item.answer in most for item in rows.items if item.task == task]
        found[task] = _mean(np.array(asked))
    return found


def expected_of(
    data: Data,
    rows: Examples,
    sizes: TransformerConfig,
    before: Prefix,
    experts: Sequence[Params],
    pictures: np.ndarray,
) -> Expected:
    """The expected answers with the experts' predictions, for items with these pictures.

    Args:
        data: The features.
        rows: The items.
        sizes: The sizes of each expert.
        before: The prefix of each expert.
        experts: The parameters of the experts.
        pictures: The rows of the features that are shown, [Q].
    """
    longest = int(rows.counts.sum(axis=1).max())
    places = np.minimum(rows.lengths[:, None] + np.arange(longest), rows.tokens.shape[1] - 1)
    inside = np.arange(longest) < rows.counts.sum(axis=1, keepdims=True)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *experts)
    found = []
    for some in _batches(len(rows.items)):
        features = data.features[pictures[some]]
        found.append(
            _log_probs(sizes, before, stack, features, rows.tokens[some], places[some] - 1)
        )
    log_probs = np.concatenate([np.asarray(x) for x in found], axis=1)[:, : len(rows.items)]
    tokens = np.take_along_axis(rows.tokens, places, axis=1)
    return Expected(tokens, inside, log_probs.swapaxes(0, 1))


def answered(expected: Expected, log_weights: np.ndarray) -> Found:
    """The mixture of experts with static weights [Q, K], token by token.   [D6]"""
    mixed = np.asarray(_mixed(jnp.asarray(log_weights, jnp.float32), expected.log_probs))
    right = (mixed.argmax(axis=2) == expected.tokens) | ~expected.counts
    own = np.take_along_axis(mixed, expected.tokens[..., None], axis=2)[..., 0]
    return Found(right.all(axis=1), -np.where(expected.counts, own, 0.0).sum(axis=1))


def oracle(expected: Expected) -> np.ndarray:
    """log weights of the expert that finds the expected answer the likeliest: hindsight."""
    own = np.take_along_axis(expected.log_probs, expected.tokens[:, None, :, None], axis=3)[..., 0]
    nats = np.where(expected.counts[:, None], own, 0.0).sum(axis=2)
    best = nats.argmax(axis=1)
    return np.where(best[:, None] == np.arange(nats.shape[1]), 0.0, -np.inf)


_mixed = jax.jit(jax.vmap(mix_logits))


@partial(jax.jit, static_argnums=(0, 1))
def _log_probs(
    sizes: TransformerConfig,
    before: Prefix,
    stack: Params,
    features: Array,
    tokens: Array,
    places: Array,
) -> Array:
    network = network_of(sizes, before)

    def one(params: Params, picture: Array, x: Array, rows: Array) -> Array:
        return jax.nn.log_softmax(network.apply(params, picture, x[:-1])[rows])

    of_items = jax.vmap(one, in_axes=(None, 0, 0, 0))
    return jax.vmap(of_items, in_axes=(0, None, None, None))(stack, features, tokens, places)


def _alone(data: Data, member: Member, number: int, rows: Examples, pictures: np.ndarray) -> Found:
    params = [member.of_seed(number)]
    expected = expected_of(data, rows, member.config.model, member.before, params, pictures)
    return answered(expected, np.zeros((len(rows.items), 1)))


def _batches(count: int) -> Iterator[np.ndarray]:
    """Numbers of items in batches of one size, so that there is one program; the last is filled."""
    size = min(count, _BATCH)
    for first in range(0, count, size):
        yield np.minimum(np.arange(first, first + size), count - 1)


def _costs(members: Sequence[Member]) -> dict[str, Any]:
    first = members[0]
    return {
        "num_experts": len(members),
        "steps": first.config.num_steps,
        "batch_size": first.config.batch_size,
        "width": first.config.model.width,
        "parameters": first.num_parameters,
        "tokens": sum(member.num_tokens for member in members),
        "flops": sum(member.flops for member in members),
    }


def _judged(rows: Examples, found: Found) -> dict[str, Any]:
    return {
        "accuracy": float(found.right.mean()),
        "tasks": {task: _mean(found.right[rows.task == task]) for task in TASKS},
        "nats": float(found.nats.mean()),
        "right": "".join("01"[x] for x in found.right.astype(int)),
    }


def _minus(
    rows: Examples, found: Found, dense: Mapping[str, Any], config: Config
) -> dict[str, Any]:
    """Exact match − the dense model's, of all and by task, with intervals over items, a verdict."""
    base = np.array(list(dense["right"]), int)
    difference, draws = found.right.astype(int) - base, {"num_draws": config.num_draws}
    # The statistics speak of losses: what they judge is errors more.
    errors = document_comparison(
        -difference, np.ones(base.size), margin=config.margin, level=0.95, **draws
    )
    tasks = {}
    for task in TASKS:
        own = difference[rows.task == task]
        known = own.size > 1  # one item has no interval
        tasks[task] = list(document_interval(own, np.ones(own.size), **draws)) if known else None
    return {
        "minus": [-errors.mean, -errors.high, -errors.low],
        "verdict": errors.verdict,
        "minus_tasks": tasks,
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
