"""`json_text`: what Python's reader lets pass is refused, with the file and the line."""

import json

import pytest

from dfm_jax.json_text import MAX_DEPTH, parse_json, read_json, read_json_lines

REFUSED = {
    "a key twice": ('{"a": 1,\n "b": 2,\n "a": 3}', 3, "the key 'a' comes twice"),
    "a key twice, written otherwise": ('{"a": 1,\n"\\u0061": 1}', 2, "the key 'a' comes twice"),
    "a key twice, inside": ('[{"a": {}},\n{"b": [{"c": "}{", "c": 1}]}]', 2, "the key 'c' comes"),
    "not a number": ("[1,\nNaN]", 2, "NaN is no number"),
    "an infinity": ('{"a":\n\n-Infinity}', 3, "-Infinity is no number"),
    "beyond a float": ("[\n1e999]", 2, "the number 1e999 is too large"),
    "an endless number": ("[\n" + "7" * 5000 + "]", 2, "a number of 5000 digits is too large"),
    "nested lists": ("\n" + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), 2, "nested more than"),
    "nested objects": ('{"a":' * 150 + "1" + "}" * 150, 1, "nested more than 100 deep"),
    "beyond the interpreter's depth": ("\n" + "[" * 5000, 2, "nested more than 100 deep"),
    "a fault after shallow brackets in a string": ('["' + "[" * 200 + '", 1', 1, "Expecting ','"),
    "a wrong escape after brackets in a string": (
        '["' + "[" * 200 + '\\q"]',
        1,
        r"Invalid \\escape",
    ),
    "a string that does not end": ('["a", "' + "[" * 200, 1, "Unterminated string"),
    "two values": ("1\n2", 2, "something follows the value"),
    "none": ("", 1, "Expecting value"),
    "cut": ('{"a": [1,\n2', 2, "Expecting ',' delimiter"),
    "a mark before it": ("\ufeff{}", 1, "a byte order mark"),
}


@pytest.mark.parametrize(("text", "line", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_strict_json_is_refused_by_file_and_line(tmp_path, text, line, why):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=why) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}, line {line}: the text must be JSON; got ")


def test_what_is_not_utf_8_is_refused_by_file_and_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a":\n"\xe9"}')
    with pytest.raises(ValueError, match=r"a\.json, line 2: the text must be UTF-8"):
        read_json(path)


def test_all_else_is_read_as_python_reads_it(tmp_path):
    value = {
        "texts": ["\ud800", '}{[]:,\\"', "\u2028", ""],
        "numbers": [0, -1, 1e308, -0.5e-300, 2**70],
        "rest": [None, True, False, {}, [{"texts": {"numbers": []}}]],
        "": "[" * 500,
    }
    text = json.dumps(value, indent=1)
    assert parse_json(text) == parse_json(f"\r\n {text} \t".encode()) == value
    deepest = json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    (tmp_path / "a.json").write_text(json.dumps(deepest))
    assert read_json(tmp_path / "a.json") == deepest


def test_lines_are_counted_by_their_ends_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "\u2028"}\n\n \n[2]\r\n{"b": 1, "b": 2}', encoding="utf-8")
    lines = read_json_lines(path)
    assert [next(lines), next(lines)] == [(1, {"a": "\u2028"}), (4, [2])]
    with pytest.raises(
        ValueError,
        match=r"a\.jsonl, line 5: the text must be JSON; got an error at column .*: the key 'b'",
    ):
        next(lines)
    path.write_bytes(b'{"a": "e"}\n{"a": "\xe9"}\n')  # Latin-1
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: the text must be UTF-8"):
        list(read_json_lines(path))
