"""Documents as tokens: what is read, what is held out, and where each byte goes."""

import json

import numpy as np
import pytest

from dfm_jax.data.tokens import byte_tokenizer, encode_texts, map_tokens, read_texts, split_held_out

TEXTS = ["one", "", "zwölf ☂", "three\n"]


def test_bytes_there_and_back():
    pieces = byte_tokenizer()
    for text in TEXTS:
        assert pieces.decode(list(pieces.encode(text))) == text
    assert pieces.decode([0xFF, 65]) == "\ufffdA"


def test_documents_lie_behind_one_another():
    tokens = encode_texts(TEXTS, byte_tokenizer())
    assert tokens.tokens.dtype == np.uint8
    assert tokens.offsets.tolist() == [0, 3, 3, 13, 19]
    assert tokens.num_bytes.tolist() == [3, 0, 10, 6]
    for number, text in enumerate(TEXTS):
        first, last = tokens.offsets[number : number + 2]
        assert bytes(tokens.tokens[first:last]).decode() == text


def test_the_digest_is_of_tokens_offsets_and_byte_counts():
    pieces = byte_tokenizer()
    digests = [encode_texts(texts, pieces).digest for texts in (["ab", "c"], ["a", "bc"], ["ab"])]
    assert len(set(digests)) == 3
    same = encode_texts(["ab", "c"], pieces)
    assert same.digest == digests[0]
    assert same._replace(num_bytes=same.num_bytes + 1).digest != digests[0]


def test_a_folder_a_file_and_rows(tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("second")
    (folder / "a.txt").write_text("first")
    (folder / "deep" / "c.txt").write_text("third")
    assert read_texts(folder) == ["first", "second", "third"]
    assert read_texts(folder / "a.txt") == ["first"]
    rows = [
        {"text": "plain"},
        {"conversations": [{"from": "human", "value": "why"}, {"from": "gpt", "value": "so"}]},
        {"conversations": [{"from": "document", "value": "as `partition` writes files"}]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = ["plain", "human: why\ngpt: so\n", "as `partition` writes files"]
    assert read_texts(path) == expected
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert read_texts(tmp_path / "rows.json") == expected


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"text": 3},
        {"conversations": []},
        {"conversations": [{"from": "human"}]},
        {"conversations": [{"from": "human", "value": 3}]},
    ],
)
def test_a_row_without_text_is_named_by_its_line(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "good"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: the row must have `text`"):
        read_texts(path)


def test_what_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"bad.txt must be a text in UTF-8; got other bytes"):
        read_texts(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`data` must be a folder that holds a file; got data = "):
        read_texts(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"bad.txt must be a text in UTF-8"):
        read_texts(tmp_path / "bad.txt")
    with pytest.raises(ValueError, match="`data` must be a folder or a file"):
        read_texts(tmp_path / "nowhere")


def mapped(tmp_path, *, share=0.4):
    return map_tokens(
        tmp_path / "texts", tmp_path / "tokens", byte_tokenizer(), name="bytes", share=share
    )


@pytest.fixture
def files(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(12):
        (tmp_path / "texts" / f"{number:02d}.txt").write_text(f"document {number} " * number)
    return tmp_path


def test_on_the_disk_they_are_the_same_tokens(files):
    texts = split_held_out(read_texts(files / "texts"), 0.4)
    for found, side in zip(mapped(files), texts, strict=True):
        expected = encode_texts(side, byte_tokenizer())
        assert isinstance(found.tokens, np.memmap)
        for left, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype
        assert found.digest == expected.digest


def test_they_are_written_once_and_anew_when_what_they_are_made_of_changes(files):
    mapped(files)
    written = (files / "tokens" / "manifest.json").stat().st_mtime_ns
    mapped(files)
    assert (files / "tokens" / "manifest.json").stat().st_mtime_ns == written
    (files / "texts" / "03.txt").write_text("another")
    train, held_out = mapped(files)
    assert b"another" in bytes(train.tokens) + bytes(held_out.tokens)
    assert len(mapped(files, share=0.0).held_out.tokens) == 0


def test_damaged_or_half_written_tokens_are_not_used(files):
    digest = mapped(files).train.digest
    damage = r"train.tokens must be as it was written|The SHA-256 of .*train.offsets.npy must"
    for name, place in (("train.tokens", 5), ("train.offsets.npy", -1), ("train.offsets.npy", -9)):
        path = files / "tokens" / name
        whole = path.read_bytes()
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(ValueError, match=damage):
            mapped(files)
        path.write_bytes(whole)
    (files / "tokens").rename(files / "tokens.partial")  # as a kill in mid-write leaves it
    assert mapped(files).train.digest == digest


def test_what_is_held_out_is_a_function_of_each_text():
    texts = [f"document {i}" for i in range(400)]
    train, held = split_held_out(texts, 0.25)
    assert sorted(train + held) == sorted(texts)
    assert abs(len(held) - 100) < 40  # five standard deviations
    again_train, again_held = split_held_out([*texts[::-2], "another"], 0.25)
    assert set(again_held) - {"another"} <= set(held)
    assert set(again_train) - {"another"} <= set(train)
    assert split_held_out(texts, 0.0) == (texts, [])


def test_a_side_that_would_be_empty_is_refused():
    with pytest.raises(
        ValueError, match="`held_out` must be 0, or a share that holds out some of the 1 documents"
    ):
        split_held_out(["only one"], 0.1)
    with pytest.raises(ValueError, match=r"`share` must lie in \[0, 1\)"):
        split_held_out(TEXTS, 1.0)
