#!/usr/bin/env bash
# tokenizers: a byte-level vocabulary without all bytes drops characters of the text in silence.
#
# One would guess that a byte-level code is lossless, since every text is bytes; and that a byte
# which the vocabulary lacks is an error, or the unknown token.
# What happens: a byte that no token stands for is left out. The ids are those of another text. A
# trained vocabulary is like this unless `initial_alphabet` is given: the trainer takes the bytes that
# it sees, and no others.
# Who is hurt: whoever trains a tokenizer on one part of the data and measures nats per byte on
# another. The missing letters cost nothing, so the part that is spelled worst looks best. (dfm_jax
# decodes each text again, and refuses one that does not come back, naming the character.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

print("tokenizers", tokenizers.__version__)


def trained(**alphabet):
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, **alphabet)
    pieces.train_from_iterator(["a wave, a sail, a tide, a wave"] * 10, trainer)
    return pieces


text = "Wave quick, tide slow"
bare, whole = trained(), trained(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
back = bare.decode(bare.encode(text).ids)
print(f"{text!r} comes back as {back!r}; with initial_alphabet as {whole.decode(whole.encode(text).ids)!r}")
assert back != text and len(back) < len(text), "this has changed"
assert whole.decode(whole.encode(text).ids) == text, "this has changed"
PYTHON
