"""Rows of a data set of conversations, read one by one from JSONL, a JSON array or a folder.

A row is an object in the form on which LLaVA and InternVL train: `conversations`, a list of objects
whose `value` is text; usually an `id`; and `image`, if it has one. The number of a row is its place
in the file, from 0; in JSONL this is its line. So a blank line between rows is refused, because it
would change the numbers after it; blank lines after the last row are skipped. In a folder of text
each file is a row, in the order of the paths.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from dfm_jax.data.listing import documents_in, files_in
from dfm_jax.durable import file_digest
from dfm_jax.json_text import parse_json, parse_json_at

_CHUNK = 1 << 20  # characters of an array that are read at once, at least
HUMAN, DOCUMENT = "human", "document"
_PIECE = 64  # characters: what a cut may leave of a literal or an escape is shorter


class Record(NamedTuple):
    """One row of the input."""

    number: int  # from 0 on
    line: int  # where it begins, from 1 on
    text: bytes  # without the end of its line
    fields: dict


def read_records(path: Path | str) -> Iterator[Record]:
    r"""Read the rows of a file in order; at most one row and a chunk of the file are in memory.

    A file whose first character is `[` is a JSON array; any other file is JSONL; both are in UTF-8.
    In JSONL, `text` is exactly the bytes of the line up to its `\n`. In an array, `text` is the
    element written again on one line: `json.dumps(element, ensure_ascii=False)`, or with
    `ensure_ascii=True` if a string holds half a surrogate pair.

    A folder gives a row for each file of `files_in`, in that order:
    `{"id": PATH, "conversations": [{"from": "document", "value": TEXT}]}`.

    Raises:
        ValueError: if there is no row; if a row is not a JSON object, or repeats a key; if a file
            of a folder cannot be read or is not UTF-8. The message names the file and the line.
    """
    path = Path(path)
    if not path.is_file() and not path.is_dir():
        then = "It is neither." if path.exists() else "Nothing is there."
        rule = "`input` must be a file or a folder, because it is read twice"
        raise ValueError(f"{rule}; got input = {str(path)!r}. {then}")
    empty = True
    for record in _reader(path)(path):
        empty = False
        yield record
    if empty:
        raise ValueError(f"{path} must hold a row; got number of rows = 0.")


def _reader(path: Path) -> Callable[[Path], Iterator[Record]]:
    if path.is_dir():
        return _of_folder
    return _of_array if first_character(path) == b"[" else _of_lines


def first_character(path: Path) -> bytes:
    """The first byte of a file that is not a space; b"" if there is none."""
    with path.open("rb") as file:
        head = b" "
        while head.isspace():
            head = file.read(1)
    return head


def row_fields(text: bytes) -> dict:
    """The object in a line of JSONL.

    Raises:
        ValueError: if the line does not hold one; the message says why.
    """
    try:
        fields = parse_json(text)
    except json.JSONDecodeError as error:  # its line is that of the row
        why = f"an error at column {error.colno}: {error.msg}"
        raise ValueError(f"the row must be JSON in UTF-8; got {why}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the row must be JSON in UTF-8; got other bytes: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"the row must be a JSON object; got type(row) = {type(fields).__name__}")
    return fields


def conversation_bytes(record: Record) -> int:
    """The number of UTF-8 bytes of all `value` texts in a row.

    Raises:
        ValueError: if `conversations` is not a list of objects that each have a text `value`.
    """
    turns = record.fields.get("conversations")
    rule = "`conversations` must be a list of objects with a text `value`"
    if not isinstance(turns, list):
        raise ValueError(f"{rule}; got a row with {names_of(record.fields)}.")
    total = 0
    for number, turn in enumerate(turns, start=1):
        value = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(value, str):
            had = f"with {names_of(turn)}" if isinstance(turn, dict) else f"= {turn!r}"
            raise ValueError(f"{rule}; got turn {number} {had}.")
        total += len(value.encode("utf-8", "surrogatepass"))
    return total


def names_of(fields: Mapping[str, object]) -> str:
    """The names of the fields of a row or a turn, for the message that one is missing."""
    return ", ".join(f"`{name}`" for name in fields) or "nothing"


def context_text(record: Record) -> str | None:
    """The text that may decide the expert: the first human turn, without `<image>`, or a document.

    It is never the answer, because an expert chosen by the answer would know what it is asked [B9].
    A file of a folder is a whole document; so a distribution that is measured on such rows needs a
    gate that sees only prefixes. The result is `None` if the row has no such turn.
    """
    for turn in record.fields["conversations"]:
        if turn.get("from") in (HUMAN, DOCUMENT):
            return turn["value"].replace("<image>", " ")
    return None


def input_digest(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of a folder's files in order."""
    if not path.is_dir():
        return file_digest(path)
    whole = hashlib.sha256()
    for name, file in files_in(path):
        whole.update(json.dumps([name, file_digest(file)]).encode())
    return whole.hexdigest()


