"""The sizes and options of a transformer as one frozen value, which refuses bad combinations."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp

from dfm_jax.checks import check_count, check_interval, check_num_states, require

ComputeDtype = Literal["float32", "bfloat16", "float64"]
Attention = Literal["einsum", "xla", "cudnn"]


class RopeScaling(NamedTuple):
    """Llama 3.1's rotary positions for longer texts: slow pairs of features turn more slowly.

    A pair that turns by ω radians a token makes r = original · ω / 2π turns in the `original`
    positions of pretraining. Its ω is kept if r ≥ high, divided by `factor` if r ≤ low, and
    between them interpolated: ω (s + (1 − s) / factor), s = (r − low) / (high − low).

    Source: the Llama 3 herd of models (2407.21783); Hugging Face's `rope_type: llama3`.
    """

    factor: float
    low: float  # turns
    high: float
    original: float  # positions


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A pre-norm transformer: RMSNorm, rotary positions, SwiGLU, grouped-query attention.

    Raises:
        ValueError: if a size is below 1; if the number of heads does not divide the width, or the
            kv heads do not divide the heads; if the size of a head is odd; if a rate lies outside
            [0, 1); if a rope scaling is not one; if a name is not known.
    """

    num_tokens: int  # V, the columns of the logits
    num_states: int | None = None  # S, the number of ids that it reads: V, or V + 1 with a mask
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None  # the heads of keys and values; None means num_heads
    head_width: int | None = None  # None means width / num_heads
    qkv_bias: bool = False  # biases on q, k and v, as Qwen2 has them
    qk_norm: bool = False  # an RMSNorm on each head of q and k, as Qwen3 has it
    ffn_width: int  # the hidden width of SwiGLU
    max_positions: int | None = None  # longer sequences are refused; None means no limit
    learned_positions: bool = False  # added to the embedding; for bidirectional networks
    rope_base: float = 10_000.0
    rope_scaling: tuple[float, float, float, float] | None = None  # see `RopeScaling`
    norm_epsilon: float = 1e-5  # added to the mean square by every RMSNorm, as Llama does
    causal: bool = True
    time_conditioned: bool = False
    tied: bool = True  # the head is the embedding of the V tokens
    dropout: float = 0.0  # the rate on both branches of a layer, if a key is given
    scan_layers: bool = False  # one compiled layer, its weights stacked; compiles faster
    remat: bool = False  # recompute each layer in the backward pass; saves memory
    compute_dtype: ComputeDtype = "float32"  # parameters, norms, softmax and logits stay float32
    attention: Attention = "einsum"  # "xla", "cudnn": jax.nn.dot_product_attention

    def __post_init__(self) -> None:
        """Refuse values that no transformer can have."""
        counts = ("num_tokens", "width", "num_layers", "num_heads", "kv_heads", "ffn_width")
        for name in counts:
            check_count("num_kv_heads" if name == "kv_heads" else name, getattr(self, name))
        check_num_states(self.states, self.num_tokens)
        heads, kv_heads = self.num_heads, self.kv_heads
        name = "width / num_heads"
        if self.head_width is None:
            rule = f"`width` must be a multiple of `num_heads`, which is {heads}"
            require(self.width % heads == 0, rule, self.width)
        else:
            name = "head_width"
            check_count(name, self.head_width)
        rule = f"`num_heads` must be a multiple of `num_kv_heads`, which is {kv_heads}"
        require(heads % kv_heads == 0, rule, heads)
        rule = f"`{name}` must be even, because rotary positions turn pairs of features"
        require(self.head_size % 2 == 0, rule, self.head_size)
        if self.max_positions is not None:
            check_count("max_positions", self.max_positions)
        # Turned pairs tell distances alone: without causality, masks look the same everywhere.
        rule = "`learned_positions` must be False unless `max_positions` is given and causal=False"
        fits = self.max_positions is not None and not self.causal
        require(fits or not self.learned_positions, rule, self.learned_positions)
        check_interval("rope_base", self.rope_base, 0, jnp.inf, ends="()")
        if self.rope_scaling is not None:
            _check_rope_scaling(self.rope_scaling)
        check_interval("norm_epsilon", self.norm_epsilon, 0, jnp.inf, ends="()")
        check_interval("dropout", self.dropout, 0, 1, ends="[)")
        for name, kinds in (("compute_dtype", ComputeDtype), ("attention", Attention)):
            names, value = kinds.__args__, getattr(self, name)
            require(value in names, f"`{name}` must be one of {', '.join(names)}", value)
        if self.compute_dtype == "float64":
            exact = self.attention == "einsum"
            rule = '`attention` must be "einsum" in float64, because the others compute in float32'
            require(exact, rule, self.attention)

    @property
    def states(self) -> int:
        """S, the number of ids that the transformer can read."""
        return self.num_tokens if self.num_states is None else self.num_states

    @property
    def kv_heads(self) -> int:
        """The number of heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """The width of one head."""
        return self.width // self.num_heads if self.head_width is None else self.head_width


def _check_rope_scaling(values: tuple[float, ...]) -> None:
    rule = "`rope_scaling` must hold a factor, a low, a high and a number of positions"
    require(len(values) == len(RopeScaling._fields), rule, values)
    scaling = RopeScaling(*values)
    check_interval("rope_scaling.factor", scaling.factor, 1, jnp.inf, ends="[)")
    check_interval("rope_scaling.low", scaling.low, 0, jnp.inf, ends="()")
    check_interval("rope_scaling.high", scaling.high, scaling.low, jnp.inf, ends="()")
    check_interval("rope_scaling.original", scaling.original, 0, jnp.inf, ends="()")
