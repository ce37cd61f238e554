#!/usr/bin/env bash
# transformers: with eager attention in float64, a row that is padded on the left has NaN everywhere.
#
# One would guess that float64 is the safe choice for a comparison of numbers: masked scores get the
# smallest number of the type, and a padded row has the logits of the row alone, as in float32.
# What happens: the mask is made of the smallest float64, about -1.8e308, and the softmax is asked
# for in float32, where that number is minus infinity. The row of a padding token sees nothing but
# such scores, so its softmax is NaN. In the next layer that NaN is a value, which 0 · NaN spreads to
# every real token. Nothing is raised; `sdpa`, the default attention, is right in both types.
# Who is hurt: whoever checks a port of a network in float64 with a batch of rows of several lengths,
# and asks for "eager" because only that is written out. (dfm_jax records its references with sdpa.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from transformers import LlamaConfig, LlamaForCausalLM

print("torch", version("torch"), "transformers", version("transformers"))
torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
config = LlamaConfig(vocab_size=11, num_attention_heads=2, num_key_value_heads=2, **sizes)
row = torch.tensor([[3, 4, 5, 6]])
padded = torch.cat([torch.zeros(1, 2, dtype=int), row], dim=1)
mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
weights = LlamaForCausalLM(config).state_dict()
for kind in ("eager", "sdpa"):
    for dtype in (torch.float32, torch.float64):
        config._attn_implementation = kind
        model = LlamaForCausalLM(config).eval()
        model.load_state_dict(weights)
        model.to(dtype)
        with torch.no_grad():
            alone = model(input_ids=row).logits
            beside = model(input_ids=padded, attention_mask=mask).logits[:, 2:]
        gap = (alone - beside).abs().max().item()
        print(f"{kind}, {dtype}: largest difference of a real token's logits {gap:.1e}")
        broken = kind == "eager" and dtype == torch.float64
        assert (gap != gap) == broken, "this has changed"
        assert broken or gap < 1e-5, "this has changed"
PYTHON
