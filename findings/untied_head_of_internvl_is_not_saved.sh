#!/usr/bin/env bash
# transformers: an InternVL whose text config says that its head is not tied has no head of its own.
#
# One would guess that InternVLConfig(text_config=...) takes tie_word_embeddings from the text
# config, since only the text has embeddings, and that a text model with its own head keeps it.
# What happens: the outer config has a tie_word_embeddings of its own, True by default, and that one
# decides. The text config says False, both are written to config.json, the head is the embedding,
# and no lm_head is saved. LLaVA's outer config has False by default, so there the head is kept.
# Who is hurt: whoever builds an InternVL around a language model with its own head, or trains one,
# and believes the text config. (dfm_jax reads the outer value, and writes it.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

from safetensors import safe_open
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
)

print("torch", version("torch"), "transformers", version("transformers"))
sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
heads = {"num_attention_heads": 2}
text = Qwen2Config(
    vocab_size=11, num_key_value_heads=2, tie_word_embeddings=False, **sizes, **heads
)
intern = InternVLVisionConfig(image_size=[16, 16], patch_size=[8, 8], **sizes, **heads)
clip = CLIPVisionConfig(image_size=16, patch_size=8, **sizes, **heads)
models = {
    "InternVL": InternVLForConditionalGeneration(
        InternVLConfig(vision_config=intern, text_config=text, image_token_id=7)
    ),
    "LLaVA": LlavaForConditionalGeneration(
        LlavaConfig(vision_config=clip, text_config=text, image_token_id=7)
    ),
}
for name, model in models.items():
    folder = Path(sys.argv[1]) / name
    model.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    inner, outer = said["text_config"]["tie_word_embeddings"], said["tie_word_embeddings"]
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        saved = any("lm_head" in tensor for tensor in tensors.keys())
    print(f"{name}: text config tied {inner}, whole config tied {outer}, head saved {saved}")
    assert inner is False, "this has changed"
    assert (outer, saved) == ((True, False) if name == "InternVL" else (False, True)), (
        "this has changed"
    )
PYTHON
