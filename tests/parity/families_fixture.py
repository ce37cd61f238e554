"""What Hugging Face's networks give at drawn weights, recorded for tests/test_families.py.

For each kind of network: the config.json that `save_pretrained` writes, the names and shapes of its
tensors, some logits (or image features), the loss of the next tokens, one number of the gradient of
each tensor, and 50 greedy tokens; all in float64. Weights are not recorded: `weights` draws them
again, in NumPy, from the names. `make parity` compares all of it with what the peers give now, and
`make parity CHECK=` records it anew.
"""

import json
import tempfile
import zlib
from pathlib import Path

import numpy as np
from parity.recorded import record

FIXTURE = Path(__file__).parents[1] / "data" / "families.json"
IMAGE_TOKEN = 60
ROWS, COLUMNS = 6, 5  # of the logits that are recorded: the last and the first ones
NEW_TOKENS = 50

_TEXT = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}
_LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1e3,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 8,
}
_INTERN = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": [32, 32],
    "patch_size": [8, 8],
}

# Name: the kind, and what its own class of configs is given.
KINDS = {
    "llama, scaled positions": ("llama", _TEXT | {"rope_parameters": _LLAMA_3}),
    "qwen2": ("qwen2", _TEXT),
    "qwen2, tied": ("qwen2", _TEXT | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", _TEXT | {"head_dim": 16}),
    "clip": ("clip_vision_model", _CLIP | {"projection_dim": 20}),
    "llava": ("llava", {"text": ("llama", _TEXT), "vision": _CLIP}),
    "llava, class token": (
        "llava",
        {
            "text": ("llama", _TEXT),
            "vision": _CLIP,
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
        },
    ),
    "internvl": (
        "internvl",
        {"text": ("qwen2", _TEXT), "vision": _INTERN | {"attention_bias": True}},
    ),
    "internvl, norms": (
        "internvl",
        {
            "text": ("qwen2", _TEXT),
            "vision": _INTERN | {"norm_type": "rms_norm", "use_qk_norm": True},
            "tie_word_embeddings": False,
        },
    ),
}


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """The tensors by their names on disk; norms and scales too far from 1 to be missed."""
    return {name: _drawn(name, shape) for name, shape in shapes.items()}


def _drawn(name: str, shape: list[int]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    normal = rng.standard_normal(shape)
    if len(shape) == 1:
        around = 0.0 if name.endswith("bias") else 1.0
        return (around + 0.3 * normal).astype(np.float32)
    return (0.7 * normal / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def direction(name: str, shape: list[int]) -> np.ndarray:
    """The direction along which the gradient of a tensor is recorded."""
    return np.random.default_rng(zlib.crc32(f"along {name}".encode())).standard_normal(shape)


def pictures(size: int, count: int = 2) -> np.ndarray:
    """Normalized pictures [count, size, size, 3]."""
    return np.random.default_rng(2).standard_normal((count, size, size, 3))


def prompts(each: int) -> dict[str, list[int]]:
    """Prompts by what is in them; `each` image tokens stand for a picture."""
    image = [IMAGE_TOKEN] * each
    two = [5, 6, 7, *image, 8, 9, *image, 10, 11, 12]
    text = np.random.default_rng(0).integers(IMAGE_TOKEN, size=40).tolist()
    return {"two pictures": two, "text": text[:12]} if each else {"text": text}


def _short(values) -> list:
    rows = np.asarray(values, np.float64)
    return [[float(f"{value:.10g}") for value in row] for row in rows]


def main() -> None:
    import torch
    import transformers
    from safetensors.numpy import load_file

    configs = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    networks = {
        "llama": transformers.LlamaForCausalLM,
        "qwen2": transformers.Qwen2ForCausalLM,
        "qwen3": transformers.Qwen3ForCausalLM,
        "clip_vision_model": transformers.CLIPVisionModelWithProjection,
        "llava": transformers.LlavaForConditionalGeneration,
        "internvl": transformers.InternVLForConditionalGeneration,
    }

    def config_of(kind, settings):
        if kind in configs:
            return configs[kind](**settings)
        if kind == "clip_vision_model":
            return transformers.CLIPVisionConfig(**settings)
        rest = {k: v for k, v in settings.items() if k not in ("text", "vision")}
        text, towers = settings["text"], {"llava": "CLIP", "internvl": "InternVL"}
        tower = getattr(transformers, f"{towers[kind]}VisionConfig")(**settings["vision"])
        whole = {"llava": transformers.LlavaConfig, "internvl": transformers.InternVLConfig}[kind]
        token = {"llava": "image_token_index", "internvl": "image_token_id"}[kind]
        return whole(
            text_config=configs[text[0]](**text[1]),
            vision_config=tower,
            **{token: IMAGE_TOKEN},
            **rest,
        )

    def recorded(kind, settings):
        config = config_of(kind, settings)
        with tempfile.TemporaryDirectory() as folder:
            first = networks[kind](config)
            first.save_pretrained(folder)
            path = Path(folder) / "model.safetensors"
            shapes = {name: list(x.shape) for name, x in load_file(path).items()}
            tensors = {name: torch.from_numpy(x) for name, x in weights(shapes).items()}
            from safetensors.torch import load_file as load
            from safetensors.torch import save_file

            save_file(tensors, path, metadata={"format": "pt"})
            said = json.loads((Path(folder) / "config.json").read_text())
            model = (
                networks[kind]
                .from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
                .eval()
            )
            found = {"config": said, "shapes": shapes}
            if kind == "clip_vision_model":
                seen = torch.from_numpy(pictures(24).transpose(0, 3, 1, 2).copy())
                with torch.no_grad():
                    out = model(seen, output_hidden_states=True)
                features = out.hidden_states[-2][0, :, :COLUMNS]
                return found | {"pooled": _short(out.image_embeds), "features": _short(features)}
            size = {"llava": 24, "internvl": 32}.get(kind)
            each, seen = 0, None
            if size is not None:
                each = _tokens_per_picture(kind, said)
                seen = torch.from_numpy(pictures(size).transpose(0, 3, 1, 2).copy())
            found["prompts"] = {}
            for name, prompt in prompts(each).items():
                ids = torch.tensor([prompt])
                own = {"pixel_values": seen} if name != "text" else {}
                model.zero_grad()
                out = model(input_ids=ids, **own)
                logits = out.logits[0]
                wanted = ids[0, 1:]
                loss = torch.nn.functional.cross_entropy(logits[:-1], wanted, reduction="sum")
                loss.backward()
                row = {"logits": _short(logits.detach()[-ROWS:, :COLUMNS]), "loss": loss.item()}
                if name == next(iter(prompts(each))):
                    row["gradients"] = _gradients(model, shapes, load)
                with torch.no_grad():
                    drawn = model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=NEW_TOKENS,
                        do_sample=False,
                        suppress_tokens=[IMAGE_TOKEN],
                        **own,
                    )
                    row["greedy"] = drawn[0, len(prompt) :].tolist()
                    padded = torch.tensor([[0] * 7 + prompt])
                    mask = torch.tensor([[0] * 7 + [1] * len(prompt)])
                    again = model(input_ids=padded, attention_mask=mask, **own).logits[0, 7:]
                    row["padded"] = float((again - logits).abs().max())
                found["prompts"][name] = row
            return found

    def _gradients(model, shapes, load):
        """⟨gradient, direction⟩ of each tensor on disk, which has the names that are saved."""
        with tempfile.TemporaryDirectory() as folder:
            with torch.no_grad():
                kept = {name: p.detach().clone() for name, p in model.named_parameters()}
                for p in model.parameters():
                    p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
            model.save_pretrained(folder)
            gradients = load(Path(folder) / "model.safetensors")
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(kept[name])
        return {
            name: float(f"{(gradients[name].numpy() * direction(name, shape)).sum():.10g}")
            for name, shape in shapes.items()
        }

    def _tokens_per_picture(kind, said):
        vision = said["vision_config"]
        if kind == "llava":
            patches = (vision["image_size"] // vision["patch_size"]) ** 2
            return patches + (said["vision_feature_select_strategy"] == "full")
        return 4  # 16 patches, four as one

    found = {name: recorded(kind, settings) for name, (kind, settings) in KINDS.items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record(FIXTURE, {"versions": versions, "kinds": found})
    for name, one in found.items():
        prompts_of_kind: dict = one.get("prompts", {})
        for prompt, row in prompts_of_kind.items():
            print(f"  {name}, {prompt}: loss {row['loss']:.6f}, padded: {row['padded']:.1e}")


if __name__ == "__main__":
    main()
