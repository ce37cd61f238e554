"""The comparison of gates on real sequences; all gates score the same bytes by the same experts.

A sequence is a span of a flat text: a window, or a whole document. Sequences are laid end to end in
lanes, so that gates run over all lanes at once; a gate starts again with a sequence.   [D7, B10]
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import check_log_distribution
from dfm_jax.mixture import (
    GateState,
    bayes_gate_update,
    fixed_share_update,
    gate_init,
    mix_log_probs,
)
from dfm_jax.types import Array

TOPS = ("top-1", "top-2", "full")  # experts kept at each byte
INFORMED = " × Bayes"  # ends the name of a Bayes gate whose prior is a distribution of the context
NUM_BINS = 10  # of the margin, which lies in [0, 1]
_LANES = 8  # few, since a long document fills its lane alone
_STEPS = 2**12  # of every lane, in one call of the compiled program: one shape for all such texts
_WIDE = 512  # lanes of a text of many short sequences; then a call has fewer steps, as many bytes


class GateVariants(NamedTuple):
    """What the gates remember at one byte of one lane; each [K] or [rows, K] in log space."""

    seen: Array  # bytes since the sequence began
    last: GateState  # of the last byte alone
    kept: GateState  # [M, K] the Bayes gate until `prefixes` bytes were seen, kept from then on
    shared: GateState  # [A, K] fixed-share, by `alphas`
    informed: GateState  # [C, K] the Bayes gate from a distribution of the context on
    bayes: GateState


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Spans of a flat text, in order and without a gap, and the windows in which to sum."""

    starts: np.ndarray  # [Q] where each sequence begins
    windows: np.ndarray  # [W] where each window begins; every sequence begins with one
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class ContextProbs:
    """Log-distributions, before the first byte, of gates that read the context of a sequence.

    A gate that does not change and the prior of a Bayes gate are tuned separately.
    """

    names: tuple[str, ...]  # [C]
    fixed: np.ndarray  # [Q, C, K]
    prior: np.ndarray  # [Q, C, K] log P̂(k | c)

    @staticmethod
    def none(num_sequences: int, num_experts: int) -> "ContextProbs":
        """Of sequences without contexts: no gate, C = 0."""
        empty = np.zeros((num_sequences, 0, num_experts))
        return ContextProbs(names=(), fixed=empty, prior=empty)


@dataclass(frozen=True, kw_only=True)
class TokenProbs:
    """Distributions before each token of gates that do not use the experts' likelihoods."""

    names: tuple[str, ...]  # [E]
    log_probs: np.ndarray  # [N, E, K] log ρ_k(x^{<i})

    @staticmethod
    def none(num_bytes: int, num_experts: int) -> "TokenProbs":
        """No such gate, E = 0."""
        return TokenProbs(names=(), log_probs=np.zeros((num_bytes, 0, num_experts)))


class Scores(NamedTuple):
    """Sums of −log p over each window, in nats, and how sure the gates were."""

    soft: Any  # [W, G, C] by gate, in the order of `gate_names`, and by `TOPS`
    hard_after: Any  # [W, M] the Bayes gate, from `prefixes` on its best expert alone
    margin_bytes: Any  # [G, NUM_BINS] bytes by r_(1) − r_(2)
    margin_gap: Any  # [G, NUM_BINS] nats that top-1 costs over the full gate on them


def gate_names(
    prefixes: Sequence[int],
    *,
    num_alphas: int,
    contexts: Sequence[str] = (),
    running: Sequence[str] = (),
) -> tuple[str, ...]:
    """The gates of `Scores.soft`, in order."""
    kept = [f"prefix {length}" for length in prefixes]
    shared = ["fixed share"] * num_alphas
    informed = [f"{name}{INFORMED}" for name in contexts]
    return ("static", "last token", *kept, *shared, *contexts, *informed, *running, "Bayes")


