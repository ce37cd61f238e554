#!/usr/bin/env bash
# diffusers: BlockRefinementScheduler at one token a step and temperature 1 does not draw from the
# model.
#
# One would guess that with as many steps as positions, temperature 1 and an exact denoiser each
# token is drawn from its conditional distribution, so that the samples have the distribution of the
# model: "one token a step is exact".
# What happens: each step draws all masked tokens and commits the one whose drawn token has the
# largest probability. Likely tokens win. Five independent coins with p = 0.9 come out all heads far
# more often than 0.9^5 = 0.59, at a total variation of 0.30; more steps do not help.
# Who is hurt: whoever measures a masked language model by its samples, or trains on them.
# (`dfm_jax.sampling.choices.most_confident` looks at the row and not at the draw, and is exact.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check diffusers==0.42.1 torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
from math import comb

import diffusers
import torch
from diffusers import BlockRefinementScheduler

print("diffusers", diffusers.__version__, "torch", torch.__version__)
N, HEADS, DRAWS, MASK = 5, 0.9, 20_000, 2
logits = torch.tensor([HEADS, 1 - HEADS]).log().expand(DRAWS, N, 2)  # exact, whatever is revealed
generator = torch.Generator().manual_seed(0)
scheduler = BlockRefinementScheduler(block_length=N)
scheduler.set_timesteps(N, block_length=N)
x = torch.full((DRAWS, N), MASK)
for step in range(N):
    x = scheduler.step(
        logits,
        step,
        x,
        mask_token_id=MASK,
        temperature=1.0,
        threshold=1.0,
        generator=generator,
    ).prev_sample
assert (x < 2).all()
tails = torch.bincount(x.sum(1), minlength=N + 1) / DRAWS
exact = torch.tensor([comb(N, k) * (1 - HEADS) ** k * HEADS ** (N - k) for k in range(N + 1)])
print("tails        ", list(range(N + 1)))
print("of the model ", [f"{p:.4f}" for p in exact.tolist()])
print("of the samples", [f"{p:.4f}" for p in tails.tolist()])
distance = 0.5 * (tails - exact).abs().sum().item()
print(f"total variation of the number of tails: {distance:.3f}")
assert 0.27 < distance < 0.33, "this has changed"
PYTHON
