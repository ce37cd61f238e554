"""The text networks of Llama, Qwen2 and Qwen3: their tensors, and their settings in config.json.

All three are one transformer. Qwen2 adds biases to q, k and v; Qwen3 has a norm on the heads of q
and k instead, and a head width of its own.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from dfm_jax.checks import require
from dfm_jax.models.config import RopeScaling, TransformerConfig
from dfm_jax.models.pretrained.leaves import Leaf, as_it_is, in_layers, matrix, vector
from dfm_jax.models.pretrained.settings import Settings


def check_llama(config: TransformerConfig) -> None:
    """Refuse a transformer that the tensors of Llama, Qwen2 and Qwen3 cannot describe.

    Raises:
        ValueError: if an option of the config has no counterpart there; the message names it.
    """
    require(config.causal, "`causal` must be True, because Llama is causal", config.causal)
    timed = config.time_conditioned
    rule = "`time_conditioned` must be False, because Llama does not read a time"
    require(not timed, rule, timed)
    rule = f"`num_states` must be V = {config.num_tokens}, because Llama has no mask"
    require(config.states == config.num_tokens, rule, config.states)
    both = config.qkv_bias and config.qk_norm
    rule = "`qk_norm` must be False if `qkv_bias` is True, because no model of this kind has both"
    require(not both, rule, config.qk_norm)


def text_leaves(config: TransformerConfig) -> Iterator[Leaf]:
    """The leaves of `transformer(config)`, with the names that the three models have on disk."""
    width, ffn, size = config.width, config.ffn_width, config.head_size
    queries, keys = config.num_heads * size, config.kv_heads * size
    vocabulary = (config.num_tokens, width)
    yield as_it_is("embed_tokens.embedding", "model.embed_tokens.weight", vocabulary)
    layer = [_norm("input_layernorm", width)]
    for name, outputs in (("q", queries), ("k", keys), ("v", keys)):
        at = f"self_attn.{name}_proj"
        layer.append(matrix(f"{at}.kernel", f"{at}.weight", outputs, width))
        if config.qkv_bias:
            layer.append(vector(f"{at}.bias", f"{at}.bias", outputs))
    layer.append(matrix("self_attn.o_proj.kernel", "self_attn.o_proj.weight", width, queries))
    if config.qk_norm:
        layer += [_norm(f"self_attn.{name}_norm", size) for name in "qk"]
    layer.append(_norm("post_attention_layernorm", width))
    for name, shape in (("gate", (ffn, width)), ("up", (ffn, width)), ("down", (width, ffn))):
        layer.append(matrix(f"mlp.{name}_proj.kernel", f"mlp.{name}_proj.weight", *shape))
    stacked = config.scan_layers
    yield from in_layers(
        layer, config.num_layers, room="layers", at="model.layers", stacked=stacked
    )
    yield vector("norm.scale", "model.norm.weight", width)
    if not config.tied:
        yield matrix("lm_head.kernel", "lm_head.weight", *vocabulary)


def _norm(name: str, size: int) -> Leaf:
    return vector(f"{name}.scale", f"{name}.weight", size)


# ── config.json: every setting is read here, or known to have no effect, or refused ───────────────

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

# What a config may say only in one way, since another changes the numbers; absent is that way.
_REQUIRED = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu",),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1.0, None),
    "attention_dropout": (0, None),
    "quantization_config": (None,),
    "use_sliding_window": (False, None),
    "is_decoder": (True, False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "tie_encoder_decoder": (False, None),
}
# What has no say in the logits of a given sequence.
NO_CONSEQUENCE = {
    *("_name_or_path", "transformers_version", "transformers.js_config", "is_llama_config"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id"),
    *("dtype", "torch_dtype", "initializer_range", "pretraining_tp", "use_cache"),
    *("output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward"),
    *("id2label", "label2id", "problem_type", "_attn_implementation"),
}


def text_config(said: Mapping[str, Any], source: str) -> TransformerConfig:
    """The sizes of the network that a config.json describes.

    Raises:
        ValueError: if a setting is missing, is not known here, or asks for another network; the
            message names it.
    """
    settings = Settings(said, source, without=NO_CONSEQUENCE)
    kind = settings.taken("model_type")
    kinds = " or ".join(map(repr, _ARCHITECTURES))
    require(kind in _ARCHITECTURES, f"`model_type` of {source} must be {kinds}", kind)
    settings.refuse_others("architectures", [_ARCHITECTURES[kind]], None)
    base, scaling = _rope(settings, source)
    # With use_sliding_window false, as it must be here, Qwen's windows mean nothing.
    window = settings.taken("sliding_window", None)
    rule = f"`sliding_window` of {source} must be None"
    require(window is None or settings.holds("use_sliding_window"), rule, window)
    settings.taken("max_window_layers", None)
    _check_layer_types(settings.taken("layer_types", None), source)
    for name, allowed in _REQUIRED.items():
        settings.refuse_others(name, *allowed)
    width, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    head_width = settings.count("head_dim", 128 if kind == "qwen3" else width // heads)
    config = TransformerConfig(
        num_tokens=settings.count("vocab_size"),
        width=width,
        num_layers=settings.count("num_hidden_layers"),
        num_heads=heads,
        # Where it is absent, Llama means as many; Qwen means 32, whatever the heads.
        num_kv_heads=settings.count("num_key_value_heads", *[heads] * (kind == "llama")),
        head_width=None if head_width * heads == width else head_width,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        ffn_width=settings.count("intermediate_size"),
        max_positions=settings.taken("max_position_embeddings", None),
        rope_base=base,
        rope_scaling=scaling,
        norm_epsilon=float(settings.taken("rms_norm_eps")),
        tied=settings.taken("tie_word_embeddings", False),
    )
    settings.check_all_taken()
    return config


def _check_layer_types(value: Any, source: str) -> None:
    full = value is None or (isinstance(value, list) and set(value) <= {"full_attention"})
    rule = f"`layer_types` of {source} must name no other type than full_attention"
    require(full, rule, value)


_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _rope(
    settings: Settings, source: str
) -> tuple[float, tuple[float, float, float, float] | None]:
    """Base and scaling of rotary positions, which stand in either of two places, or in both.

    Old files have `rope_theta` and `rope_scaling`, new ones `rope_parameters` with both inside.
    """
    new, old = settings.taken("rope_parameters", None), settings.taken("rope_scaling", None)
    theta = settings.taken("rope_theta", None)
    for name, rope in (("rope_parameters", new), ("rope_scaling", old)):
        rule = f"`{name}` of {source} must be an object"
        require(rope is None or isinstance(rope, dict), rule, rope)
    given = [dict(rope) for rope in (new, old) if rope is not None]
    bases = {theta, *(rope.pop("rope_theta", None) for rope in given)} - {None}
    rule = f"`rope_theta` of {source} must be the same in both of its places"
    require(len(bases) < 2, rule, sorted(bases))
    base = float(bases.pop() if bases else 10_000.0)
    scalings = [_scaling(rope, source) for rope in given]
    rule = f"`rope_scaling` of {source} must be the same in both of its places"
    require(len(set(scalings)) < 2, rule, given)
    return base, scalings[0] if scalings else None


def _scaling(rope: dict[str, Any], source: str) -> tuple[float, float, float, float] | None:
    kinds = {rope.pop(name) for name in ("rope_type", "type") if name in rope}
    kind = "default" if not kinds else kinds.pop()
    rule = f"`rope_type` of {source} must be 'default' or 'llama3'"
    require(not kinds and kind in ("default", "llama3"), rule, kind)
    names = _SCALING if kind == "llama3" else ()
    fields = f"{', '.join(names)}, and no other setting" if names else "no other setting"
    rule = f"`rope_type` {kind!r} of {source} must come with {fields}"
    require(set(rope) == set(names), rule, rope, name="settings")
    if kind == "default":
        return None
    factor, low, high, original = (float(rope[name]) for name in _SCALING)
    return factor, low, high, original


def text_settings(config: TransformerConfig) -> dict[str, Any]:
    """What config.json says of the network, with the rotary base in both forms, old and new."""
    kind = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"
    bound = config.max_positions
    scaling: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        values = RopeScaling(*config.rope_scaling)
        scaling = {"rope_type": "llama3", **dict(zip(_SCALING, values, strict=True))}
        scaling["original_max_position_embeddings"] = int(values.original)
    llama = {"attention_bias": False, "mlp_bias": False} if kind == "llama" else {}
    return {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.num_tokens,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        **({} if bound is None else {"max_position_embeddings": bound}),
        "hidden_act": "silu",
        **llama,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_base,
        **({} if config.rope_scaling is None else {"rope_scaling": scaling}),
        "rope_parameters": {**scaling, "rope_theta": config.rope_base},
        "tie_word_embeddings": config.tied,
    }
