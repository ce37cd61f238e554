"""Several networks as one: K decoders under the Bayes gate, K denoisers under a router.   [D5–D7]

The result is again a `Decoder` or a `Denoiser`, so every sampler of one expert can use it.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.boundary import log_softmax, log_softmax_at
from dfm_jax.checks import check_interval, check_log_distribution, check_tokens, require
from dfm_jax.interfaces import BatchedDecoder, Decoder, Denoiser, Params
from dfm_jax.mixture.gates import GateState, bayes_gate_update, gate_init, top_experts_gate
from dfm_jax.mixture.posterior import mix_logits
from dfm_jax.sampling.denoisers import log_probs, whole
from dfm_jax.types import Array, ArrayLike, as_ids


class MixtureParams(NamedTuple):
    """log w_k, or log r_k(c) with a context, and the parameters of the experts.

    Experts that share a decoder are stacked, one stack for each decoder, in the order of its first
    expert. `mixture_params` makes this value.
    """

    log_prior: Array  # [K]
    stacks: tuple[Params, ...]


class Context(NamedTuple):
    """What a conditional mixture reads before all tokens."""

    log_prior: ArrayLike  # [K] log r_0(k | c)
    prefix: Any  # what each expert reads, such as a picture


class MixtureCache(NamedTuple):
    """The caches of the experts, the state of the gate, and the rows for its next update."""

    stacks: tuple[Any, ...]
    gate: GateState  # log r_k(x^{≤t})
    log_probs: Array  # [K, S], of the token behind those read; 0 before the first, −∞ at the mask
    count: Array


def mixture_params(
    decoders: Sequence[Decoder], log_prior: ArrayLike, params: Sequence[Params]
) -> MixtureParams:
    """The parameters of `mixture_decoder(tuple(decoders))`, from those of each expert.

    Raises:
        ValueError: if the numbers of decoders, of entries of the prior and of parameters differ; if
            the prior is not a distribution.
    """
    log_prior = jnp.asarray(log_prior)
    shape = (len(decoders),)
    rule = f"`params` and `log_prior` must have {len(decoders)} entries, one for each expert"
    lengths = (len(params), log_prior.shape[0] if log_prior.ndim else None)
    holds = log_prior.shape == shape and len(params) == len(decoders)
    require(holds, rule, lengths, name="(len(params), len(log_prior))")
    check_log_distribution("log_prior", log_prior)
    stacks = tuple(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[k] for k in members))
        for members in _members(decoders)
    )
    return MixtureParams(log_prior, stacks)


@cache  # the same decoder for the same experts: what was compiled for it is found again
def mixture_decoder(decoders: tuple[Decoder, ...]) -> Decoder:
    """The decoder of a mixture of K experts, from the decoder of each; it takes `mixture_params`.

        q(v | x^{≤t}) = Σ_k r_k(x^{≤t}) q_k(v | x^{≤t})   [D6]
        r_k(x^{≤t+1}) ∝ r_k(x^{≤t}) q_k(x^{t+1} | x^{≤t})   [D7]

    Its logits are log q, in nats, in float32 or wider. The first token is given, so the gate does
    not use it; nor does it use the mask, which no expert draws. If no expert with a weight could
    have made the prefix, every logit is −∞, which is not a distribution. The experts may be
    different networks over the same ids.

    Raises:
        ValueError: if there is no expert, or the experts differ in S.
    """
    return _mixture(decoders, "bayes", conditional=False)


@cache
def conditional_mixture_decoder(
    decoders: tuple[Decoder, ...], *, gate: Literal["bayes", "static"] = "bayes"
) -> Decoder:
    """The mixture of experts of p(x | c). Its prefix is a `Context`, with r_0(k | c) for each row.

        r_k(c, x^{≤t+1}) ∝ r_k(c, x^{≤t}) q_k(x^{t+1} | c, x^{≤t}),  r_k(c) = P̂(k | c)   [D7]

    The first call of `extend` reads a prompt. The prompt belongs to c and does not update the gate.
    With the gate "static" the weights stay at r_0. If r_0 is one-hot, both gates leave only the
    expert f(c) [D8]. The decoder takes `mixture_params`, whose prior it does not read.

    Raises:
        ValueError: as `mixture_decoder`; if an expert cannot read a prefix; if there is no such
            gate.
    """
    require(gate in ("bayes", "static"), "`gate` must be bayes or static", gate)
    reads = [decoder.read_prefix is not None for decoder in decoders]
    rule = "Every one of `decoders` must have a function `read_prefix`"
    require(all(reads), rule, reads, name="has_read_prefix")
    return _mixture(decoders, gate, conditional=True)


def prompt_log_posterior(
    params: MixtureParams, decoder: Decoder, prompts: ArrayLike, lengths: ArrayLike
) -> Array:
    """log r_k(prompt) of every prompt [B, P], which `sample_one_expert` needs: [B, K].

    Every expert reads every prompt once. `decoder` comes from `mixture_decoder`, and `params` are
    its parameters. A prompt of one token does not change the weights and is not read. The result is
    NaN if no expert could have made the prompt; the mixture then has no distribution either.  [D7]

    Raises:
        ValueError: if a length lies outside [1, P], or an id outside [0, S); if the decoder is a
            conditional mixture, whose r_0(k | c) comes with the context.
    """
    prompts = jnp.asarray(as_ids(prompts, "prompts"))
    lengths = jnp.asarray(as_ids(lengths, "lengths"))
    width = prompts.shape[1]
    plain = decoder.read_prefix is None
    rule = "`decoder` must be one of `mixture_decoder`, which reads no prefix"
    require(plain, rule, decoder.read_prefix, name="decoder.read_prefix")
    check_interval("lengths", lengths, 1, width)
    prompts = jnp.where(jnp.arange(width)[None] < lengths[:, None], prompts, 0)
    check_tokens("prompts", prompts, decoder.num_states)
    if width == 1:
        log_prior = jax.nn.log_softmax(params.log_prior.astype(float))
        return jnp.broadcast_to(log_prior[None], (prompts.shape[0], log_prior.shape[0]))

    def read(tokens: Array, length: Array) -> Array:
        gate = decoder.extend(params, decoder.init_cache(width), tokens, length)[1].gate
        return jnp.where(gate.valid, gate.log_weights, jnp.nan)

    return jax.vmap(read)(prompts, lengths)


def _mixture(
    decoders: tuple[Decoder, ...], gate: Literal["bayes", "static"], *, conditional: bool
) -> Decoder:
    rule = "`decoders` must hold an expert"
    require(len(decoders) > 0, rule, len(decoders), name="len(decoders)")
    sizes = [decoder.num_states for decoder in decoders]
    require(len(set(sizes)) == 1, "All experts must have the same `num_states`", sizes)
    num_states = sizes[0]
    groups = _members(decoders)
    order = np.argsort([k for members in groups for k in members])
    kinds = [decoders[members[0]] for members in groups]

    def init_cache(length: int) -> MixtureCache:
        def stacked(decoder: Decoder, size: int) -> Any:
            one = decoder.init_cache(length)
            return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), one)

        stacks = tuple(stacked(d, len(m)) for d, m in zip(kinds, groups, strict=True))
        nothing = jnp.full(
            len(decoders), -np.log(len(decoders))
        )  # until the first token: the prior is no part of it
        return MixtureCache(
            stacks, gate_init(nothing), jnp.zeros((len(decoders), num_states)), jnp.array(0)
        )

    def read_prefix(params: MixtureParams, cache: MixtureCache, prefix: Any) -> MixtureCache:
        log_prior, of_experts = prefix
        read = [
            jax.vmap(decoder.read_prefix, in_axes=(0, 0, None))(p, c, of_experts)
            for decoder, p, c in zip(kinds, params.stacks, cache.stacks, strict=True)
            if decoder.read_prefix is not None
        ]
        return cache._replace(stacks=tuple(read), gate=gate_init(log_prior.astype(float)))

    def extend(
        params: MixtureParams, cache: MixtureCache, tokens: Array, num_new: Any = None
    ) -> tuple[Array, MixtureCache]:
        tokens = jnp.asarray(as_ids(tokens, "tokens"))
        num_new = tokens.shape[0] if num_new is None else num_new
        read = [
            jax.vmap(decoder.extend, in_axes=(0, 0, None, None))(p, c, tokens, num_new)
            for decoder, p, c in zip(kinds, params.stacks, cache.stacks, strict=True)
        ]
        logits = jnp.concatenate([logits for logits, _ in read])[order].astype(float)  # [K, M, V]
        probs = log_softmax(logits).swapaxes(0, 1)  # [M, K, V]
        num_tokens = probs.shape[-1]
        rest = ((0, 0), (0, 0), (0, num_states - num_tokens))
        padded = jnp.pad(probs, rest, constant_values=-jnp.inf)
        before = jnp.concatenate([cache.log_probs[None], padded[:-1]])
        judged = jnp.take_along_axis(before, tokens[:, None, None], axis=2)[..., 0]  # [M, K]
        start, counts = cache.gate, tokens < num_tokens
        if conditional:
            counts = counts & (cache.count > 0) & (gate == "bayes")
        else:
            prior = gate_init(params.log_prior.astype(float))
            start = jax.tree.map(lambda a, b: jnp.where(cache.count == 0, a, b), prior, start)

        def update(state: GateState, row: Array) -> tuple[GateState, GateState]:
            state = bayes_gate_update(state, row)
            return state, state

        _, rows = jax.lax.scan(update, start, jnp.where(counts[:, None], judged, 0.0))
        mixed = mix_logits(rows.log_weights.T, logits)

        def last(rows: Array, old: Array) -> Array:
            return jnp.where(num_new > 0, rows[jnp.maximum(num_new - 1, 0)], old)

        moved = MixtureCache(
            tuple(cache for _, cache in read),
            jax.tree.map(last, rows, start),
            last(padded, cache.log_probs),
            cache.count + num_new,
        )
        return jnp.where(rows.valid[:, None], mixed, -jnp.inf), moved

    batched = _batched_mixture(kinds, order, gate, conditional=conditional)
    return Decoder(init_cache, extend, num_states, read_prefix if conditional else None, batched)


class _Memory(NamedTuple):
    """The memories of the experts, the gate of each row, and the rows for its next update."""

    stacks: tuple[Any, ...]
    gate: GateState  # [B, K] and [B]
    logits: Array  # [K, B, V]


def _batched_mixture(
    kinds: Sequence[Decoder],
    order: np.ndarray,
    gate: Literal["bayes", "static"],
    *,
    conditional: bool,
) -> BatchedDecoder | None:
    """`_mixture` for B rows at once, if every expert has that form.   [D6, D7]"""
    parts = [decoder.batched for decoder in kinds if decoder.batched is not None]
    if len(parts) < len(kinds):
        return None

    def weights(params: MixtureParams) -> tuple[Any, ...]:
        pairs = zip(parts, params.stacks, strict=True)
        return tuple(jax.vmap(part.weights)(stack) for part, stack in pairs)

    def in_order(stacks: Sequence[Array]) -> Array:
        """The rows of all experts as they were given."""
        return jnp.concatenate(stacks)[order].astype(float)

    def log_probs_at(logits: Array, tokens: Array) -> Array:
        """Of [K, B, N, V] and tokens [B, N] what each expert gave to them, [K, B, N]."""
        (rows,) = jax.vmap(jax.vmap(log_softmax_at), (0, None))(logits, tokens)
        return rows

    def mixed(state: GateState, logits: Array) -> Array:
        rows = mix_logits(state.log_weights.T, logits)
        return jnp.where(state.valid[:, None], rows, -jnp.inf)

    def read(
        params: MixtureParams,
        prompts: Array,
        lengths: Array,
        prefixes: Any,
        room: int,
        *,
        every: bool = False,
    ) -> tuple[Array, _Memory]:
        assert not every  # of what mixtures are made of
        num_rows, width = prompts.shape
        judges = not conditional and width > 1  # the prompt belongs to the condition
        seen = prefixes[1] if conditional else None

        def of_stack(part: BatchedDecoder, stack: Params) -> tuple[Array, Any]:
            def one(params: Params) -> tuple[Array, Any]:
                return part.read(params, prompts, lengths, seen, room, every=judges)

            return jax.vmap(one)(stack)

        found = [of_stack(*pair) for pair in zip(parts, params.stacks, strict=True)]
        logits = in_order([logits for logits, _ in found])
        prior = prefixes[0] if conditional else params.log_prior[None]
        prior = jnp.broadcast_to(prior.astype(float), (num_rows, logits.shape[0]))
        state = jax.vmap(gate_init)(prior)
        if judges:
            told = (jnp.arange(1, width)[None] < lengths[:, None]) & (
                prompts[:, 1:] < logits.shape[-1]
            )
            rows = log_probs_at(logits[:, :, :-1], prompts[:, 1:])  # [K, B, P − 1]
            rows = jnp.where(told[None], rows, 0.0).transpose(2, 1, 0)

            def update(state: GateState, row: Array) -> tuple[GateState, None]:
                return jax.vmap(bayes_gate_update)(state, row), None

            state, _ = jax.lax.scan(update, state, rows)
            at = lengths[None, :, None, None] - 1
            logits = jnp.take_along_axis(logits, at, axis=2)[:, :, 0]
        return mixed(state, logits), _Memory(tuple(m for _, m in found), state, logits)

    def step(
        weights: tuple[Any, ...],
        past: tuple[_Memory, ...],
        memory: _Memory,
        tokens: Array,
        index: Array,
    ) -> tuple[Array, _Memory]:
        state = memory.gate
        if gate == "bayes":
            told = tokens < memory.logits.shape[-1]
            rows = log_probs_at(memory.logits[:, :, None], tokens[:, None])[:, :, 0]
            state = jax.vmap(bayes_gate_update)(state, jnp.where(told[None], rows, 0.0).T)
        found = [
            jax.vmap(part.step, (0, 0, 0, None, None))(
                weights[i], tuple(block.stacks[i] for block in past), own, tokens, index
            )
            for i, (part, own) in enumerate(zip(parts, memory.stacks, strict=True))
        ]
        logits = in_order([logits for logits, _ in found])
        return mixed(state, logits), _Memory(tuple(m for _, m in found), state, logits)

    def grow(memory: _Memory, before: int, room: int) -> _Memory:
        pairs = zip(parts, memory.stacks, strict=True)
        stacks = [jax.vmap(lambda m, p=p: p.grow(m, before, room))(own) for p, own in pairs]
        return memory._replace(stacks=tuple(stacks))

    return BatchedDecoder(weights, read, step, grow, parts[0].rooms)


def _members(decoders: Sequence[Decoder]) -> list[list[int]]:
    """The experts of each decoder, in the order of its first expert."""
    groups: dict[Decoder, list[int]] = {}
    for k, decoder in enumerate(decoders):
        groups.setdefault(decoder, []).append(k)
    return list(groups.values())


# ── denoisers ───────────────────────────────────────────────────────────────────────────────────


class MixtureDenoiserParams(NamedTuple):
    """The parameters of a `mixture_denoiser`."""

    experts: Any  # [K, …] the parameters of one expert, stacked
    router: Any


@cache
def mixture_denoiser(
    denoiser: Denoiser, router: Callable[..., Array], *, top_experts: int | None = None
) -> Denoiser:
    """K experts and a router as one denoiser; it takes `MixtureDenoiserParams`.

        p̂_{1|t}^i(v | z) = Σ_k ρ̂_k(z, t) p̂_{1|t}^{k,i}(v | z)   [D5]

    `router(params, x_t, t)` gives the logits of ρ̂, or log r_k(z, t): [K]. Steps of the mixed
    posterior are steps of the mixed velocity (D4), so every sampler of one denoiser samples from
    the mixture. With `top_experts`, only this many of the router's largest weights are kept at
    every step (B6).
    """
    each = whole(denoiser)

    def mixed(params: MixtureDenoiserParams, x_t: Array, t: Array) -> Array:
        log_weights = log_probs(router(params.router, x_t, t))
        if top_experts is not None:
            log_weights = jnp.log(top_experts_gate(jnp.exp(log_weights), top_experts))
        logits = jax.vmap(each, (0, None, None))(params.experts, x_t, t)
        return mix_logits(log_weights, logits)

    return mixed