def lanes(sequences: Sequences) -> np.ndarray:
    """Places of the flat text, [steps, lanes], a sequence in one lane; −1 where a lane is empty."""
    starts = sequences.starts
    lengths = np.diff(np.r_[starts, sequences.num_bytes])
    num, per_call = _shape(sequences)
    filled, held = [(0, lane) for lane in range(num)], [[] for _ in range(num)]
    for sequence in np.argsort(-lengths, kind="stable"):
        size, lane = heapq.heappop(filled)
        begin, length = int(starts[sequence]), int(lengths[sequence])
        held[lane].append(np.arange(begin, begin + length))
        heapq.heappush(filled, (size + length, lane))
    steps = -(-max(size for size, _ in filled) // per_call) * per_call
    places = np.full((steps, num), -1)
    for lane, spans in enumerate(held):
        if spans:
            places[: sum(map(len, spans)), lane] = np.concatenate(spans)
    return places


def chunks(sequences: Sequences) -> np.ndarray:
    """`lanes`, so many steps at a time: one of two shapes. [chunks, steps, lanes]"""
    num, per_call = _shape(sequences)
    return lanes(sequences).reshape(-1, per_call, num)


def _shape(sequences: Sequences) -> tuple[int, int]:
    """Lanes, and steps of a call: many lanes if the longest sequence fills none of them alone."""
    longest = np.diff(np.r_[sequences.starts, sequences.num_bytes]).max()
    if longest * _WIDE > sequences.num_bytes:
        return _LANES, _STEPS
    return _WIDE, max(1, _LANES * _STEPS // _WIDE)


def score(
    token_log_probs: np.ndarray,
    sequences: Sequences,
    log_prior: np.ndarray,
    *,
    prefixes: Sequence[int],
    alphas: Sequence[float],
    contexts: ContextProbs | None = None,
    running: TokenProbs | None = None,
) -> Scores:
    """Run every gate over every sequence, in float64 on the host's CPU.

    Args:
        token_log_probs: log p_k(byte | the bytes before it) for every byte of the text, [N, K].
        sequences: The sequences, at which gates and sums start again.
        log_prior: log w_k, [K].
        prefixes: The numbers of bytes after which a gate is kept, [M].
        alphas: The values of α of fixed share, [A].
        contexts: The distributions of each sequence, for gates that read its context.
        running: The distributions of each byte, for gates that read the bytes before it.

    Raises:
        ValueError: if a distribution of a context or of a byte is none.
    """
    num_windows = sequences.windows.size
    if contexts is not None:
        check_log_distribution("contexts.fixed", contexts.fixed)
        check_log_distribution("contexts.prior", contexts.prior)
    if running is not None:
        check_log_distribution("running.log_probs", running.log_probs)
    contexts = contexts or ContextProbs.none(sequences.starts.size, log_prior.size)
    running = running or TokenProbs.none(sequences.num_bytes, log_prior.size)
    of_probs = {"contexts": contexts.names, "running": running.names}
    num_gates = len(gate_names(prefixes, num_alphas=len(alphas), **of_probs))
    window = np.zeros(sequences.num_bytes, int)
    window[sequences.windows[1:]] = 1
    window = np.cumsum(window)
    first = np.zeros(sequences.num_bytes, bool)
    first[sequences.starts] = True
    sequence = np.cumsum(first) - 1
    token_probs = np.stack([contexts.fixed, contexts.prior], axis=1)
    sums = Scores(
        soft=np.zeros((num_windows, num_gates, len(TOPS))),
        hard_after=np.zeros((num_windows, len(prefixes))),
        margin_bytes=np.zeros((num_gates, NUM_BINS)),
        margin_gap=np.zeros((num_gates, NUM_BINS)),
    )
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        probs = _Probs(*map(jnp.asarray, (log_prior, np.array(prefixes, int), np.array(alphas))))
        places = chunks(sequences)
        gate_variants = jax.vmap(lambda c: _start(probs, c))(
            jnp.asarray(token_probs[np.zeros(places.shape[-1], int)])
        )
        for here in places:
            of_bytes = running.log_probs[here]
            bytes_here = (token_log_probs[here], first[here], token_probs[sequence[here]], of_bytes)
            gate_variants, found = _chunk(gate_variants, *bytes_here, probs)
            real = here >= 0
            _add(sums, window[here[real]], *(np.asarray(x)[real] for x in found))
    return sums


def _add(
    sums: Scores, window: np.ndarray, soft: np.ndarray, hard_after: np.ndarray, margin: np.ndarray
) -> None:
    """The losses of some bytes, added where they belong."""
    for total, losses in ((sums.soft, soft), (sums.hard_after, hard_after)):
        columns = losses[0].size
        cell = window[:, None] * columns + np.arange(columns)
        weights = losses.reshape(len(window), -1).ravel()
        total += np.bincount(cell.ravel(), weights, minlength=total.size).reshape(total.shape)
    place = np.clip(margin * NUM_BINS, 0, NUM_BINS - 1).astype(int)
    cell = (place + NUM_BINS * np.arange(margin.shape[1])).ravel()
    gap = soft[..., 0] - soft[..., -1]
    for total, values in ((sums.margin_bytes, np.ones(cell.size)), (sums.margin_gap, gap.ravel())):
        total += np.bincount(cell, values, minlength=total.size).reshape(total.shape)


class _Probs(NamedTuple):
    log_prior: Array  # [K]
    prefixes: Array  # [M]
    alphas: Array  # [A]


def _start(probs: _Probs, context: Array) -> GateVariants:
    state = gate_init(probs.log_prior)

    def rows(num: int) -> GateState:
        return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (num, *x.shape)), state)

    return GateVariants(
        seen=jnp.array(0),
        last=state,
        kept=rows(probs.prefixes.size),
        shared=rows(probs.alphas.size),
        informed=GateState(context[1], jnp.ones(context.shape[1], bool)),
        bayes=state,
    )


