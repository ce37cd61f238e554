"""Read JSON from files strictly, so that all readers would agree; the package reads JSON only here.

Python's own reader keeps the last of two equal keys, accepts NaN and Infinity, reads 1e999 as
infinity, and fails on deep nesting with an exception of another type. Here each of these is
refused, with the file and the line.
"""

import json
import math
import re
import sys
from collections.abc import Iterator
from typing import Any, Protocol

MAX_DEPTH = 100  # lists and objects within one another
_TOO_DEEP = f"it is nested more than {MAX_DEPTH} deep"
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


class Readable(Protocol):
    """A file that can be read, such as a `Path`, or a path on an object store."""

    def read_bytes(self) -> bytes:
        """The whole content."""
        ...

    def open(self, *args: Any, **kwargs: Any) -> Any:
        """The content, to be read."""
        ...


def read_json(path: Readable) -> Any:
    """Read the value in a file.

    Raises:
        ValueError: if the file is not exactly one value of strict JSON in UTF-8; the message names
            file and line.
    """
    return _parsed_at(path, 1, path.read_bytes())


def read_json_lines(path: Readable) -> Iterator[tuple[int, Any]]:
    r"""Read the number, from 1, and the value of each line that is not blank; lines end with `\n`.

    Raises:
        ValueError: as `read_json`.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parsed_at(path, number, line.removesuffix(b"\n"))


def parse_json(text: str | bytes) -> Any:
    """The value in a text; bytes are read as UTF-8.

    Raises:
        ValueError: if the text is refused, as a `json.JSONDecodeError` with `msg`, `pos` and
            `lineno`; if the bytes are not UTF-8, as a `UnicodeDecodeError`.
    """
    text = text if isinstance(text, str) else text.decode("utf-8")
    begin = len(text) - len(text.lstrip(" \t\n\r"))
    value, end = parse_json_at(text, begin)
    if rest := text[end:].lstrip(" \t\n\r"):
        raise json.JSONDecodeError("something follows the value", text, len(text) - len(rest))
    return value


def parse_json_at(text: str, begin: int) -> tuple[Any, int]:
    """The value that begins at a place in a text, and the place where it ends.

    Raises:
        ValueError: as `parse_json`.
    """
    if text.startswith("\ufeff", begin):
        raise json.JSONDecodeError("a byte order mark is not part of JSON", text, begin)
    try:
        value, end = _DECODER.raw_decode(text, begin)
        _check_depth(value)
    except json.JSONDecodeError as error:
        if (place := _too_deep(text, begin, error.pos)) is None:
            raise
        raise json.JSONDecodeError(_TOO_DEEP, text, place) from None
    except (ValueError, RecursionError) as error:
        why, place = _fault(text, begin) or (str(error), begin)
        raise json.JSONDecodeError(why, text, place) from None
    return value, end


def _parsed_at(path: Readable, line: int, content: bytes) -> Any:
    """The value of `content`, which begins on `line` of `path`."""
    try:
        return parse_json(content)
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        rule = "the text must be UTF-8"
        raise ValueError(f"{path}, line {line}: {rule}; got other bytes: {error}.") from error
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        raise ValueError(
            f"{path}, line {line}: the text must be JSON; got an error at column {error.colno}: "
            f"{error.msg}."
        ) from error


# ── what Python's reader lets pass ──────────────────────────────────────────────────────────────


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key comes twice in one object")
    return fields


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits} is too large")
    return value


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        level = [v for part in level for v in (part.values() if isinstance(part, dict) else part)]


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_repeats, parse_constant=_no_number, parse_float=_finite
)


def _fault(text: str, begin: int) -> tuple[str, int] | None:
    """The first thing that is refused, and its place, which Python's reader does not tell."""
    open_ones: list[set[str]] = []  # the keys of each list and object that is not yet closed
    text_before: re.Match | None = None  # the token before, if it is a string
    for token in _TOKEN.finditer(text, begin):
        word = token.group()
        if word in "{[":
            open_ones.append(set())
            if len(open_ones) > MAX_DEPTH:
                return _TOO_DEEP, token.start()
        elif word in "}]":
            open_ones.pop()
            if not open_ones:
                return None
        elif word == ":" and text_before is not None:
            key = json.loads(text_before.group())
            if key in open_ones[-1]:
                return f"the key {key!r} comes twice in one object", text_before.start()
            open_ones[-1].add(key)
        elif why := _number_fault(word):
            return why, token.start()
        text_before = token if word.startswith('"') else None
    return None


def _too_deep(text: str, begin: int, end: int) -> int | None:
    """Where nesting is too deep before `end`, where the grammar is broken."""
    depth, last = 0, begin
    for token in _TOKEN.finditer(text, begin, end):
        if '"' in text[last : token.start()]:  # a string that does not end
            return None
        last, word = token.end(), token.group()
        depth += (word in "{[") - (word in "}]")
        if depth > MAX_DEPTH:
            return token.start()
    return None


def _number_fault(word: str) -> str | None:
    if word in ("NaN", "Infinity", "-Infinity"):
        return f"{word} is no number of JSON"
    digits = word.removeprefix("-")
    if digits.isdigit():
        most = sys.get_int_max_str_digits()
        return f"a number of {len(digits)} digits is too large" if 0 < most < len(digits) else None
    if digits[:1].isdigit() and math.isinf(float(word)):
        return f"the number {word} is too large"
    return None
