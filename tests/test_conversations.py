"""Conversations about pictures: read whole, and everything wrong with a file said at once."""

import json

import pytest

from dfm_jax.data.conversations import ConversationError, Fault, Turn, read_conversations


def _row(question="<image>\nWhat?", answer="red", **fields):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps({"id": "a", "image": "a.png", "conversations": turns} | fields)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    return folder


def _written(tmp_path, *lines):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_rows_in_order(tmp_path, images):
    more = [
        {"from": "human", "value": " Where? "},
        {"from": "gpt", "value": "left"},
        {"from": "human", "value": "How many?"},
        {"from": "gpt", "value": "2"},
    ]
    without = json.dumps({"conversations": more})
    found = read_conversations(_written(tmp_path, _row(), "", without), images)
    assert [row.line for row in found] == [1, 3]
    assert [row.name for row in found] == ["a", "3"]
    assert [row.picture for row in found] == [images / "a.png", None]
    assert found[0].turns == (Turn("What?", "red"),)
    assert found[1].turns == (Turn("Where?", "left"), Turn("How many?", "2"))


def test_pictures_stand_where_the_text_says_or_else_first(tmp_path, images):
    two = ["a.png", "a.png"]
    path = _written(
        tmp_path,
        _row(image=two, question="Is <image> like <image>?"),
        _row(image=two, question="Alike?"),
        _row(image=[], question="Alone?"),
    )
    first, second, third = read_conversations(path, images)
    assert first.pictures == (images / "a.png",) * 2
    assert first.said[0] == "Is <image> like <image>?"
    assert second.said[0] == "<image>\n<image>\nAlike?"
    assert (third.pictures, third.said[0]) == ((), "Alone?")
    assert second.turns[0].question == "Alike?"


def test_three_faults_in_one_report(tmp_path, images):
    """A missing picture, a broken line, an empty answer: named together, good rows are not."""
    path = _written(
        tmp_path,
        _row(),
        _row(image="b.png"),
        '{"id": "c", "conversations": [',
        _row(answer="  "),
        _row(),
    )
    with pytest.raises(ConversationError) as raised:
        read_conversations(path, images)
    report = str(raised.value).splitlines()
    assert report[0] == f"{path}: 3 faults in 5 rows"
    rule = "`image` must be a file in the folder of images"
    assert report[1] == f"  line 2: {rule}; got image = 'b.png'"
    assert report[2].startswith(
        "  line 3: the row must be JSON in UTF-8; got an error at column 31: Expecting value"
    )
    assert report[3] == "  line 4: the answer of turn 2 is empty"
    assert [fault.line for fault in raised.value.faults] == [2, 3, 4]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("[1]", "the row must be a JSON object; got type(row) = list"),
        ("{}", "`conversations` must be a list of turns"),
        (_row(conversations=[]), "`conversations` must be a list of turns"),
        (_row(question=" <image> "), "the question of turn 1 is empty"),
        (
            _row(conversations=[{"from": "gpt", "value": "a"}]),
            "turn 1 of `conversations` must be from 'human'",
        ),
        (
            _row(conversations=[{"from": "human", "value": "a"}]),
            "turn 1 of `conversations` has no answer",
        ),
        (
            _row(conversations=[{"from": "human", "value": 3}, {"from": "gpt", "value": "a"}]),
            "`value` of turn 1 must be a text; got value = ",
        ),
        (_row(image=None), "`image` must be given if a turn says <image>; got image = None"),
        (_row(image=["a.png", 3]), "`image` must be one path or a list of paths; got image = 3"),
        (
            _row(image=["a.png", "b.png"], question="<image> <image> What?"),
            "`image` must be a file in the folder of images; got image = 'b.png'",
        ),
        (
            _row(image=["a.png", "a.png"], question="<image> What?"),
            "the turns must say <image> once for each picture; got 1 for pictures = 2",
        ),
        (_row(answer="an <image>"), "an answer must not say <image>"),
        (_row(image="../rows.jsonl"), "must be a path inside the folder of images"),
        (_row(image=None, images=["a.png"]), "must stand in `image`; got a picture in `images`"),
        (
            _row(conversations=[{"from": "user", "value": "a"}]),
            "must be from 'human'; got from = 'user'",
        ),
        ('{"messages": []}', "must be a list of turns; got a row with `messages`"),
    ],
)
def test_each_fault_by_itself(tmp_path, images, row, what):
    with pytest.raises(ConversationError) as raised:
        read_conversations(_written(tmp_path, _row(), row), images)
    (fault,) = raised.value.faults
    assert isinstance(fault, Fault)
    assert fault.line == 2
    assert what in fault.what


def test_pictures_without_a_folder_and_files_that_are_none(tmp_path, images):
    path = _written(tmp_path, _row())
    with pytest.raises(ConversationError, match=r"`image` must be absent .*; got image = 'a\.png'"):
        read_conversations(path, None)
    with pytest.raises(ValueError, match="`images` must be a folder"):
        read_conversations(path, tmp_path / "none")
    with pytest.raises(ValueError, match="`path` must be a file"):
        read_conversations(tmp_path / "none", images)
    with pytest.raises(ValueError, match="must hold a row; got number of rows = 0"):
        read_conversations(_written(tmp_path, "", ""), images)


def test_a_long_report_is_cut_and_counted(tmp_path, images):
    path = _written(tmp_path, *[_row(answer="") for _ in range(25)])
    with pytest.raises(ConversationError, match="25 faults in 25 rows") as raised:
        read_conversations(path, images)
    assert str(raised.value).splitlines()[-1] == "  and 5 more"
    assert len(raised.value.faults) == 25


def test_an_array_is_read_as_lines_are(tmp_path, images):
    rows = [_row(), _row(question="Alone?", image=None)]
    lines = read_conversations(_written(tmp_path, *rows), images)
    path = tmp_path / "rows.json"
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    assert [row._replace(line=0) for row in read_conversations(path, images)] == [
        row._replace(line=0) for row in lines
    ]
    assert [row.line for row in read_conversations(path, images)] == [2, 3]
    path.write_text("[\n" + ",\n".join([_row(image="b.png"), _row(answer=""), "{"]) + "\n]\n")
    with pytest.raises(ConversationError) as error:
        read_conversations(path, images)
    assert [fault.line for fault in error.value.faults] == [2, 3, 5]
    assert "the row must be JSON" in error.value.faults[2].what
    path.write_text("[]")
    with pytest.raises(ValueError, match="must hold a row"):
        read_conversations(path, images)
