"""easy-VQA: questions about one colored shape, as conversations (package `easy-vqa`, MIT).

shape      what shape is in the image?     circle
color      what color is the circle?       teal
is shape   is there not a circle?          no
is color   is a teal shape present?        yes

The wording decides which family it is, so the family of a new question is known.
"""

from pathlib import Path
from typing import Any, Literal

from dfm_jax.checks import require
from dfm_jax.data.packages import package_files, package_folder
from dfm_jax.json_text import read_json

FAMILIES = ("shape", "color", "is shape", "is color")
OPEN = FAMILIES[:2]  # the others are answered by yes and no, and half of that is known unseen
_SHAPES = {"circle", "triangle", "rectangle"}


def easy_vqa_rows(split: Literal["train", "test"]) -> tuple[list[dict[str, Any]], Path]:
    """All questions of a split as rows of conversations, and the folder of their images.

    38,575 questions of 4,000 images, and 9,673 of 1,000; 64 × 64 px, 13 answers.

    Raises:
        ValueError: if the split is another.
        MissingDataError: if the package is not installed.
    """
    require(split in ("train", "test"), "`split` must be train or test", split)
    (listing,) = package_files("easy_vqa", "easy-vqa", f"data/{split}/questions.json")
    folder = package_folder("easy_vqa", "easy-vqa") / "data" / split / "images"
    asked = read_json(listing)
    rows = [
        {
            "id": f"{split}-{number}",
            "image": f"{image}.png",
            "family": family_of(question),
            "conversations": [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": answer},
            ],
        }
        for number, (question, answer, image) in enumerate(asked)
    ]
    return rows, folder


def family_of(question: str) -> str:
    """One of `FAMILIES`, by the words of the question alone."""
    words = question.rstrip("?").split()
    if words[0] == "what":
        return "color" if "color" in words else "shape"
    return "is shape" if _SHAPES & set(words) else "is color"
