"""SmolLM2 here and in Hugging Face's transformers, from the same numbers: run by hand.

    python tests/parity/pretrained.py --peer PYTHON [--folder FOLDER]

from the root of the project, with `make install-pretrained` done; PYTHON is that of an environment
with torch and transformers, which knows nothing of this package.

1. Here: SmolLM2 is read from its GGUF package, dequantized, and written as a Hugging Face folder,
   with its tokenizer and our logits beside it.
2. There (the same file, `--as-peer`): transformers loads the folder and gives its logits and ids.
3. Here: all differences are printed; the status is 1 if one is above its bound: 0 for ids, 1e-4 for
   logits in float64. Float32 is printed for both sides, from their float64: at the first position,
   where activations are huge, either may be off by 2e-4, most of it the same for all tokens.

What transformers writes and gives at small random weights is in llama_fixture.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Überraschung! 東京 is a city of 13,960,000 people; 1 + 1 =  2.\n\n\tIt's",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
)
BOUND = 1e-4


def as_peer(folder: Path) -> None:
    """Step 2, in the other environment."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def logits(model, ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].numpy()

    print(f"  there: torch {torch.__version__}, transformers {transformers.__version__}")
    tokenizer = AutoTokenizer.from_pretrained(folder / "smollm2")
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS]
    (folder / "peer_ids.json").write_text(json.dumps(ids))
    out = {}
    for bits, dtype in ((32, torch.float32), (64, torch.float64)):
        model = AutoModelForCausalLM.from_pretrained(
            folder / "smollm2", dtype=dtype, attn_implementation="eager"
        )
        out |= {f"logits_{i}_{bits}": logits(model, x) for i, x in enumerate(ids)}
    np.savez(folder / "peer.npz", **out)


def main(folder: Path, peer: str) -> bool:
    """Steps 1 and 3, here; whether every difference is within its bound."""
    sys.path.insert(0, os.getcwd())
    import jax

    from dfm_jax.data import load_smollm2
    from dfm_jax.models import transformer
    from dfm_jax.models.pretrained import write_folder

    config, params, tokenizer = load_smollm2()
    write_folder(folder / "smollm2", config, params, tokenizer=tokenizer)
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    apply = jax.jit(transformer(config).apply)
    ours = {f"logits_{i}_32": np.asarray(apply(params, x)) for i, x in enumerate(ids)}
    with jax.enable_x64(True):
        exact = jax.jit(transformer(replace(config, compute_dtype="float64")).apply)
        wide = jax.tree.map(lambda leaf: leaf.astype("float64"), params)
        ours |= {f"logits_{i}_64": np.asarray(exact(wide, x)) for i, x in enumerate(ids)}
    command = [peer, __file__, "--as-peer", "--folder", str(folder)]
    subprocess.run(command, check=True)
    theirs = np.load(folder / "peer.npz")
    peer_ids = json.loads((folder / "peer_ids.json").read_text())
    holds = True

    def gap(name: str, other: str) -> float:
        return float(abs(ours[name] - theirs[other]).max())

    for i, x in enumerate(ids):
        same = x.tolist() == peer_ids[i]  # pyright: ignore
        wide_gap = gap(f"logits_{i}_64", f"logits_{i}_64")
        rounding = gap(f"logits_{i}_32", f"logits_{i}_64")
        single, double = (theirs[f"logits_{i}_{bits}"] for bits in (32, 64))
        their_rounding = float(abs(single - double).max())
        holds &= same and wide_gap <= BOUND
        print(f"  smollm2, prompt {i}: {len(x)} ids, {'the same' if same else 'DIFFERENT'}")
        print(f"    max |Δ logit|, float64: {wide_gap:.1e}; largest logit {abs(double).max():.1f}")
        print(f"    float32 from their float64: ours {rounding:.1e}, theirs {their_rounding:.1e}")
    last, their_last = ours["logits_0_32"][-1], theirs["logits_0_64"][-1]
    best = int(np.argmax(last))
    holds &= best == int(np.argmax(their_last))
    print(f"  {PROMPTS[0]!r} → {tokenizer.decode([best])!r}")
    for token in np.argsort(-their_last)[:5].tolist():
        print(f"    token {token}: theirs {their_last[token]:.6f}, ours {last[token]:.6f}")
    return holds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python with torch and transformers")
    parser.add_argument("--folder", type=Path, help="where files are exchanged; new or empty")
    parser.add_argument("--as-peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_peer:
        as_peer(options.folder)
        sys.exit(0)
    if options.peer is None:
        parser.error("--peer PYTHON is needed")
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(0 if main(options.folder or Path(temporary), options.peer) else 1)
