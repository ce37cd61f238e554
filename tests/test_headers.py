"""Headers that claim a little more than is there: refused before anything is read or made room for.

Every input is harmless: what it claims is a little more than it holds.
"""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest

from dfm_jax.data.arrays import read_npy_file, read_npz_file
from dfm_jax.data.arrays import read_tensors as read_safetensors
from dfm_jax.data.features import read_features
from dfm_jax.models.pretrained.gguf_file import check_gguf_header
from dfm_jax.models.weight_files import check_pickle, check_safetensors_header, read_tensors
from dfm_jax.partition.read import read_weights

# ── GGUF ────────────────────────────────────────────────────────────────────────────────────────

UINT8, UINT32, TEXT, LIST, UINT64 = 0, 4, 8, 9, 10


def text(value, length=None):
    return struct.pack("<Q", len(value) if length is None else length) + value.encode()


def field(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def listed(kind, count, *values):
    return struct.pack("<IQ", kind, count) + b"".join(values)


def tensor(name="w", shape=(4,), kind=0, offset=0, num_dims=None):
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    axes = struct.pack("<I", len(shape) if num_dims is None else num_dims)
    return text(name) + axes + dims + struct.pack("<IQ", kind, offset)


def gguf_file(fields=(), tensors=(), *, version=3, num_fields=None, num_tensors=None, data=16):
    counts = [len(tensors) if num_tensors is None else num_tensors]
    counts += [len(fields) if num_fields is None else num_fields]
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*fields, *tensors])
    return head + bytes(-len(head) % 32) + bytes(data)


GGUF = {
    "another beginning": (b"GGML" + bytes(40), "does not begin with GGUF"),
    "cut short": (b"GGUF\3", "claims 4 bytes at byte 4, and 1 bytes are left"),
    "another version": (gguf_file(version=1), "its version is 1"),
    "big-endian": (gguf_file(version=3 << 24), "its version is 50331648"),
    "more fields": (gguf_file(num_fields=9), "claims 9 fields at byte 24, and .* are left"),
    "more tensors": (gguf_file(num_tensors=3), "claims 3 tensors at byte 24, and"),
    "a longer name": (gguf_file([text("a", 99) + bytes(8)]), "claims 99 bytes"),
    "a longer text": (gguf_file([field("a", TEXT, text("b", 99))]), "claims 99 bytes"),
    "a longer list": (
        gguf_file([field("a", LIST, listed(UINT64, 99))]),
        "claims 99 entries of `a`",
    ),
    "a longer list of texts": (
        gguf_file([field("a", LIST, listed(TEXT, 99, text("b")))]),
        "claims 99 entries of `a`",
    ),
    "a longer text in a list": (
        gguf_file([field("a", LIST, listed(TEXT, 1, text("b", 99)))]),
        "claims 99 bytes of a text in `a`",
    ),
    "lists in a list": (
        gguf_file([field("a", LIST, listed(LIST, 1, listed(UINT8, 1, b"\0")))]),
        "`a` holds lists within a list",
    ),
    "an unknown type": (gguf_file([field("a", 13, b"")]), "`a` is of the unknown type 13"),
    "an alignment": (
        gguf_file([field("general.alignment", UINT32, struct.pack("<I", 24))]),
        "is 24, which is not a power of two",
    ),
    "more axes": (gguf_file((), [tensor(num_dims=5)]), "has 5 axes, more than 4"),
    "a larger tensor": (gguf_file((), [tensor(shape=(5,))]), "tensor 'w' ends at .* of"),
    "a later tensor": (gguf_file((), [tensor(offset=1)]), "tensor 'w' ends at"),
    "an unknown kind": (gguf_file((), [tensor(kind=999)]), "is of the unknown type 999"),
}


