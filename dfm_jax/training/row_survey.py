"""What the conversations of a run hold: rows, pictures and tokens, before a picture is decoded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfm_jax.data.conversations import ABSENT, Conversation, conversations_and_faults
from dfm_jax.data.pictures import picture_size
from dfm_jax.data.processors import PictureProcessor
from dfm_jax.data.templates import encode_conversation, template_named
from dfm_jax.data.tokens import Tokenizer, load_tokenizer
from dfm_jax.training.config import PicturesConfig, TrainConfig, multimodal_config
from dfm_jax.training.conversation_rows import row_sets, tokenizer_file
from dfm_jax.training.examples import spaced_rows
from dfm_jax.training.packs import pack_rows

MAX_COUNTED = 20_000  # rows whose tokens are counted: some seconds


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Counts over rows of the data, all or evenly spaced ones; image tokens are tokens."""

    rows: int  # that were counted
    tokens: float  # of a row, on average
    learnt: float  # of these, tokens of answers
    longest: int
    too_long: int  # rows of more than N tokens
    too_many: int  # rows of more than I pictures, tiles counted
    sequences: float  # of an epoch for each row of it: 1, or less if rows are packed


@dataclass(frozen=True, kw_only=True)
class RowSurvey:
    """What the data of a run hold."""

    rows: int
    an_epoch: int  # rows of an epoch, which come as often as their set says
    without: int  # rows that have no picture
    pictures: int  # different files that are there
    absent: int  # pictures that rows name, and that are not there
    faults: tuple[str, ...]  # of rows that cannot be trained on, by file and line
    lengths: Lengths | None  # None without a tokenizer


def survey_rows(
    source: Path,
    config: TrainConfig,
    *,
    images: Path | None,
    tokenizer: Path | None = None,
    most: int = MAX_COUNTED,
) -> RowSurvey:
    """Count what a run of this config would read.

    All rows are read, and each picture must be there. The tokens of at most `most` rows are
    counted, evenly spaced ones; of tiled pictures their headers are read for it.

    Args:
        source: The file of rows, or of sets of rows.
        config: A config with `pictures`.
        images: The folder of the pictures.
        tokenizer: The tokenizer.json, or a folder that holds it.
        most: The largest number of rows whose tokens are counted.

    Raises:
        ValueError: if a file or folder is not there, or holds no row; if the tokenizer cannot be
            read, or lacks a token of the template.
    """
    rows: list[Conversation] = []
    repeats: list[int] = []
    faults: list[str] = []
    count = 0
    for path, folder, repeat in row_sets(source, images):
        found, bad, here = conversations_and_faults(path, folder)
        rows += found
        repeats += [repeat] * len(found)
        faults += [f"{path}, line {fault.line}: {fault.what}" for fault in bad]
        count += here
    lengths = None
    if tokenizer is not None and rows:
        counted = [rows[i] for i in spaced_rows(len(rows), most)]
        more, lengths = _lengths(counted, config, load_tokenizer(tokenizer_file(tokenizer)))
        faults += [f"{source}, {fault}" for fault in more]
    return RowSurvey(
        rows=count,
        an_epoch=sum(repeats),
        without=sum(not row.pictures for row in rows),
        pictures=len({path for row in rows for path in row.pictures}),
        absent=sum(ABSENT in fault for fault in faults),
        faults=tuple(faults),
        lengths=lengths,
    )


def _lengths(
    rows: list[Conversation], config: TrainConfig, tokenizer: Tokenizer
) -> tuple[list[str], Lengths | None]:
    """The faults that encoding finds, and the counts over the other rows."""
    pictures = config.pictures
    assert pictures is not None
    faults: list[str] = []
    found = np.array(list(_counts(rows, config, pictures, tokenizer, faults)), int).reshape(-1, 3)
    if len(found) == 0:
        return faults, None
    tokens, learnt, squares = found.T
    fits = (squares <= pictures.max_pictures) & (pictures.cut | (tokens <= config.num_positions))
    sequences = 1.0
    if pictures.packed and fits.any():
        packs = pack_rows(
            np.minimum(tokens[fits], config.num_positions),
            squares[fits],
            num_positions=config.num_positions,
            max_pictures=pictures.max_pictures,
            seed=config.seed,
        )
        sequences = len(packs) / int(fits.sum())
    return faults, Lengths(
        rows=len(found),
        tokens=float(tokens.mean()),
        learnt=float(learnt.mean()),
        longest=int(tokens.max()),
        too_long=int((tokens > config.num_positions).sum()),
        too_many=int((squares > pictures.max_pictures).sum()),
        sequences=sequences,
    )


def _counts(
    rows: list[Conversation],
    config: TrainConfig,
    pictures: PicturesConfig,
    tokenizer: Tokenizer,
    faults: list[str],
) -> Iterator[tuple[int, int, int]]:
    """Of each row its tokens, its learnt tokens, and the squares of its pictures."""
    template = template_named(pictures.template)
    each, sizes = multimodal_config(config).features_per_picture, {}
    for row in rows:
        try:
            for path in row.pictures:
                if path not in sizes:
                    sizes[path] = _squares(path, pictures.processor)
            squares = [sizes[path] for path in row.pictures]
            image_tokens = [each * one for one in squares]
            encoded = encode_conversation(row, tokenizer, template, image_tokens=image_tokens)
        except ValueError as error:
            faults.append(f"line {row.line}: {str(error).removesuffix('.')}")
        else:
            yield len(encoded.tokens), encoded.num_learnt, sum(squares)


def _squares(path: Path, processor: PictureProcessor) -> int:
    """The squares that a processor makes of a picture; only for tiles does its size matter."""
    return processor.num_pictures(*picture_size(path)) if processor.fit == "tiles" else 1