def _advance(
    gate_variants: GateVariants, log_probs: Array, first: Array, context: Array, probs: _Probs
) -> tuple[GateVariants, GateVariants]:
    """The gates after this byte, and before it; `context` [2, C, K] is of its sequence."""
    start = _start(probs, context)
    before: GateVariants = jax.tree.map(partial(jnp.where, first), start, gate_variants)
    bayes = bayes_gate_update(before.bayes, log_probs)
    running = before.seen < probs.prefixes
    shared = jax.vmap(fixed_share_update, (0, None, None, 0))
    after = GateVariants(
        seen=before.seen + 1,
        last=bayes_gate_update(start.last, log_probs),
        kept=jax.vmap(lambda go, state: jax.tree.map(partial(jnp.where, go), bayes, state))(
            running, before.kept
        ),
        shared=shared(before.shared, log_probs, probs.log_prior, probs.alphas),
        informed=jax.vmap(bayes_gate_update, (0, None))(before.informed, log_probs),
        bayes=bayes,
    )
    return after, before


def losses(log_weights: Array, log_probs: Array) -> tuple[Array, Array]:
    """−log Σ_k ρ_k p_k of one gate at one byte, by `TOPS`; and its margin r_(1) − r_(2).

    The first two are `top_experts_gate(ρ, 1)` and `(ρ, 2)` in log space, without a sort, which
    would take longer than all the rest.
    """
    best = jnp.argmax(log_weights)
    others = jnp.where(jnp.arange(log_weights.size) == best, -jnp.inf, log_weights)
    pair = jnp.stack([best, jnp.argmax(others)])
    kept = jnp.stack([log_weights[best], others[pair[1]]])  # −∞ where K = 1
    two = jax.nn.logsumexp(kept + log_probs[pair]) - jax.nn.logsumexp(kept)
    margin = jnp.exp(kept[0]) - jnp.exp(kept[1])
    return -jnp.stack([log_probs[best], two, mix_log_probs(log_weights, log_probs)]), margin


@jax.jit
def _chunk(
    gate_variants: GateVariants,
    log_probs: Array,
    first: Array,
    context: Array,
    running: Array,
    probs: _Probs,
) -> tuple[GateVariants, tuple[Array, Array, Array]]:
    """Losses [T, L, G, C], those of `hard_after` [T, L, M], and margins [T, L, G]."""
    advance = jax.vmap(_advance, (0, 0, 0, 0, None))
    inputs = (log_probs, first, context)
    gate_variants, before = jax.lax.scan(lambda r, x: advance(r, *x, probs), gate_variants, inputs)

    def at_byte(
        state: GateVariants, log_probs: Array, context: Array, running: Array
    ) -> tuple[Array, Array, Array]:
        last, bayes = state.last.log_weights[None], state.bayes.log_weights[None]
        static = jax.nn.log_softmax(probs.log_prior)[None]
        kept, shared = state.kept.log_weights, state.shared.log_weights
        informed = state.informed.log_weights
        gates = (static, last, kept, shared, context[0], informed, running, bayes)
        by_top, margin = jax.vmap(losses, (0, None))(jnp.concatenate(gates), log_probs)
        of_kept = by_top[2 : 2 + probs.prefixes.size]
        hard_after = jnp.where(state.seen < probs.prefixes, of_kept[:, -1], of_kept[:, 0])
        return by_top, hard_after, margin

    return gate_variants, jax.vmap(jax.vmap(at_byte))(before, log_probs, context, running)