@pytest.mark.parametrize(("content", "words"), GGUF.values(), ids=GGUF)
def test_a_gguf_header_is_held_against_its_file(content, words, tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        check_gguf_header(tmp_path / "a.gguf")


def test_a_gguf_header_that_tells_the_truth_is_taken(tmp_path):
    pytest.importorskip("gguf")
    fields = [
        field("a", LIST, listed(TEXT, 2, text("b"), text(""))),
        field("b", LIST, listed(UINT8, 3, b"abc")),
        field("general.alignment", UINT32, struct.pack("<I", 32)),
    ]
    (tmp_path / "a.gguf").write_bytes(gguf_file(fields, [tensor(), tensor("v", (), 0, 12)]))
    check_gguf_header(tmp_path / "a.gguf")


def test_millions_of_entries_are_refused(tmp_path, monkeypatch):
    """The package makes an array of each: a hundred times the file."""
    monkeypatch.setattr("dfm_jax.models.pretrained.gguf_file._MOST_ENTRIES", 5)
    lists = [field(name, LIST, listed(UINT8, 3, b"abc")) for name in "ab"]
    (tmp_path / "a.gguf").write_bytes(gguf_file(lists))
    with pytest.raises(ValueError, match="its lists hold more than 5 entries"):
        check_gguf_header(tmp_path / "a.gguf")


# ── safetensors ─────────────────────────────────────────────────────────────────────────────────

ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def safetensors_file(header, data=16, length=None):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + bytes(data)


SAFETENSORS = {
    "cut short": (b"\1\2", "its header claims"),
    "a longer header": (safetensors_file({}, length=99), "its header claims 99 bytes, and 18"),
    "no JSON": (safetensors_file(b"{a"), "its header cannot be read: "),
    "a name twice": (safetensors_file(b'{"a": 1, "a": 2}'), "'a' comes twice"),
    "nested": (safetensors_file(b"[" * 101 + b"]" * 101), "nested more than 100"),
    "a list": (safetensors_file([]), "its header is not a JSON object"),
    "a larger shape": (
        safetensors_file({"a": ENTRY | {"shape": [2, 3]}}),
        r"claims \[2, 3\] of F32",
    ),
    "a larger place": (safetensors_file({"a": ENTRY | {"data_offsets": [0, 20]}}), "claims"),
    "a place beyond": (
        safetensors_file({"a": ENTRY | {"shape": [5], "data_offsets": [0, 20]}}),
        "do not lie side by side",
    ),
    "a gap": (safetensors_file({"a": ENTRY | {"data_offsets": [4, 20]}}, 20), "side by side"),
    "the same place twice": (safetensors_file({"a": ENTRY, "b": ENTRY}), "side by side"),
    "bytes behind": (safetensors_file({"a": ENTRY}, 17), "side by side"),
    "a negative size": (safetensors_file({"a": ENTRY | {"shape": [-2, -2]}}), "does not say"),
    "another dtype": (safetensors_file({"a": ENTRY | {"dtype": "F33"}}), "of an unknown dtype"),
    "no shape": (safetensors_file({"a": {"dtype": "F32"}}), "does not say the dtype, shape"),
}


@pytest.mark.parametrize(("content", "words"), SAFETENSORS.values(), ids=SAFETENSORS)
def test_a_safetensors_header_is_held_against_its_file(content, words, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.safetensors must hold safetensors; .*{words}"):
        check_safetensors_header(path)
    with pytest.raises(ValueError, match=words):
        read_safetensors(path, ["a"])


def test_a_safetensors_header_that_tells_the_truth_is_taken(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_file({"a": ENTRY, "__metadata__": {"format": "pt"}}))
    assert read_safetensors(path, ["a"])["a"].shape == (2, 2)


# ── NumPy ───────────────────────────────────────────────────────────────────────────────────────


def npy(shape=(3, 2), data=24, descr="<f4"):
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(data)


def test_an_npy_header_is_held_against_its_file(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(npy(data=0) + np.ones((3, 2), np.float32).tobytes())
    assert read_features(path, num_rows=3).features.shape == (3, 2)
    for content, words in (
        (npy((4, 2)), r"claims \(4, 2\) of float32, which are 32 bytes, and 24 are there"),
        (npy(data=25), "claims .* and 25 are there"),
        (npy(data=23), "claims .* and 23 are there"),
        (npy((3,), 24, "|O"), "holds Python objects"),
    ):
        path.write_bytes(content)
        for read in (read_npy_file, lambda p: read_features(p, num_rows=3)):
            with pytest.raises(ValueError, match=words):
                read(path)
        with pytest.raises(ValueError, match=f"`weights` must be an .npy file.*{words}"):
            read_weights(path, 3)
    with pytest.raises(FileNotFoundError):
        read_features(tmp_path / "none.npy", num_rows=3)


def test_an_archive_of_arrays_is_held_against_its_file(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", npy((4, 2)))
    with pytest.raises(ValueError, match=r"claims \(4, 2\)"):
        read_features(path, num_rows=3)
    np.savez_compressed(path, features=np.zeros((5000, 8), np.float32), rows=np.arange(5000))
    with pytest.raises(ValueError, match=r"'features' claims .* bytes in"):
        read_features(path, num_rows=5000)
    np.savez_compressed(path, features=np.eye(8, dtype=np.float32), rows=np.arange(8))
    assert read_npz_file(path, ["features"])["features"].shape == (8, 8)


# ── pickles ─────────────────────────────────────────────────────────────────────────────────────


def nested(depth, begin=b"\x80\x02)", step=b"\x85", end=b"."):
    return begin + step * depth + end  # the empty tuple, in a tuple, in a tuple


PICKLES = {
    "a number of the memo": (
        b"\x80\x02)r" + struct.pack("<I", 999) + b".",
        "the number 999",
    ),
    "a longer text": (b"\x80\x02X" + struct.pack("<I", 99) + b"abc.", "99"),
    "nested tuples": (nested(40), "nested too deeply"),
    "nested lists": (b"\x80\x02" + b"]" * 41 + b"a" * 40 + b".", "nested too deeply"),
    "shared by twos": (b"\x80\x02)" + b"2\x86" * 20 + b".", "nested too deeply"),
}


@pytest.mark.parametrize(("content", "words"), PICKLES.values(), ids=PICKLES)
def test_a_pickle_is_walked_through_before_it_is_loaded(content, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        check_pickle(io.BytesIO(content))
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(
        ValueError, match=f"a.pth must hold tensors alone; got a damaged file: .*{words}"
    ):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_data_is_taken(protocol):
    value = {"a": [(1, 2.5, "é"), {"b": None}] * 300, "c": (True, b"x", {3}), "d": 10**30}
    file = io.BytesIO(pickle.dumps(value, protocol) + b"rest")
    check_pickle(file)
    assert pickle.Unpickler(file).load() == value
    assert file.read() == b"rest"
