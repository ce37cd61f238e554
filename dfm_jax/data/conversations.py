r"""Questions about pictures and their answers, in the form on which LLaVA and InternVL train.

    {"id": …, "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"},
                                                  {"from": "gpt", "value": "red"}, …]}

A file is read completely before training, and one error reports all that is wrong with it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dfm_jax.checks import require
from dfm_jax.data.columns import picture_columns
from dfm_jax.data.pictures import picture_path
from dfm_jax.data.records import first_character, names_of, read_records, row_fields

PICTURE = "<image>"
ABSENT = "`image` must be a file in the folder of images"
"""How the fault of a row begins whose picture is not there."""
_SHOWN = 20  # faults that a report names


class Turn(NamedTuple):
    """A question and its answer, without `<image>` and without spaces at the ends."""

    question: str
    answer: str


class Conversation(NamedTuple):
    """One row of the file."""

    line: int  # from 1 on
    name: str  # its `id`, or its line
    pictures: tuple[Path, ...]
    said: tuple[str, ...]  # human and gpt in turn, as written, with an `<image>` for each picture
    family: str = ""  # its `family`, where a row has one: a kind of question

    @property
    def picture(self) -> Path | None:
        """The first picture, if there is one."""
        return self.pictures[0] if self.pictures else None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Questions and answers, without `<image>` and without spaces at the ends."""
        said = [_plain(text) for text in self.said]
        return tuple(Turn(*pair) for pair in zip(said[::2], said[1::2], strict=True))


class Fault(NamedTuple):
    """What is wrong with a row."""

    line: int
    what: str


class ConversationError(ValueError):
    """An error that lists all faults of a file, by line."""

    def __init__(self, path: Path, faults: tuple[Fault, ...], num_rows: int) -> None:
        self.faults = faults
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        lines = [f"{path}: {count} in {num_rows} rows"]
        lines += [f"  line {fault.line}: {fault.what}" for fault in faults[:_SHOWN]]
        if len(faults) > _SHOWN:
            lines.append(f"  and {len(faults) - _SHOWN} more")
        super().__init__("\n".join(lines))


def read_conversations(path: Path | str, images: Path | str | None) -> tuple[Conversation, ...]:
    """Every row of a JSONL file, or of a file that is one JSON array, in order.

    A row begins with a human's turn, and an answer follows each human's turn. `image` is a path
    inside `images`, or a list of such paths; a row without it has no picture. The texts of the
    humans say `<image>` once for each picture, where it stands; if they never do, all pictures
    stand before the first question. Blank lines are skipped. Where an array ends to be JSON, no
    later row is read.

    Raises:
        ValueError: if there is no such file or folder, or no row.
        ConversationError: if a row is not JSON, has no turns, has turns in the wrong order, has an
            empty question or answer, names a picture that does not exist, or says `<image>` more or
            fewer times than it has pictures. It lists all such rows.
    """
    rows, faults, count = conversations_and_faults(path, images)
    if faults:
        raise ConversationError(Path(path), faults, count)
    return rows


