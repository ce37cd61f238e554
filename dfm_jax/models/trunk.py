"""The transformer: causal or bidirectional, with or without time, layers unrolled or scanned."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfm_jax.checks import check_count, check_tokens, require
from dfm_jax.interfaces import Network, Params, check_time
from dfm_jax.models.config import TransformerConfig
from dfm_jax.models.layers import (
    Block,
    Frame,
    RMSNorm,
    TimeCondition,
    real_dtype,
    rotary_angles,
)
from dfm_jax.types import Array, Key, as_ids

Memories = Any  # None; a `Memory` per layer; scanned, one with a leading axis of layers


class Transformer(nn.Module):
    """Embedding, layers, norm, head: tokens [N] to logits [N, V], for one sequence.

    With `num_outputs` the head is a map of its own to that many columns: a router's experts.
    Without `headed` what would go into the head comes out, [N, width].
    """

    config: TransformerConfig
    deterministic: bool = True
    num_outputs: int | None = None
    headed: bool = True

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        t: Array | None,
        memory: Memories,
        start: Array,
        prefix: Array | None = None,
    ) -> tuple[Array, Memories]:
        """Tokens at positions start, start + 1, …, behind those in `memory` (None: no memory).

        A `prefix` [P, width] of vectors stands before the tokens, and takes the first P of these
        positions; it has no logits.
        """
        config = self.config
        init = nn.initializers.normal(config.width**-0.5)
        dtypes = {"dtype": config.compute_dtype, "param_dtype": real_dtype(config)}
        embedding = nn.Embed(
            config.states, config.width, embedding_init=init, name="embed_tokens", **dtypes
        )
        h, skipped = embedding(tokens), 0
        if prefix is not None:
            h, skipped = jnp.concatenate([prefix.astype(h.dtype), h]), prefix.shape[0]
        count = skipped + tokens.shape[0]
        if config.learned_positions:
            assert config.max_positions is not None  # so the config says
            places = nn.Embed(
                config.max_positions,
                config.width,
                embedding_init=init,
                name="embed_positions",
                **dtypes,
            )
            h = h + places(start + jnp.arange(count))
        frame = self._frame(count, t, memory, start)
        h, memory = self._layers(h, memory, frame)
        h = RMSNorm(config, name="norm")(h, frame.condition)
        if not self.headed:
            return h[skipped:], memory
        return self._logits(h[skipped:], embedding.embedding), memory

    def _frame(self, num_positions: int, t: Array | None, memory: Memories, start: Array) -> Frame:
        config = self.config
        positions = start + jnp.arange(num_positions)
        seen = positions
        if memory is not None:  # stacked or one of many, its third axis from the end is time
            seen = jnp.arange(jax.tree.leaves(memory)[0].shape[-3])
        visible = seen[None] <= positions[:, None] if config.causal else None
        condition = None if t is None else TimeCondition(config, name="time")(t)
        return Frame(positions, *rotary_angles(positions, config), visible, condition)

    def _layers(self, h: Array, memory: Memories, frame: Frame) -> tuple[Array, Memories]:
        config = self.config
        if not config.scan_layers:
            layer = nn.remat(Block) if config.remat else Block
            memories = []
            for i in range(config.num_layers):
                own = None if memory is None else memory[i]
                h, own = layer(config, self.deterministic, name=f"layers_{i}")(h, own, frame)
                memories.append(own)
            return h, None if memory is None else tuple(memories)
        axes: Any = (0, nn.broadcast)  # flax's annotation knows one axis only
        scanned = nn.scan(
            # The loop already keeps the forward and the backward pass apart.
            nn.remat(Block, prevent_cse=False) if config.remat else Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=axes,
            length=config.num_layers,
        )
        return scanned(config, self.deterministic, name="layers")(h, memory, frame)

    def _logits(self, h: Array, embedding: Array) -> Array:
        """In full precision, whatever the layers computed in."""
        config, dtype = self.config, real_dtype(self.config)
        if self.num_outputs is None and config.tied:
            kernel = embedding[: config.num_tokens].T
        else:
            columns = config.num_tokens if self.num_outputs is None else self.num_outputs
            kernel = _Kernel(columns, dtype, name="lm_head")(config.width)
        return jnp.matmul(h, kernel.astype(h.dtype), preferred_element_type=dtype)


class _Kernel(nn.Module):
    """The matrix of a linear map, for a product whose type the caller chooses."""

    columns: int
    dtype: Any

    @nn.compact
    def __call__(self, rows: int) -> Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        return self.param("kernel", init, (rows, self.columns), self.dtype)


def transformer(config: TransformerConfig) -> Network:
    """A transformer over V tokens as a network.

    A time-conditioned one multiplies the output of every RMSNorm by 1 + W c(t), c a small network
    of cosines and sines of t. W starts at 0: at first time has no effect.
    """
    return network_of(config, num_outputs=None)


def router(config: TransformerConfig, num_experts: int, *, last: bool = False) -> Network:
    """The trunk of `config` under a head over K experts: logits [N, K], or [K] with `last`.

    Row i of a causal one is ρ̂(x^{≤i}), the law over experts that mixes their laws of the token
    after it. With `last` only the last position's, which has seen everything: one law per state.
    Its loss is the cross-entropy `objectives.router_loss`, minimal at r_k(x_t, t).   [D11]

    Raises:
        ValueError: if K < 1.
    """
    check_count("num_experts", num_experts)
    network = network_of(config, num_outputs=num_experts)

    def apply(params: Params, x_t: Array, t: Any = None, *, key: Key | None = None) -> Array:
        return network.apply(params, x_t, t, key=key)[-1]

    return network._replace(apply=apply) if last else network


def network_of(config: TransformerConfig, *, num_outputs: int | None) -> Network:
    """The trunk of `config` under the head of the V tokens, or of `num_outputs` columns."""
    start = jnp.array(0)

    # Eager initialisation takes seconds: every operation is compiled for itself.
    @jax.jit
    def init(key: Key) -> Params:
        t = jnp.zeros((), real_dtype(config)) if config.time_conditioned else None
        module = Transformer(config, num_outputs=num_outputs)
        return module.init(key, jnp.zeros(1, int), t, None, start)["params"]

    def apply(params: Params, x_t: Array, t: Any = None, *, key: Key | None = None) -> Array:
        check_sequence(x_t, config)
        check_time(t, conditioned=config.time_conditioned)
        key = key if config.dropout > 0 else None  # one that draws nothing is not split
        module = Transformer(config, deterministic=key is None, num_outputs=num_outputs)
        rngs = None if key is None else {"dropout": key}
        x_t = jnp.asarray(as_ids(x_t, "x_t"))
        logits, _ = module.apply({"params": params}, x_t, t, None, start, rngs=rngs)
        return logits

    return Network(init, apply)


def check_sequence(x_t: Array, config: TransformerConfig, *, before: int = 0) -> None:
    """Ids in [0, S), one axis, and with what is `before` them no more than `max_positions`."""
    require(jnp.ndim(x_t) == 1, "`x_t` must be one sequence [N]; its axes", jnp.ndim(x_t))
    if config.max_positions is not None:
        most = f"`max_positions` = {config.max_positions}"
        behind = f", with the {before} before them," if before else ""
        rule = f"`x_t` must have at most {most} tokens{behind}; their number"
        count = jnp.shape(x_t)[0]
        require(before + count <= config.max_positions, rule, count)
    check_tokens("x_t", x_t, config.states)
