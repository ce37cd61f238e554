"""Count the columns of rows while their text is read, and name those that are not used.

A model of text does not see pictures. On rows with pictures it would learn to answer blindly, with
a loss that looks normal. So such rows are refused unless the user asks for the text alone.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dfm_jax.data.records import DOCUMENT, Record

# Where data sets keep the pictures of a row: here `image` is read, and the others are told of.
PICTURES = (
    *("image", "images", "image_path", "image_paths", "image_file", "image_url", "img"),
    *("picture", "pictures", "video", "videos"),
)
PLACEHOLDER = "<image>"
_EMPTY: tuple[Any, ...] = (None, "", [])  # what holds nothing


class Columns:
    """What rows have besides the text that is read from them.

    `unused` counts, for each column from which nothing is read, except `id`, the rows that have it;
    columns inside the turns are named `conversations.NAME`. `pictures` counts the rows that have a
    picture, or contain `<image>`. Without `text_only` such a row is refused.
    """

    def __init__(self, *, text_only: bool = False) -> None:
        """Start with all counts at 0."""
        self.text_only = text_only
        self.unused: Counter[str] = Counter()
        self.pictures = 0

    def add(self, path: Path, record: Record, used: str) -> None:
        """Count a row, whose text is in the column `used`.

        Raises:
            ValueError: if the row has a picture and `text_only` is False.
        """
        fields = record.fields
        seen = [f"`{name}`" for name in picture_columns(fields)]
        seen = seen or ([f"`{PLACEHOLDER}`"] if used == "conversations" and _says(fields) else [])
        if seen and not self.text_only:
            _refuse(f"{path}, line {record.line}", f"a row with {' and '.join(seen)}")
        self.pictures += bool(seen)
        self.unused.update(set(_unused(fields, used)))

    def counts(self) -> dict[str, Any]:
        """The counts, to be stored with the text."""
        return {"unused": dict(self.unused), "pictures": self.pictures}

    def take(self, path: Path, counts: Mapping[str, Any]) -> None:
        """Add stored counts.

        Raises:
            ValueError: as `add`.
        """
        if counts["pictures"] and not self.text_only:
            _refuse(str(path), f"{counts['pictures']:,} rows with pictures")
        self.pictures += counts["pictures"]
        self.unused.update(counts["unused"])

    def text(self) -> str:
        """The `unused_text` of the counts."""
        return unused_text(self.unused)


def unused_text(unused: Mapping[str, int]) -> str:
    """The text ``not used: columns `image` (30 rows), `weight` (30 rows)``."""
    each = (
        f"`{name}` ({count:,} row{'s' * (count > 1)})" for name, count in sorted(unused.items())
    )
    return f"not used: column{'s' * (len(unused) > 1)} {', '.join(each)}"


def picture_columns(fields: Mapping[str, Any]) -> list[str]:
    """The names of the columns in which a row has pictures."""
    return [name for name in PICTURES if fields.get(name) not in _EMPTY]


def _refuse(where: str, what: str) -> NoReturn:
    raise ValueError(
        f"{where}: `text_only` must be given if rows have pictures, because a model of text does "
        f"not see them; got {what}. Pass `--text-only` to read the text and to leave the pictures "
        "out."
    )


def _unused(fields: Mapping[str, Any], used: str) -> Iterator[str]:
    for name, value in fields.items():
        if name not in ("id", used) and value not in _EMPTY:
            yield name
    if used == "conversations":
        for turn in fields[used]:
            yield from (f"{used}.{name}" for name in turn if name not in ("from", "value"))


def _says(fields: Mapping[str, Any]) -> bool:
    turns = fields["conversations"]
    return any(PLACEHOLDER in turn["value"] for turn in turns if turn.get("from") != DOCUMENT)