def conversations_and_faults(
    path: Path | str, images: Path | str | None
) -> tuple[tuple[Conversation, ...], tuple[Fault, ...], int]:
    """The rows of `read_conversations` that have no fault, the faults of the others, and how many.

    Raises:
        ValueError: if there is no such file or folder, or no row.
    """
    path, folder = Path(path), None if images is None else Path(images)
    require(path.is_file(), "`path` must be a file that exists", path)
    require(folder is None or folder.is_dir(), "`images` must be a folder that exists", folder)
    rows: list[Conversation] = []
    faults: list[Fault] = []
    count = 0
    for line, fields in _rows(path):
        count += 1
        if isinstance(fields, str):
            faults.append(Fault(line, fields))
            continue
        found = [Fault(line, what) for what in _faults(fields, folder)]
        faults += found
        if not found:
            rows.append(_conversation(line, fields, folder))
    require(count > 0, f"{path} must hold a row", count, name="number of rows")
    return tuple(rows), tuple(faults), count


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows, by the line on which each begins; a text says why one is none."""
    if first_character(path) == b"[":
        try:
            for record in read_records(path):
                yield record.line, record.fields
        except ValueError as error:
            before, said = f"{path}, line ", str(error)
            if said.startswith(before):  # else there is no row
                line, _, why = said.removeprefix(before).partition(": ")
                yield int(line), why.removesuffix(".")
        return
    with path.open("rb") as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                try:
                    yield line, row_fields(text.removesuffix(b"\n"))
                except ValueError as error:
                    yield line, str(error)


def _conversation(line: int, fields: dict[str, Any], folder: Path | None) -> Conversation:
    said = [turn["value"] for turn in fields["conversations"]]
    pictures = tuple(folder / name for name in _names(fields)) if folder is not None else ()
    if not any(PICTURE in text for text in said):
        said[0] = f"{PICTURE}\n" * len(pictures) + said[0]
    name, family = str(fields.get("id", line)), str(fields.get("family", ""))
    return Conversation(line, name, pictures, tuple(said), family)


def _names(fields: dict[str, Any]) -> list[Any]:
    """The names of the pictures of a row."""
    image = fields.get("image")
    return image if isinstance(image, list) else [] if image is None else [image]


def _plain(text: str) -> str:
    return text.replace(PICTURE, " ").strip()


def _faults(fields: dict[str, Any], folder: Path | None) -> Iterator[str]:
    yield from _picture_faults(fields, folder)
    turns = fields.get("conversations")
    if not isinstance(turns, list) or not turns:
        yield f"`conversations` must be a list of turns; got a row with {names_of(fields)}"
        return
    for number, turn in enumerate(turns):
        speaker = ("human", "gpt")[number % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker:
            got = f"from = {turn.get('from')!r}" if isinstance(turn, dict) else f"turn = {turn!r}"
            yield f"turn {number + 1} of `conversations` must be from {speaker!r}; got {got}"
            return
        if not isinstance(turn.get("value"), str):
            rule = f"`value` of turn {number + 1} must be a text"
            yield f"{rule}; got value = {turn.get('value')!r}"
        elif not _plain(turn["value"]):
            yield f"the {('question', 'answer')[number % 2]} of turn {number + 1} is empty"
    if len(turns) % 2:
        yield f"turn {len(turns)} of `conversations` has no answer"


def _picture_faults(fields: dict[str, Any], folder: Path | None) -> Iterator[str]:
    names = _names(fields)
    if not names:
        if others := picture_columns(fields):
            held = names_of(dict.fromkeys(others))
            yield f"the picture of a row must stand in `image`; got a picture in {held}"
        elif PICTURE in str(fields.get("conversations")):
            yield f"`image` must be given if a turn says {PICTURE}; got image = None"
        return
    faults = [fault for name in names for fault in _file_faults(name, folder)]
    yield from faults
    if not faults:
        yield from _placeholder_faults(fields, len(names))


def _file_faults(image: Any, folder: Path | None) -> Iterator[str]:
    if not isinstance(image, str):
        yield f"`image` must be one path or a list of paths; got image = {image!r}"
    elif folder is None:
        yield f"`image` must be absent if no folder of images is given; got image = {image!r}"
    else:
        try:
            if not picture_path(folder, image).is_file():
                yield f"{ABSENT}; got image = {image!r}"
        except ValueError as error:
            yield str(error).removesuffix(".")


def _placeholder_faults(fields: dict[str, Any], num_pictures: int) -> Iterator[str]:
    turns = fields.get("conversations")
    said = [_value(turn) for turn in turns] if isinstance(turns, list) else []
    asked = sum(text.count(PICTURE) for text in said[::2])
    if any(PICTURE in text for text in said[1::2]):
        yield f"an answer must not say {PICTURE}, because it has no picture"
    elif asked not in (0, num_pictures):
        rule = f"the turns must say {PICTURE} once for each picture"
        yield f"{rule}; got {asked} for pictures = {num_pictures}"


def _value(turn: Any) -> str:
    value = turn.get("value") if isinstance(turn, dict) else None
    return value if isinstance(value, str) else ""
