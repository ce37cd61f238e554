#!/usr/bin/env bash
# tokenizers: the settings of somebody's batch are kept in tokenizer.json, and cut every text.
#
# One would guess that a tokenizer.json holds what turns text into ids: a vocabulary, merges, a
# normal form. Length is a matter of the batch, so `encode` of the loaded file encodes a whole text.
# What happens: truncation, padding and the dropout of merges that were set when the file was saved
# are in the file, and in force for whoever loads it. `encode` cuts a text, or pads it, or gives other
# ids each time it is called, without a word.
# Who is hurt: whoever measures nats per byte. A text cut to its first 8 tokens has few nats over all
# its bytes, and the model looks excellent. Published checkpoints carry such settings. (dfm_jax drops
# truncation and padding, refuses dropout, and compares each text with what its ids decode to.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check tokenizers==0.23.3
cd "$folder"
venv/bin/python - <<'PYTHON'
import tokenizers
from tokenizers import Tokenizer, models

print("tokenizers", tokenizers.__version__)
letters = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
text = "decentralized"


def reloaded(pieces):
    pieces.save("tokenizer.json")
    return Tokenizer.from_file("tokenizer.json")


cut = Tokenizer(models.BPE(letters, []))
cut.enable_truncation(8)
num_cut = len(reloaded(cut).encode(text).ids)

padded = Tokenizer(models.BPE(letters, []))
padded.enable_padding(length=20)
num_padded = len(reloaded(padded).encode(text).ids)

merges = [("d", "e"), ("c", "e"), ("n", "t"), ("r", "a"), ("l", "i"), ("de", "ce"), ("z", "e")]
vocabulary = letters | {a + b: 26 + i for i, (a, b) in enumerate(merges)}
drawing = reloaded(Tokenizer(models.BPE(vocabulary, merges, dropout=0.5)))
codes = {tuple(drawing.encode(text).ids) for _ in range(50)}

print(f"{len(text)} letters; with the truncation of the file {num_cut} ids, with its padding {num_padded}")
print(f"with its dropout {'one code' if len(codes) == 1 else 'several codes'} of one text in 50 calls")
assert (num_cut, num_padded) == (8, 20) and len(codes) > 1, "this has changed"
PYTHON
