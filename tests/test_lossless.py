"""A tokenizer must be a code of the text: nothing lost, nothing drawn, no id beyond V."""

import itertools
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from dfm_jax import cli
from dfm_jax.data.tokens import Tokenizer, encode_texts, load_tokenizer, map_tokens, split_held_out
from dfm_jax.models.pretrained import read_tokenizer
from dfm_jax.training.texts import Generator, sampled_ids

TEXTS = [" ".join(f"Wave quick {i * j % 7}" for j in range(60)) for i in range(12)]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(*, alphabet=ALPHABET, texts=TEXTS):
    pieces = tokenizers.Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    pieces.train_from_iterator(texts, trainer)
    return pieces


def saved(path, pieces):
    pieces.save(str(path))
    return path


def test_three_files_of_one_vocabulary_give_one_and_the_same_tokens(tmp_path):
    """What a published file says about lengths made 0.085 nats per byte of 0.845."""
    pieces, sets = byte_level(), {}
    for name in ("plain", "truncated", "padded"):
        pieces.no_truncation()
        pieces.no_padding()
        if name == "truncated":
            pieces.enable_truncation(16)
        if name == "padded":
            pieces.enable_padding(length=1024)
        path = saved(tmp_path / f"{name}.json", pieces)
        assert len(pieces.encode(TEXTS[1]).ids) in {"truncated": [16], "padded": [1024]}.get(
            name, range(17, 1024)
        )
        sets[name] = encode_texts(TEXTS, load_tokenizer(path))
    assert sets["plain"].num_bytes.tolist() == [len(text) for text in TEXTS]
    assert sets["plain"].digest == sets["truncated"].digest == sets["padded"].digest


def with_normalizer(normalizer):
    pieces = byte_level()
    pieces.normalizer = normalizer
    return pieces


def unknown_words():
    pieces = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    return pieces


def metaspace():
    """SentencePiece as tokenizer.json has it: a space is ▁, and one stands before the text."""
    symbols = {c: i for i, c in enumerate("▁WavequickÉ \n☂")}
    pieces = tokenizers.Tokenizer(models.BPE(symbols, []))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Metaspace()
    return pieces


@pytest.mark.parametrize(
    ("make", "text", "fault"),
    [
        (
            lambda: byte_level(alphabet=[], texts=["ave "]),
            "Wave",
            r"\[0\] = 'a' for 'W'",
        ),
        (lambda: with_normalizer(normalizers.Lowercase()), "aWave", r"\[1\] = 'w' for 'W'"),
        (lambda: with_normalizer(normalizers.NFC()), "xe\u0301", r"\[1\] = 'é' for 'e'"),
        (lambda: with_normalizer(normalizers.Strip()), "a ", r"\[1\] = the end for ' '"),
        (unknown_words, "a", None),
        (unknown_words, "b", r"\[0\] = '.' for 'b'"),
        (metaspace, "Wave  quick ", None),
        (metaspace, " Wave", r"\[0\] = 'W' for ' '"),  # as "Wave" is encoded
        (metaspace, "Wave▁", r"\[4\] = ' ' for '▁'"),
        (byte_level, "a\ud800", "half a surrogate pair"),
        (byte_level, "zwölf ☂ \ufffd \x00", None),
    ],
)
def test_a_text_comes_back_or_is_refused_with_its_name_and_place(make, text, fault, tmp_path):
    tokenizer = load_tokenizer(saved(tmp_path / "tokenizer.json", make()))
    if fault is None:
        assert tokenizer.decode(encode_texts([text], tokenizer).tokens.tolist()) == text
        return
    with pytest.raises(ValueError, match=f"^Document b.txt: .*{fault}"):
        encode_texts(["", text], tokenizer, names=["a.txt", "b.txt"])
    with pytest.raises(ValueError, match=fault):  # a prompt, too
        sampled_ids(Generator((), (), None, tokenizer), text)
    with pytest.raises(ValueError, match=fault):
        read_tokenizer(tmp_path).encode(text)


