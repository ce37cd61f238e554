"""From conversations and pictures to scores: partition by CLIP, train, answer, score."""

import dataclasses
import json

import numpy as np
import pytest
from parity import families_fixture, processors_fixture
from PIL import Image
from safetensors.numpy import save_file
from test_picture_training import PICTURES, of_data, row, written
from test_templates import trained

from dfm_jax import cli
from dfm_jax.partition.route import hard_route, picture_router, route_features, soft_route
from dfm_jax.training.config import to_json
from dfm_jax.training.questions import read_picture_questions

COLORS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Pictures of two colors, conversations about them, a small random CLIP, and a partition."""
    work = tmp_path_factory.mktemp("work")
    (work / "images").mkdir()
    trained(work, "bytes")
    rng, rows = np.random.default_rng(0), []
    for number in range(16):
        name = list(COLORS)[number % 2]
        picture = np.clip(rng.normal(COLORS[name], 8, (24, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(work / "images" / f"{number}.png")
        rows.append(row("What is it?", name, image=f"{number}.png", id=number))
    written(work / "rows.jsonl", rows)
    clip, kind = work / "clip", json.loads(families_fixture.FIXTURE.read_text())["kinds"]["clip"]
    clip.mkdir()
    said = json.loads(processors_fixture.FIXTURE.read_text())["processors"]["crop"]["settings"]
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    (clip / "config.json").write_text(json.dumps(kind["config"]))
    (clip / "preprocessor_config.json").write_text(json.dumps(said | size))
    save_file(families_fixture.weights(kind["shapes"]), clip / "model.safetensors")
    words = ["partition", "--input", str(work / "rows.jsonl"), "--num-experts", "2"]
    words += ["--encoder", "clip", "--clip", str(clip), "--images", str(work / "images")]
    assert cli.main([*words, "--out", str(work / "parts")]) == 0
    return work


def asked(work, path, *more):
    rows = [
        {"question_id": number, "image": f"{number}.png", "text": "What is it?", "answer": name}
        for number, name in enumerate(["red", "blue"] * 8)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in [*rows, *more]))
    return path


def test_pictures_have_an_expert_and_a_weight_for_each(work):
    router = picture_router(work / "parts", clip=work / "clip")
    paths = [work / "images" / f"{number}.png" for number in (0, 1, 2, 0)]
    features = route_features(router, paths)
    assert features.shape == (4, 20)
    np.testing.assert_array_equal(features[0], features[3])
    chosen = hard_route(router, features)
    in_parts = [
        {json.loads(line)["id"] for line in path.read_text().splitlines()}
        for path in sorted((work / "parts").glob("expert_*/rows.jsonl"))
    ]
    for number, expert in zip((0, 1, 2, 0), chosen, strict=True):
        assert number in in_parts[expert]
    soft = soft_route(router, features, 21.8)
    np.testing.assert_allclose(np.exp(soft).sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(soft.argmax(axis=1), chosen)
    np.testing.assert_allclose(np.exp(soft_route(router, features, 0.0)), 0.5, rtol=1e-6)


def test_the_rule_and_its_encoder_are_asked_for_by_name(work, tmp_path):
    with pytest.raises(ValueError, match="`clip` must be given if the encoder of the partition is"):
        picture_router(work / "parts")
    with pytest.raises(ValueError, match="`partition` must be a folder that `partition` wrote"):
        picture_router(tmp_path)
    other = tmp_path / "clip"
    other.mkdir()
    for path in (work / "clip").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    kind = json.loads(families_fixture.FIXTURE.read_text())["kinds"]["clip"]
    tensors = families_fixture.weights(kind["shapes"])
    tensors["visual_projection.weight"] *= 2
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(ValueError, match=r"The encoder must be that of .*, whose hash is"):
        picture_router(work / "parts", clip=other)


def test_one_report_names_all_that_is_wrong_with_questions(work, tmp_path):
    more = [
        {"question_id": 3, "text": "What?"},
        {"question_id": "b", "image": "none.png", "text": "What?"},
        {"question_id": "c", "text": " <image> "},
        {"text": "What?"},
    ]
    with pytest.raises(ValueError, match="4 faults") as error:
        read_picture_questions(asked(work, tmp_path / "q.jsonl", *more), work / "images")
    lines = str(error.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        f"line {n}" for n in range(17, 21)
    ]
    assert "must come once; got question_id = 3 again" in lines[1]
    assert "must be a file in the folder of images; got image = 'none.png'" in lines[2]


@pytest.mark.slow
def test_from_conversations_to_scores(work, tmp_path, capsys):
    """Dense model and experts learn two colors, answer about them, and are scored."""
    optimizer = {"learning_rate": 3e-3, "warmup_steps": 4}
    config = of_data(work, num_steps=40, batch_size=4, held_out=0.0)
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, **optimizer)
    )
    assert config.pictures is not None
    assert config.pictures.vision == PICTURES.vision
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    run, images = str(tmp_path / "run"), str(work / "images")
    words = ["train", "--config", str(tmp_path / "config.json"), "--data", str(work / "parts")]
    words += ["--run", run, "--tokenizer", str(work), "--images", images]
    for member in ([], ["--expert", "0"], ["--expert", "1"]):
        assert cli.main([*words, *member]) == 0
    questions = asked(work, tmp_path / "questions.jsonl")
    ask = ["answer", "--run", run, "--questions", str(questions), "--images", images]
    ask += ["--tokenizer", str(work), "--max-new", "6"]
    routed = ["--partition", str(work / "parts"), "--clip", str(work / "clip")]
    scores = {}
    for name, more in {
        "dense": ["--expert", "dense"],
        "top-1": routed,
        "soft": [*routed, "--route", "soft"],
        "bayes": [*routed, "--route", "bayes"],
        "fitted": [*routed, "--route", "soft", "--sharpness", "fitted"],
    }.items():
        out = tmp_path / f"{name}.jsonl"
        assert cli.main([*ask, *more, "--out", str(out)]) == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [one["question_id"] for one in rows] == list(range(16))
        assert all(("expert" in one) == (name in ("dense", "top-1")) for one in rows)
        told = tmp_path / f"{name}.json"
        score = ["score", "--benchmark", "gqa", "--questions", str(questions)]
        assert cli.main([*score, "--predictions", str(out), "--json", str(told)]) == 0
        scores[name] = json.loads(told.read_text())["scores"]["accuracy"]
    assert scores["dense"] > 0.9, scores
    rows = [
        {"question_id": f"{number} {color}", "image": f"{number}.png", "text": f"Is it {color}?"}
        | {"category": "color", "answer": "yes" if color == own else "no"}
        for number, own in enumerate(["red", "blue"] * 8)
        for color in ("red", "blue")
    ]
    written(tmp_path / "mme.jsonl", rows)
    ask[ask.index("--questions") + 1] = str(tmp_path / "mme.jsonl")
    submitted = ["--submission", str(tmp_path / "mme"), "--benchmark", "mme"]
    of_dense = [*ask, "--expert", "dense", "--out", str(tmp_path / "out.jsonl"), *submitted]
    assert cli.main(of_dense) == 0
    lines = (tmp_path / "mme" / "color.txt").read_text().splitlines()
    assert [line.split("\t")[:3] for line in lines[:2]] == [
        ["0.png", "Is it red?", "yes"],
        ["0.png", "Is it blue?", "no"],
    ]
    assert cli.main(["score", "--benchmark", "mme", "--predictions", str(tmp_path / "mme")]) == 0
    capsys.readouterr()
    assert cli.main(of_dense) == 2
    assert "`submission` must not exist yet if the benchmark is mme" in capsys.readouterr().err
    ask[ask.index("--questions") + 1] = str(questions)
    capsys.readouterr()
    assert cli.main([*ask, "--out", str(tmp_path / "none.jsonl")]) == 2
    assert "`partition` must be given if several experts answer" in capsys.readouterr().err
