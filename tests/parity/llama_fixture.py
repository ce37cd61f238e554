"""Logits of Hugging Face's Llama at random weights, recorded for tests/test_llama.py.

The weights are not recorded: `weights` draws them again, in NumPy, from the seed. To record anew,
in the environment of the peers (`make install-peers`):

    .venv-peers/bin/python tests/parity/llama_fixture.py
"""

import json
from pathlib import Path

import numpy as np

FIXTURE = Path(__file__).parents[1] / "data" / "llama_logits.json"
SEED = 20260103
NUM_TOKENS = 23
LENGTH = 12

# As `transformers.LlamaConfig` names them.
CONFIGS = {
    "untied": {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "intermediate_size": 40,
        "rope_theta": 1e4,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    "tied, grouped": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "rope_theta": 1e5,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
}


def weights(config: dict) -> dict[str, np.ndarray]:
    """By their names on disk, each [out, in]; norms too far from 1 to be missed."""
    rng = np.random.default_rng(SEED)
    width, ffn = config["hidden_size"], config["intermediate_size"]
    kv_width = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv_width, width),
        "self_attn.v_proj": (kv_width, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (ffn, width),
        "mlp.up_proj": (ffn, width),
        "mlp.down_proj": (width, ffn),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }

    def drawn(shape: tuple[int, ...]) -> np.ndarray:
        normal = rng.standard_normal(shape)
        value = 1 + 0.3 * normal if len(shape) == 1 else 1.5 * normal / np.sqrt(shape[1])
        return value.astype(np.float32)

    tensors = {"model.embed_tokens.weight": drawn((NUM_TOKENS, width))}
    for i in range(config["num_hidden_layers"]):
        for name, shape in shapes.items():
            tensors[f"model.layers.{i}.{name}.weight"] = drawn(shape)
    tensors["model.norm.weight"] = drawn((width,))
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = drawn((NUM_TOKENS, width))
    return tensors


def tokens() -> np.ndarray:
    return np.random.default_rng(SEED).integers(NUM_TOKENS, size=LENGTH)


def main() -> None:
    import torch
    import transformers

    logits = {}
    for name, config in CONFIGS.items():
        settings = transformers.LlamaConfig(
            vocab_size=NUM_TOKENS, max_position_embeddings=64, attention_bias=False, **config
        )
        settings._attn_implementation = "eager"
        model = transformers.LlamaForCausalLM(settings).eval()
        state = {key: torch.from_numpy(value) for key, value in weights(config).items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
        assert not unexpected, unexpected
        assert set(missing) <= tied, missing
        base = getattr(model.config, "rope_parameters", None) or {}
        assert base.get("rope_theta", config["rope_theta"]) == config["rope_theta"], base
        with torch.no_grad():
            rows = model(torch.from_numpy(tokens())[None]).logits[0]
        logits[name] = [[float(f"{value:.9g}") for value in row] for row in rows.tolist()]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    FIXTURE.write_text(json.dumps({"versions": versions, "logits": logits}) + "\n")


if __name__ == "__main__":
    main()
