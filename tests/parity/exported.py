"""Trained members of LLaVA and InternVL, written by `export`: what transformers reads of them.

Each is a folder of drawn weights, three updates, and the folder of the trained member, see
`tiny_systems`. `make parity` prints the largest difference of the logits in float64, ours and
those of transformers, and ends with 1 if one is above the tolerance or nothing was learnt.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tiny_systems import SYSTEMS, exported, prompt

from dfm_jax.models.multimodal import multimodal
from dfm_jax.models.pretrained import checkpoint_params, open_folder

CASES = (("llava", "a frozen tower"), ("llava", "adapters"), ("internvl", "all"))
TOLERANCE = 1e-5  # transformers computes the angles of rotary positions in float32


def ours(folder: Path, kind: str) -> np.ndarray:
    """The logits of a folder in float64."""
    checkpoint = open_folder(folder)
    exact = {"compute_dtype": "float64"}
    config = dataclasses.replace(
        checkpoint.config,
        text=dataclasses.replace(checkpoint.config.text, **exact),
        vision=dataclasses.replace(checkpoint.config.vision, **exact),
    )
    with jax.enable_x64(True):
        params = checkpoint_params(checkpoint._replace(config=config), dtype=jnp.float64)
        tokens, pictures = prompt(kind)
        return np.asarray(jax.jit(multimodal(config).apply)(params, tokens, pictures))


def theirs(folder: Path, kind: str) -> np.ndarray:
    """The logits of a folder in float64, as transformers opens it by itself."""
    import torch
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64)
    tokens, pictures = prompt(kind)
    seen = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        out = model.eval()(input_ids=torch.from_numpy(tokens[None]), pixel_values=seen)
    return out.logits[0].numpy()


def main() -> None:
    """Print a line for each case."""
    good = True
    for kind, trained in CASES:
        with tempfile.TemporaryDirectory() as work:
            _, out = exported(Path(work), kind, trained)
            found, start = ours(out, kind), ours(Path(work) / kind, kind)
            apart, learnt = np.abs(found - theirs(out, kind)).max(), np.abs(found - start).max()
        print(f"  {kind}, {trained} trained: {apart:.1e} apart, {learnt:.1e} learnt")
        good &= bool(apart < TOLERANCE < learnt)
    assert {kind for kind, _ in CASES} == set(SYSTEMS)
    sys.exit(not good)


if __name__ == "__main__":
    main()