# ── one line, one row ───────────────────────────────────────────────────────────────────────────


def _of_lines(path: Path) -> Iterator[Record]:
    blank = 0  # the first blank line since the last row
    with path.open("rb") as file:
        for number, line in enumerate(file):
            text = line.removesuffix(b"\n")
            if not text.strip():
                blank = blank or number + 1
                continue
            if blank:
                _refuse(path, blank, "a line between rows must not be blank; got a blank line")
            try:
                fields = row_fields(text)
            except ValueError as error:
                _refuse(path, number + 1, str(error), error)
            yield Record(number, number + 1, text, fields)


# ── an array ────────────────────────────────────────────────────────────────────────────────────


class _Text:
    """The part of a file that is not yet parsed as JSON: a buffer that grows when needed."""

    def __init__(self, path: Path, file) -> None:
        self.path, self.file = path, file
        self.buffer, self.at, self.line, self.ended = "", 0, 1, False

    def grow(self) -> None:
        """Drop the part that was parsed, and at least double the part that was not."""
        ahead = self.buffer[self.at :]
        try:
            chunk = self.file.read(max(_CHUNK, len(ahead)))
        except UnicodeDecodeError as error:
            _refuse(
                self.path,
                self.line,
                f"the text from this line on must be UTF-8; got other bytes: {error}",
                error,
            )
        self.buffer, self.at, self.ended = ahead + chunk, 0, not chunk

    def peek(self) -> str:
        """The next character that is not a space; "" at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in " \t\n\r":
                self.line += self.buffer[self.at] == "\n"
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if self.ended:
                return ""
            self.grow()

    def element(self) -> object:
        """The value that begins here; only a value that may have been cut off is parsed again."""
        while True:
            try:
                value, end = parse_json_at(self.buffer, self.at)
            except json.JSONDecodeError as error:
                near_the_end = error.pos > len(self.buffer) - _PIECE
                cut = near_the_end or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    line = self.line + self.buffer.count("\n", self.at, error.pos)
                    _refuse(
                        self.path, line, f"the row must be JSON; got an error: {error.msg}", error
                    )
                self.grow()
            else:
                self.line += self.buffer.count("\n", self.at, end)
                self.at = end
                return value


def _of_array(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8", newline="") as file:
        text = _Text(path, file)
        text.peek()
        text.at += 1  # the bracket
        number = 0
        while number > 0 or text.peek() != "]":
            text.peek()  # to the line on which the element begins
            line = text.line
            fields = _an_object(path, line, text.element())
            yield Record(number, line, _one_line(fields), fields)
            number += 1
            mark = text.peek()
            if mark == "]":
                break
            if mark != ",":
                _refuse(path, text.line, f"`,` or `]` must follow a row; got {mark or 'the end'!r}")
            text.at += 1
        text.at += 1
        if text.peek():
            _refuse(path, text.line, f"nothing must follow the array; got {text.peek()!r}")


def _one_line(fields: dict) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(fields, allow_nan=False).encode("utf-8")


# ── a folder ────────────────────────────────────────────────────────────────────────────────────


def _of_folder(folder: Path) -> Iterator[Record]:
    for number, (name, text) in enumerate(documents_in(folder)):
        fields = {"id": name, "conversations": [{"from": DOCUMENT, "value": text}]}
        yield Record(number, number + 1, _one_line(fields), fields)


# ── what is refused ─────────────────────────────────────────────────────────────────────────────


def _an_object(path: Path, line: int, value: object) -> dict:
    if not isinstance(value, dict):
        _refuse(
            path, line, f"the row must be a JSON object; got type(row) = {type(value).__name__}"
        )
    return value


def _refuse(path: Path, line: int, why: str, cause: Exception | None = None) -> NoReturn:
    raise ValueError(f"{path}, line {line}: {why}.") from cause
