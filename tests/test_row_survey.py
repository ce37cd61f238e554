"""What a run would read, counted by hand; the command plan shows it and decodes no picture."""

import dataclasses
import json

import pytest
from test_picture_training import of_data, places_of, row, written
from test_templates import trained

from dfm_jax import cli
from dfm_jax.data import pictures
from dfm_jax.data.packages import pillow
from dfm_jax.data.pictures import picture_size, read_picture
from dfm_jax.training.config import to_json
from dfm_jax.training.conversation_rows import read_conversation_rows
from dfm_jax.training.row_survey import survey_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two pictures, one of them wide, and five rows; the folder has a tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    trained(folder, "bytes")
    (folder / "images").mkdir()
    pillow().new("RGB", (24, 24), "red").save(folder / "images" / "a.png")
    pillow().new("RGB", (96, 24), "blue").save(folder / "images" / "wide.png")
    rows = [
        row("What color?", "red", image="a.png"),
        row("Is it red?", "yes", image="a.png"),
        row("What color?", "blue", image="wide.png"),
        row("Which?", "the second", image=["a.png", "wide.png"]),
        row("What is blue?", "a color"),
    ]
    written(folder / "rows.jsonl", rows)
    return folder


@pytest.mark.parametrize("fit", ["crop", "tiles"])
def test_counts_are_those_of_the_rows_that_train_would_read(fit, data):
    config = of_data(data, max_pictures=9)
    assert config.pictures is not None
    processor = dataclasses.replace(config.pictures.processor, fit=fit, max_tiles=4)
    config = of_data(data, max_pictures=9, processor=processor, num_positions=400)
    places = places_of(data, data / f"pixels {fit}")
    read = read_conversation_rows(data / "rows.jsonl", config, places).rows
    found = survey_rows(data / "rows.jsonl", config, images=data / "images", tokenizer=data)
    assert (found.rows, found.an_epoch, found.without) == (5, 5, 1)
    assert (found.pictures, found.absent, found.faults) == (2, 0, ())
    assert found.lengths is not None
    lengths = [len(one.tokens) for one in read]
    assert found.lengths.tokens == pytest.approx(sum(lengths) / 5)
    assert found.lengths.learnt == pytest.approx(sum(one.learnt.sum() for one in read) / 5)
    assert (found.lengths.longest, found.lengths.too_long) == (max(lengths), 0)
    assert (found.lengths.rows, found.lengths.sequences) == (5, 1)
    assert max(one.num_pictures for one in read) == (2 if fit == "crop" else 6)


def test_packed_rows_share_sequences(data):
    config = of_data(data, max_pictures=9, packed=True, num_positions=4000)
    found = survey_rows(data / "rows.jsonl", config, images=data / "images", tokenizer=data)
    assert found.lengths is not None
    assert found.lengths.sequences == 1 / 5


def test_rows_that_do_not_fit_are_counted(data):
    config = of_data(data, max_pictures=1, num_positions=20)
    found = survey_rows(data / "rows.jsonl", config, images=data / "images", tokenizer=data)
    assert found.lengths is not None
    assert (found.lengths.too_long, found.lengths.too_many) == (5, 1)


def test_faults_of_files_and_of_texts_are_named(data, tmp_path):
    rows = [
        row("What?", "red", image="a.png"),
        row("What?", "red", image="absent.png"),
        row("What?", "red</s>"),
    ]
    path = written(tmp_path / "rows.jsonl", rows)
    found = survey_rows(path, of_data(data), images=data / "images", tokenizer=data)
    assert (found.rows, found.pictures, found.absent) == (3, 1, 1)
    first, second = found.faults
    assert first.startswith(f"{path}, line 2: `image` must be a file in the folder of images")
    assert "line 3: Turn 2 of line 3 must not contain a special token" in second
    assert survey_rows(path, of_data(data), images=data / "images").lengths is None


def test_repeats_and_a_sample(data):
    sets = {"one": {"annotation": "rows.jsonl", "root": "images", "repeat_time": 3}}
    path = data / "sets.json"
    path.write_text(json.dumps(sets))
    found = survey_rows(path, of_data(data), images=None, tokenizer=data, most=2)
    assert (found.rows, found.an_epoch) == (5, 15)
    assert found.lengths is not None
    assert found.lengths.rows == 2


@pytest.mark.parametrize("kind", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_header_says_the_size_of_the_upright_picture(kind, orientation, tmp_path):
    exif = pillow().Exif()
    exif[274] = orientation
    path = tmp_path / f"a.{kind}"
    pillow().new("RGB", (12, 7), "red").save(path, exif=exif)
    assert picture_size(path) == read_picture(path).shape[:2]


def test_a_header_that_cannot_be_read_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png must be a picture that can be read; got another"):
        picture_size(path)
    pillow().new("RGB", (64, 64)).save(path)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(ValueError, match="it has 4,096 pixels, more than 4,095"):
        picture_size(path)


# ── the command ─────────────────────────────────────────────────────────────────────────────────


def test_the_plan_shows_it_and_decodes_nothing(data, tmp_path, capsys, monkeypatch):
    def never(*_):
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(pictures, "_upright", never)
    config = of_data(data, max_pictures=4, num_positions=400, batch_size=2, num_steps=5)
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    words = ["plan", "--config", str(tmp_path / "config.json"), "--data", str(data / "rows.jsonl")]
    assert cli.main([*words, "--tokenizer", str(data)]) == 0
    said = capsys.readouterr().out
    assert "pictures      2 files; 0 that rows name are not there; 1 rows have none" in said
    assert "tokens in a row" in said
    assert "epoch         about 5 sequences, 2.5 updates; 2.00 epochs in all" in said
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "lengths       not known without a tokenizer (--tokenizer, or that of --init)" in said
    assert cli.main([*words, "--images", str(data / "none")]) == 0
    assert "data          cannot be read: `images` must be a folder" in capsys.readouterr().out
    assert cli.main(["plan", "--config", "tiny", "--images", str(data / "images")]) == 2
    assert (
        "`images` must not be given, because the config has no `pictures`"
        in capsys.readouterr().err
    )
