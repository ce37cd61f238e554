"""Greedy answers of trained members to questions about pictures, routed by picture.   [D7, D8]

top-1   each question goes to the expert of the largest r_0(k | picture)
soft    q(v | x) = Σ_k r_0(k | picture) q_k(v | picture, x)
Bayes   the same, with r_k moved by every token of the answer
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dfm_jax.checks import check_count, require
from dfm_jax.interfaces import Decoder, Params
from dfm_jax.mixture import conditional_mixture_decoder, mixture_params
from dfm_jax.mixture.networks import Context
from dfm_jax.sampling import sample_autoregressive

Route = Literal["top-1", "soft", "bayes"]
_GRAIN = 32  # prompts are padded to a multiple of it, so that few programs are compiled


class Asked(NamedTuple):
    """Questions as tokens, and their pictures, which are read for one batch at a time.

    `pixels(rows [B]) -> [B, I, H, W, 3]`, in 8 bits; a row without a picture has zeros there.
    """

    prompts: Sequence[Int[np.ndarray, " P"]]  # [Q] of them, of any lengths
    pixels: Callable[[Int[np.ndarray, " B"]], UInt8[np.ndarray, "B I H W 3"]]


class Answers(NamedTuple):
    """The ids of each answer, without its stop token."""

    ids: list[Int[np.ndarray, " L"]]
    stopped: Bool[np.ndarray, " Q"]  # by a stop token, and not by the limit
    expert: Int[np.ndarray, " Q"]  # that answered; −1 where several were mixed


def greedy_answers(
    decoder: Decoder,
    params: Sequence[Params],
    asked: Asked,
    *,
    table: Float[np.ndarray, "256 3"],
    log_weights: Float[np.ndarray, "Q K"] | None = None,
    route: Route = "top-1",
    stop_tokens: tuple[int, ...] = (),
    max_new: int = 64,
    batch_size: int = 8,
) -> Answers:
    """The most likely next token, again and again, of one member or of experts.

    Questions are answered in batches of prompts of like lengths; no answer depends on its batch.

    Args:
        decoder: The decoder that all members share, such as `multimodal_decoder(config)`.
        params: The parameters of each member; one stands alone.
        asked: The questions.
        table: `PictureProcessor.table`, which makes numbers of pixels.
        log_weights: log r_0(k | picture) of each question, in nats; not needed for one member.
        route: How experts answer together.
        stop_tokens: The ids that end an answer.
        max_new: The most tokens of an answer.
        batch_size: The number of questions that are answered at once.

    Raises:
        ValueError: if there is no question; if several members have no weights, or weights of
            another shape; if a count is below 1; if the route is not known.
    """
    num_questions, num_experts = len(asked.prompts), len(params)
    check_count("len(asked.prompts)", num_questions)
    check_count("max_new", max_new)
    check_count("batch_size", batch_size)
    routes = Route.__args__  # type: ignore[attr-defined]
    require(route in routes, f"`route` must be one of {', '.join(routes)}", route)
    if num_experts == 1:
        log_weights = np.zeros((num_questions, 1))
    shape = None if log_weights is None else np.shape(log_weights)
    rule = f"`log_weights` must have the shape [{num_questions}, {num_experts}]"
    require(shape == (num_questions, num_experts), rule, shape, name="log_weights.shape")
    assert log_weights is not None
    how: dict[str, Any] = {"stop_tokens": stop_tokens, "max_new": max_new, "temperature": 0.0}

    def drawn(rows: np.ndarray, decoder: Decoder, params: Any, *, mixed: bool) -> Any:
        prompts, lengths = _padded([asked.prompts[row] for row in rows])
        pictures = _normalized(jnp.asarray(asked.pixels(rows)), jnp.asarray(table))
        weights = jnp.asarray(log_weights[rows], jnp.float32)
        prefixes = Context(weights, pictures) if mixed else pictures
        found = sample_autoregressive(
            jax.random.key(0), params, decoder, prompts, lengths, prefixes=prefixes, **how
        )
        return jax.device_get(found), lengths

    ids: list[Any] = [None] * num_questions
    stopped = np.zeros(num_questions, bool)
    expert = np.full(num_questions, -1)
    mixes = num_experts > 1 and route != "top-1"
    if mixes:
        gate = "static" if route == "soft" else "bayes"
        of_all = conditional_mixture_decoder((decoder,) * num_experts, gate=gate)
        uniform = np.full(num_experts, -np.log(num_experts), np.float32)
        stacked = mixture_params([decoder] * num_experts, uniform, params)
        jobs = [(np.arange(num_questions), of_all, stacked)]
    else:
        expert = np.argmax(log_weights, axis=1)
        jobs = [(np.flatnonzero(expert == k), decoder, params[k]) for k in range(num_experts)]
    lengths_of = np.array([len(prompt) for prompt in asked.prompts])
    for rows, own_decoder, own_params in jobs:
        rows = rows[np.argsort(lengths_of[rows], kind="stable")]
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            filled = np.pad(some, (0, batch_size - len(some)), mode="edge")
            found, lengths = drawn(filled, own_decoder, own_params, mixed=mixes)
            for i, row in enumerate(some):
                answer = found.tokens[i, lengths[i] : found.lengths[i]]
                stopped[row] = found.stopped[i]
                ids[row] = answer[:-1] if found.stopped[i] else answer
    return Answers(ids, stopped, expert)


def _padded(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(prompt) for prompt in prompts])
    width = -(-lengths.max() // _GRAIN) * _GRAIN
    padded = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return padded, lengths


@jax.jit
def _normalized(pixels: jax.Array, table: jax.Array) -> jax.Array:
    colors = jnp.arange(3).reshape((1,) * (pixels.ndim - 1) + (3,))
    return table[pixels, colors]
