"""The number of parameters and FLOPs, by formula, and presets from 100 thousand to 1 billion."""

from collections.abc import Mapping
from types import MappingProxyType

from dfm_jax.checks import check_count
from dfm_jax.models.config import TransformerConfig


def num_parameters(config: TransformerConfig, *, num_outputs: int | None = None) -> int:
    """The number of parameters; with `num_outputs`, of a router to that many experts.

    It is S w + L (2 w w_q + 2 w w_kv + 3 w f + 2 w) + w, and w V more if the head is not tied.
    Biases of q, k and v add L (w_q + 2 w_kv), norms of q and k 2 L times the head size. A condition
    on time adds 2 w² + (2 L + 1) w²; learned positions add w each. Here w is the width, w_q = heads
    · head size (which is w in most transformers), w_kv = kv heads · head size, and f the width of
    SwiGLU.
    """
    tied = config.tied and num_outputs is None
    columns = config.num_tokens if num_outputs is None else num_outputs
    norms = (2 * config.num_layers + 1) * config.width
    queries, keys = (heads * config.head_size for heads in (config.num_heads, config.kv_heads))
    biases = config.qkv_bias * config.num_layers * (queries + 2 * keys)
    norms += 2 * config.qk_norm * config.num_layers * config.head_size
    places = (config.max_positions or 0) if config.learned_positions else 0
    embedding = (config.states + places) * config.width
    return (
        embedding
        + norms
        + biases
        + _kernels(config)
        + _time(config)
        + (not tied) * config.width * columns
    )


def flops_per_token(
    config: TransformerConfig, length: int, *, num_outputs: int | None = None
) -> float:
    """FLOPs of the forward pass per token of a sequence of `length`; training takes 3 times this.

    Only matrix products count, with 2 FLOPs per multiplication and addition: every kernel once, the
    head, and 4 · length · w_q per layer for attention scores and their weighted mean. The full
    square of scores counts even if a causal mask hides half of it, because the einsum computes it.
    The condition on time is computed once for the whole sequence and does not count.
    """
    check_count("length", length)
    columns = config.num_tokens if num_outputs is None else num_outputs
    attention = 2 * length * config.num_heads * config.head_size * config.num_layers
    per_token = _kernels(config) + attention + config.width * columns
    return 2 * (per_token + _time(config) / length)


def _kernels(config: TransformerConfig) -> int:
    """The number of kernel entries in the layers, without norms and without time."""
    heads = 2 * (config.num_heads + config.kv_heads) * config.head_size
    return config.num_layers * config.width * (heads + 3 * config.ffn_width)


def _time(config: TransformerConfig) -> int:
    kernels = 2 + 2 * config.num_layers + 1
    return config.width**2 * kernels if config.time_conditioned else 0


def _bytes(width: int, num_layers: int, num_heads: int, ffn_width: int) -> TransformerConfig:
    return TransformerConfig(
        num_tokens=256,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        ffn_width=ffn_width,
    )


# Over bytes up to 10 M; `dataclasses.replace` gives them another vocabulary.
SIZES: Mapping[str, TransformerConfig] = MappingProxyType(
    {
        "100k": _bytes(64, 2, 2, 128),
        "1m": _bytes(128, 5, 4, 352),
        "10m": _bytes(320, 8, 5, 864),
        "135m": TransformerConfig(  # SmolLM2-135M
            num_tokens=49152,
            width=576,
            num_layers=30,
            num_heads=9,
            num_kv_heads=3,
            ffn_width=1536,
            max_positions=8192,
            rope_base=1e5,
        ),
        "1b": TransformerConfig(
            num_tokens=49152,
            width=2048,
            num_layers=20,
            num_heads=32,
            num_kv_heads=8,
            ffn_width=5632,
            max_positions=8192,
            rope_base=1e5,
            scan_layers=True,
            remat=True,
            compute_dtype="bfloat16",
        ),
    }
)