def test_a_special_token_in_a_text_is_that_token_and_comes_back(tmp_path):
    pieces = byte_level()
    pieces.add_special_tokens(["<|endoftext|>"])
    tokenizer = load_tokenizer(saved(tmp_path / "tokenizer.json", pieces))
    ids = tokenizer.encode("Wave<|endoftext|>quick")
    assert tokenizer.special["<|endoftext|>"] in ids
    assert tokenizer.decode(ids) == "Wave<|endoftext|>quick"


def test_a_file_that_draws_is_refused(tmp_path):
    described = json.loads(byte_level().to_str())
    described["model"]["dropout"] = 0.1
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"`dropout` of the tokenizer in .*json must be 0"):
        load_tokenizer(path)


def test_v_is_beyond_the_largest_id_where_ids_leave_gaps(tmp_path):
    pieces = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    assert load_tokenizer(saved(tmp_path / "t.json", pieces)).num_tokens == 8


COUNT = itertools.count()


def own(encode, decode=lambda ids: bytes(ids).decode(), num_tokens=256):
    return Tokenizer(encode, decode, num_tokens)


@pytest.mark.parametrize(
    ("tokenizer", "fault"),
    [
        (own(lambda text: [300 for _ in text]), r"ids in \[0, 255\], because its V is 256"),
        (own(lambda text: [-1 for _ in text]), r"got encode\(text\)\[0\] = -1"),
        (own(lambda text: [0.5 for _ in text]), "a list of integers"),
        (own(lambda text: text.lower().encode()), r"\[0\] = 'w' for 'W'"),
        (own(lambda text: list(text.encode())[:-1]), r"\[4\] = the end for 's'"),
        (own(lambda text: [*text.encode(), *[0] * next(COUNT)]), "draw"),
    ],
)
def test_a_tokenizer_of_ones_own_goes_through_the_same(tokenizer, fault, tmp_path):
    if fault == "draw":  # zeros that mean nothing, a number of them that changes
        tokenizer = tokenizer._replace(decode=lambda ids: bytes(ids).decode().rstrip("\0"))
    with pytest.raises(ValueError, match=f"^Document 0: .*{fault}"):
        encode_texts(["Waves"], tokenizer)
    (tmp_path / "texts.txt").write_text("Waves")
    with pytest.raises(ValueError, match=rf"^Document .*texts.txt: .*{fault}"):
        map_tokens(tmp_path / "texts.txt", tmp_path / "t", tokenizer, name="own", share=0.0)
    assert not (tmp_path / "t").exists()


def test_on_the_command_line_it_is_one_line(tmp_path, capsys):
    path = saved(tmp_path / "tokenizer.json", with_normalizer(normalizers.Lowercase()))
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{number:02d}.txt").write_text(text)
    words = ["train", "--config", "tiny", "--data", str(tmp_path / "texts"), "--run"]
    words += [str(tmp_path / "run"), "--tokenizer", str(path), "--set"]
    num_tokens = load_tokenizer(path).num_tokens
    sizes = [f"model.num_tokens={num_tokens}", f"model.num_states={num_tokens + 1}"]
    assert cli.main([*words, *sizes]) == 2
    first = next(i for i, text in enumerate(TEXTS) if text in split_held_out(TEXTS, 0.1)[0])
    said = capsys.readouterr().err
    assert (
        f"train: Document {tmp_path}/texts/{first:02d}.txt: `decode` of a tokenizer must return"
        in said
    )
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_what_is_measured_in_bytes_is_the_text(tmp_path):
    """Σ bytes of the tokens of a document = its bytes, whatever the tokens are."""
    tokenizer = load_tokenizer(saved(tmp_path / "tokenizer.json", byte_level()))
    found = encode_texts(["zwölf ☂", *TEXTS], tokenizer)
    for d, size in enumerate(found.num_bytes):
        ids = found.tokens[found.offsets[d] : found.offsets[d + 1]]
        assert len(tokenizer.decode(ids.tolist()).encode()) == size
    assert found.tokens.dtype == np.int32
