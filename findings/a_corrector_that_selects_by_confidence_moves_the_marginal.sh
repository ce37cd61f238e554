#!/usr/bin/env bash
# diffusers: the corrector of DiscreteDDIMScheduler, with its default selection, moves the marginal
# that it is said to keep.
#
# One would guess from its documentation ("the sweep preserves p_s") that sweeps from exact samples
# of p_s, with an exact denoiser, leave their distribution as it is.
# What happens: the default selection, the lowest log-margin, reads the tokens that it may redraw.
# So tokens that are unlikely are redrawn more often than they are made, and likely ones gather. With
# corrector_selection="random" nothing moves.
# Who is hurt: users of predictor and corrector who trust that more corrector steps only refine.
# (`dfm_jax.sampling.sample_redraws` selects without a look at the token: S11.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check diffusers==0.42.1 torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import diffusers
import torch
from diffusers import DiscreteDDIMScheduler

print("diffusers", diffusers.__version__, "torch", torch.__version__)
N, HEADS, DRAWS, STEPS, STEP = 4, 0.8, 50_000, 16, 11
alpha = (STEP + 1) / STEPS  # the share of tokens that are not noise when the corrector runs
prior = torch.tensor([HEADS, 1 - HEADS], dtype=torch.double)
noisy = alpha * prior + (1 - alpha) / 2  # p_s of each coin; the coins are independent
# The exact posterior of a clean coin given its noisy value: [value, clean].
likelihood = alpha * torch.eye(2, dtype=torch.double) + (1 - alpha) / 2
posterior = likelihood * prior / (likelihood * prior).sum(1, keepdim=True)


def heads_after(selection, sweeps):
    generator = torch.Generator().manual_seed(0)
    scheduler = DiscreteDDIMScheduler(
        num_inference_steps=STEPS, corrector_steps=1, corrector_selection=selection
    )
    scheduler.set_timesteps(STEPS)
    x = torch.multinomial(noisy, DRAWS * N, replacement=True, generator=generator).view(DRAWS, N)
    for _ in range(sweeps):
        x = scheduler.step_correct(posterior[x].log(), STEP, x, generator=generator).prev_sample
    return (x == 0).double().mean().item()


print(f"heads in p_s: {noisy[0]:.4f}")
for selection in ("lowest_log_margin", "random"):
    shares = [heads_after(selection, sweeps) for sweeps in (0, 5, 20)]
    print(f"{selection}: after 0, 5 and 20 sweeps", [f"{share:.4f}" for share in shares])
    moved = abs(shares[-1] - noisy[0].item())
    assert (moved > 0.03) == (selection != "random"), "this has changed"
PYTHON
