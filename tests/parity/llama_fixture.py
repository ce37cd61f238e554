"""What Hugging Face's Llama gives and how it is saved, recorded for tests/test_pretrained.py.

Logits at random weights, the config.json that `save_pretrained` writes beside them, and the file of
each tensor. The weights are not recorded: `weights` draws them again, in NumPy, from the seed.
`make parity` compares all of it with what the peers give now, and `make parity CHECK=` records it
anew.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from parity.recorded import record

FIXTURE = Path(__file__).parents[1] / "data" / "llama.json"
SEED = 20260103
NUM_TOKENS = 23
LENGTH = 12

# As `transformers.LlamaConfig` names them.
CONFIGS = {
    "untied, in parts": {
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
    from safetensors.numpy import load_file

    recorded = {}
    for name, config in CONFIGS.items():
        rest = {key: value for key, value in config.items() if key != "rope_theta"}
        settings = transformers.LlamaConfig(
            vocab_size=NUM_TOKENS,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            attn_implementation="eager",
            **rest,
        )
        model = transformers.LlamaForCausalLM(settings).eval()
        state = {key: torch.from_numpy(value) for key, value in weights(config).items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
        assert not unexpected, unexpected
        assert set(missing) <= tied, missing
        with torch.no_grad():
            rows = model(torch.from_numpy(tokens())[None]).logits[0]
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, max_shard_size="10KB" if "parts" in name else "5GB")
            files = {p.name: load_file(p) for p in sorted(Path(folder).glob("*.safetensors"))}
            index = Path(folder) / "model.safetensors.index.json"
            assert index.exists() == ("parts" in name)
            settings = json.loads((Path(folder) / "config.json").read_text())
        saved = {tensor: values for part in files.values() for tensor, values in part.items()}
        assert saved.keys() == state.keys()
        assert all(np.array_equal(saved[tensor], state[tensor].numpy()) for tensor in saved)
        recorded[name] = {
            "config": settings,
            "files": {file: sorted(part) for file, part in files.items()},
            "logits": [[float(f"{value:.9g}") for value in row] for row in rows.tolist()],
        }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record(FIXTURE, {"versions": versions, "llamas": recorded}, tolerance=1e-5)  # float32


if __name__ == "__main__":
    main()
