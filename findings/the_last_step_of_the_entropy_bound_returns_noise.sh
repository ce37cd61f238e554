#!/usr/bin/env bash
# diffusers: the last step of EntropyBoundScheduler puts random tokens wherever it accepts nothing.
#
# One would guess that after the last of its steps `prev_sample` is the finished sample.
# What happens: every step, the last one too, keeps the tokens of the positions that it accepts and
# replaces all others by uniformly random tokens. If the entropies do not fall below the bound,
# the result is noise, though `sampled_tokens` of the same call is a draw of the model. Nothing says
# so: there is no mask that would show it.
# Who is hurt: whoever drives the scheduler in a loop of its own, or a pipeline whose block does not
# converge in its steps, with data that are really random.
# (In dfm_jax what is not revealed is a mask, and a sampler ends when none is left.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check diffusers==0.42.1 torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import diffusers
import torch
from diffusers import EntropyBoundScheduler

print("diffusers", diffusers.__version__, "torch", torch.__version__)
N, HEADS, DRAWS, STEPS = 8, 0.9, 10_000, 32
logits = torch.tensor([HEADS, 1 - HEADS]).log().expand(DRAWS, N, 2)  # independent coins
generator = torch.Generator().manual_seed(0)
scheduler = EntropyBoundScheduler(t_max=1.0, t_min=1.0, num_inference_steps=STEPS)
scheduler.set_timesteps(STEPS)
x = torch.randint(0, 2, (DRAWS, N), generator=generator)
for step in range(STEPS):
    out = scheduler.step(logits, step, x, generator=generator)
    x = out.prev_sample
shares = {
    "prev_sample": (x == 0).float().mean().item(),
    "sampled_tokens": (out.sampled_tokens == 0).float().mean().item(),
}
print(f"heads of the model: {HEADS}; of the last step:", {k: round(v, 3) for k, v in shares.items()})
assert shares["prev_sample"] < 0.6 and abs(shares["sampled_tokens"] - HEADS) < 0.01, "this has changed"
PYTHON
