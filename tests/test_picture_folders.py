"""Folders and rows of networks that read pictures, each bad in one way: one sentence, nothing made.

More image tokens than a picture has features are refused in `test_families.py`.
"""

import json

import pytest
from parity import families_fixture, processors_fixture
from safetensors.numpy import save_file
from test_families import natively_saved
from test_picture_training import of_data, row, written
from test_templates import trained

from dfm_jax import cli
from dfm_jax.data.packages import pillow
from dfm_jax.data.processors import processor_settings
from dfm_jax.models.pretrained import open_folder
from dfm_jax.training.config import to_json
from dfm_jax.training.presets import PRESETS
from dfm_jax.training.pretrained import with_network_of

KINDS = json.loads(families_fixture.FIXTURE.read_text())["kinds"]
CROP = json.loads(processors_fixture.FIXTURE.read_text())["processors"]["crop"]["settings"]
OF_CLIP = CROP | {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}


@pytest.fixture
def work(tmp_path):
    """One picture, one conversation about it, and the tokenizer of both templates."""
    (tmp_path / "images").mkdir()
    pillow().new("RGB", (24, 24)).save(tmp_path / "images" / "a.png")
    written(tmp_path / "rows.jsonl", [row("<image>\nWhat?", "red", image="a.png")])
    trained(tmp_path, "bytes")
    return tmp_path


def saved(folder, kind, *, more=None, processor=OF_CLIP, parts=1):
    """A folder of the fixture's weights in so many files, with a processor of pictures."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(KINDS[kind]["config"]))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    tensors = families_fixture.weights(KINDS[kind]["shapes"]) | (more or {})
    names = list(tensors)
    if parts == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    files = {f"model-{i + 1}-of-{parts}.safetensors": names[i::parts] for i in range(parts)}
    for file, own in files.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in files.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def refusal(work, capsys, *words):
    """The one line of a command that is refused and leaves nothing."""
    there = set(work.rglob("*"))
    assert cli.main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert set(work.rglob("*")) == there
    return line


def train_from(work, folder, preset="llava-1.5-7b"):
    words = ["train", "--config", preset, "--init", str(folder), "--run", str(work / "run")]
    return [*words, "--data", str(work / "rows.jsonl"), "--images", str(work / "images")]


# ── folders ─────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_shard_is_named(work, capsys):
    folder = saved(work / "llava", "llava", parts=3)
    (folder / "model-2-of-3.safetensors").unlink()
    said = refusal(work, capsys, *train_from(work, folder))
    assert "`path` must be a folder that holds model-2-of-3.safetensors; got path = " in said


def test_a_shard_of_another_checkpoint_is_named_by_its_tensors(work, capsys):
    folder = saved(work / "llava", "llava", parts=2)
    save_file(
        {"stranger": families_fixture.weights({"x": [2]})["x"]}, folder / "model-2-of-2.safetensors"
    )
    said = refusal(work, capsys, *train_from(work, folder))
    assert "must hold the tensors that model.safetensors.index.json lists, and no other" in said


def test_a_head_that_only_its_config_ties_is_refused(work, capsys):
    embedding = families_fixture.weights(KINDS["internvl"]["shapes"])[
        "language_model.model.embed_tokens.weight"
    ]
    folder = saved(work / "internvl", "internvl", more={"lm_head.weight": embedding + 1})
    said = refusal(work, capsys, *train_from(work, folder, "internvl2.5-1b"))
    assert "`language_model.lm_head.weight` of " in said
    assert "must equal the embedding, as `tie_word_embeddings` says" in said


def test_a_folder_without_its_processor_is_told_from_one_of_another_size(work, capsys):
    folder = saved(work / "llava", "llava", processor=None)
    said = refusal(work, capsys, *train_from(work, folder))
    rule = f"`processor.size` must be that of the tower of {folder}, which is 24"
    assert f"{rule}; got processor.size = 336." in said
    assert said.endswith("The folder has no preprocessor_config.json, which would say it.")


def test_a_clip_without_its_processor_makes_no_partition(work, capsys):
    folder = saved(work / "clip", "clip", processor=None)
    words = ["partition", "--input", str(work / "rows.jsonl"), "--num-experts", "1"]
    words += ["--encoder", "clip", "--clip", str(folder), "--images", str(work / "images")]
    said = refusal(work, capsys, *words, "--out", str(work / "parts"))
    assert "`folder` must hold preprocessor_config.json, which says how a picture becomes" in said


def test_a_processor_that_is_not_known_is_named(work, capsys):
    other = {"image_processor_type": "ViTImageProcessor"}
    folder = saved(work / "llava", "llava", processor=other)
    said = refusal(work, capsys, *train_from(work, folder))
    assert "`image_processor_type` of " in said
    assert "got image_processor_type = 'ViTImageProcessor'" in said


def test_the_authors_internvl_keeps_the_processor_of_the_config(tmp_path):
    """Its own file says a crop, which its authors' code never makes: that stretches."""
    folder = natively_saved(tmp_path / "native", "internvl")
    said = {"crop_size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True}
    said |= {"feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    config = PRESETS["internvl2.5-1b"]
    assert config.pictures is not None
    with pytest.raises(ValueError, match=r"which is 32; got processor\.size = 448\.$"):
        with_network_of(config, open_folder(folder))
    plain = saved(tmp_path / "plain", "internvl", processor=None)
    stretched = processor_settings(config.pictures.processor)
    stretched |= {"size": {"height": 32, "width": 32}}
    (plain / "preprocessor_config.json").write_text(json.dumps(stretched))
    small = with_network_of(config, open_folder(plain))
    assert small.pictures is not None
    assert small.pictures.processor.fit == "stretch"
    kept = with_network_of(small, open_folder(folder))
    assert kept.pictures is not None
    assert kept.pictures.processor == small.pictures.processor


# ── templates, rows, questions ──────────────────────────────────────────────────────────────────


def test_an_unknown_template_is_refused(work, capsys):
    words = [*train_from(work, work), "--set", "pictures.template=vicuna"]
    place = words.index("--init")
    said = refusal(work, capsys, *words[:place], *words[place + 2 :])
    assert "`template` must be one of llava-1.5, internvl2.5; got template = 'vicuna'." in said


ROWS = {
    "more image tokens than pictures": (
        row("<image> <image> What?", "red", image="a.png"),
        "the turns must say <image> once for each picture; got 2 for pictures = 1",
    ),
    "fewer image tokens than pictures": (
        row("<image> What?", "red", image=["a.png", "a.png"]),
        "the turns must say <image> once for each picture; got 1 for pictures = 2",
    ),
    "image tokens without a picture": (
        row("<image> What?", "red"),
        "`image` must be given if a turn says <image>; got image = None",
    ),
    "an image token in an answer": (
        row("What?", "<image> red", image="a.png"),
        "an answer must not say <image>, because it has no picture",
    ),
}


@pytest.mark.parametrize(("bad", "message"), ROWS.values(), ids=ROWS)
def test_a_row_with_other_pictures_than_it_says_is_refused(bad, message, work, capsys):
    written(work / "rows.jsonl", [bad])
    (work / "config.json").write_text(json.dumps(to_json(of_data(work))))
    words = ["train", "--config", str(work / "config.json"), "--tokenizer", str(work)]
    words += ["--run", str(work / "run"), "--data", str(work / "rows.jsonl")]
    assert cli.main([*words, "--images", str(work / "images")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(f"rows.jsonl: 1 fault in 1 rows line 1: {message}")
