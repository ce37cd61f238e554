"""easy-VQA as conversations: every question, its picture there, its family told by its words."""

import collections
import json

import pytest

from dfm_jax.data.conversations import read_conversations
from experiments.lib.easy_vqa import FAMILIES, OPEN, easy_vqa_rows, family_of


@pytest.fixture
def split(require_package):
    require_package("easy-vqa")
    return easy_vqa_rows("test")


@pytest.mark.slow
def test_every_question_is_a_row_that_the_reader_takes(split, tmp_path):
    rows, folder = split
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_conversations(path, folder)
    assert len(found) == 9673
    assert len({row.picture for row in found}) == 1000
    assert found[0].turns[0] == ("what is the red shape?", "triangle")
    assert found[0].family == "shape"


def test_families_are_told_by_what_is_answered(split):
    rows, _ = split
    answers = collections.defaultdict(set)
    counts = collections.Counter(row["family"] for row in rows)
    for row in rows:
        answers[row["family"]].add(row["conversations"][1]["value"])
    assert set(answers) == set(FAMILIES)
    assert answers["shape"] == {"circle", "rectangle", "triangle"}
    assert len(answers["color"]) == 8
    assert answers["is shape"] == answers["is color"] == {"yes", "no"}
    assert sum(counts[name] for name in OPEN) == 2537  # the others are 7136


@pytest.mark.parametrize(
    ("question", "family"),
    [
        ("what color is the circle?", "color"),
        ("what is the color of the shape?", "color"),
        ("what shape does the image contain?", "shape"),
        ("is there not a circle?", "is shape"),
        ("does the image not contain a teal shape?", "is color"),
    ],
)
def test_a_family_is_in_the_words(question, family):
    assert family_of(question) == family


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="`split` must be train or test; got split = 'validation'"):
        easy_vqa_rows("validation")  # pyright: ignore
