"""Questions about pictures, read from a file, answered by trained members, and written again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfm_jax.checks import require
from dfm_jax.data.conversations import PICTURE, Conversation
from dfm_jax.data.pictures import picture_path
from dfm_jax.data.pixels import Picture, PixelStore
from dfm_jax.data.templates import encode_prompt, template_ids, template_named
from dfm_jax.durable import write_file
from dfm_jax.interfaces import Params
from dfm_jax.json_text import read_json_lines
from dfm_jax.models.multimodal import multimodal_decoder
from dfm_jax.models.pretrained import Tokenizer
from dfm_jax.training.answering import Answers, Asked, Route, greedy_answers
from dfm_jax.training.config import PicturesConfig, TrainConfig, multimodal_config

_SHOWN = 20  # faults that a report names


class PictureQuestion(NamedTuple):
    """One row of the file."""

    line: int  # from 1 on
    number: str | int  # its `question_id`, as it is
    text: str
    picture: Path | None


def read_picture_questions(path: Path, images: Path | None) -> list[PictureQuestion]:
    """Read JSONL of `question_id`, `text` (or `question`) and `image`, a path inside `images`.

    Raises:
        ValueError: if a row does not have this form, an id occurs twice, or a picture does not
            exist; one report lists all faults of the file.
    """
    require(path.is_file(), "`questions` must be a file that exists", path)
    found: dict[str | int, PictureQuestion] = {}
    faults: list[str] = []
    for line, row in read_json_lines(path):
        try:
            question = _question(line, row, images)
            rule = "each `question_id` must come once"
            if question.number in found:
                raise ValueError(f"{rule}; got question_id = {question.number!r} again")
            found[question.number] = question
        except ValueError as error:
            faults.append(f"  line {line}: {str(error).removesuffix('.')}")
    if faults:
        more = [f"  and {len(faults) - _SHOWN} more"] * (len(faults) > _SHOWN)
        count = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
        raise ValueError("\n".join([f"{path}: {count}", *faults[:_SHOWN], *more]))
    require(bool(found), f"{path} must hold a question", 0, name="number of questions")
    return list(found.values())


def _question(line: int, row: object, images: Path | None) -> PictureQuestion:
    if not isinstance(row, dict):
        raise ValueError(f"the row must be an object; got row = {row!r}")
    number = row.get("question_id")
    if not isinstance(number, int | str) or isinstance(number, bool):
        raise ValueError(f"`question_id` must be a number or a text; got {number!r}")
    text = row.get("text", row.get("question"))
    if not isinstance(text, str) or not text.replace(PICTURE, "").strip():
        raise ValueError(f"`text` must be the text of a question; got text = {text!r}")
    image = row.get("image")
    if image is None:
        if PICTURE in text:
            raise ValueError(f"`image` must be given if the text says {PICTURE}; got image = None")
        return PictureQuestion(line, number, text, None)
    if images is None:
        raise ValueError(f"`images` must be given if a question has a picture; got {image!r}")
    picture = picture_path(images, image)
    if not picture.is_file():
        raise ValueError(f"`image` must be a file in the folder of images; got image = {image!r}")
    if text.count(PICTURE) > 1:
        raise ValueError(f"the text must say {PICTURE} once at most; got {text.count(PICTURE)}")
    return PictureQuestion(line, number, text, picture)


def asked_of(
    questions: Sequence[PictureQuestion],
    config: TrainConfig,
    tokenizer: Tokenizer,
    store: PixelStore,
) -> Asked:
    """The questions as prompts of the config's template, with their pixels.

    Raises:
        ValueError: if a picture cannot be read; if the tokenizer lacks a token of the template; if
            a question holds a special token.
    """
    pictures = _pictures_of(config)
    template = template_named(pictures.template)
    each = multimodal_config(config).features_per_picture
    seen: dict[Path, Picture] = {}
    prompts = []
    for question in questions:
        own = [] if question.picture is None else [question.picture]
        for path in own:
            seen.setdefault(path, store.picture(path))
        before = f"{PICTURE}\n" if own and PICTURE not in question.text else ""
        row = Conversation(
            question.line, str(question.number), tuple(own), (before + question.text, "")
        )
        counts = [each * seen[path].count for path in own]
        prompts.append(encode_prompt(row, tokenizer, template, image_tokens=counts))
    most, size = max((p.count for p in seen.values()), default=1), pictures.processor.size

    def pixels(rows: np.ndarray) -> np.ndarray:
        found = np.zeros((len(rows), most, size, size, 3), np.uint8)
        for place, row in zip(found, rows.tolist(), strict=True):
            path = questions[row].picture
            if path is not None:
                squares = store.pixels(seen[path])
                place[: len(squares)] = squares
        return found

    return Asked(prompts, pixels)


class Answered(NamedTuple):
    """The texts of the answers, and what is known of each."""

    texts: list[str]
    answers: Answers


def answer_questions(
    config: TrainConfig,
    params: Sequence[Params],
    questions: Sequence[PictureQuestion],
    tokenizer: Tokenizer,
    store: PixelStore,
    *,
    log_weights: np.ndarray | None = None,
    route: Route = "top-1",
    max_new: int = 64,
    batch_size: int = 8,
) -> Answered:
    """Answer questions greedily; see `greedy_answers` for the arguments.

    Raises:
        ValueError: as `asked_of` and `greedy_answers`.
    """
    pictures = _pictures_of(config)
    template = template_named(pictures.template)
    answers = greedy_answers(
        multimodal_decoder(multimodal_config(config)),
        params,
        asked_of(questions, config, tokenizer, store),
        table=pictures.processor.table,
        log_weights=log_weights,
        route=route,
        stop_tokens=(template_ids(template, tokenizer)[template.end],),
        max_new=max_new,
        batch_size=batch_size,
    )
    return Answered([tokenizer.decode(ids.tolist()).strip() for ids in answers.ids], answers)


def write_answers(path: Path, questions: Sequence[PictureQuestion], answered: Answered) -> None:
    """Write JSONL of `question_id`, `prompt`, `text`, whether it stopped, and the `expert`.

    The command `score` reads it. A row has no expert where several were mixed.
    """
    texts, (_, stops, experts) = answered
    lines = []
    for question, text, stopped, expert in zip(questions, texts, stops, experts, strict=True):
        row = {"question_id": question.number, "prompt": question.text, "text": text}
        row |= {"stopped": bool(stopped)} | ({} if expert < 0 else {"expert": int(expert)})
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_file(path, "".join(lines))


def _pictures_of(config: TrainConfig) -> PicturesConfig:
    pictures = config.pictures
    require(pictures is not None, "`pictures` of the config must be given", pictures)
    assert pictures is not None
    return pictures
