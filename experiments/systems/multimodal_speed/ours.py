"""Our sides of `multimodal_speed`: what `train` and `answer` do, and the plain first version.

    python -m experiments.multimodal_speed.ours FOLDER FORM [keep]

`multimodal_speed` runs it; with "keep" it starts as a command of the package does. It reads
commands as lines of JSON, and answers each with one line.
"""

import itertools
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.allocator import keep_buffers
from dfm_jax.models.multimodal import MultimodalConfig, multimodal_decoder
from dfm_jax.models.pretrained import Checkpoint, checkpoint_params, open_folder
from dfm_jax.training.answering import Asked, greedy_answers
from dfm_jax.training.batches import MultimodalBatch
from dfm_jax.training.config import LogConfig
from dfm_jax.training.examples import Examples
from dfm_jax.training.fit import make_run
from dfm_jax.training.pretrained import initial_params
from experiments.systems.benchmarks.serving import KEEP, Case, serve
from experiments.systems.multimodal_speed import plain
from experiments.systems.multimodal_speed.work import (
    ANSWERS,
    FIRST,
    FREEZE,
    Rows,
    color_table,
    rows_of,
    train_config,
    training_batch,
)
from experiments.systems.training_speed.sides import OURS


def prepare(
    folder: Path, form: str, workload: str, size: dict[str, int], arrays: Mapping[str, np.ndarray]
) -> dict[str, Case]:
    """The work in one form, with its data; `size` has the batch and the tokens of an answer."""
    checkpoint, rows = open_folder(folder / "model"), rows_of(arrays)
    if workload == ANSWERS:
        make = {OURS: package_answers, FIRST: plain_answers}[form]
        return {form: make(checkpoint, rows, size["batch"], size["new"])}
    make = {OURS: package_updates, FIRST: plain_updates}[form]
    return {form: make(checkpoint, rows, size["batch"], FREEZE[workload])}


def network_of(checkpoint: Checkpoint) -> MultimodalConfig:
    """The config of a checkpoint of this study."""
    assert isinstance(checkpoint.config, MultimodalConfig)
    return checkpoint.config


def batches(rows: Rows, size: int) -> Callable[[], Rows]:
    """A function that gives one batch after the other, again and again."""
    numbers = itertools.count()
    return lambda: rows.batch(next(numbers), size)


def listed(ids: Any) -> list[list[int]]:
    """Answers as lists, which JSON holds."""
    return [np.asarray(answer).tolist() for answer in ids]


# ── the package ───────────────────────────────────────────────────────────────────────────────────


def package_updates(
    checkpoint: Checkpoint, rows: Rows, batch_size: int, freeze: tuple[str, ...]
) -> Case:
    """Updates of a run of `train`."""
    config = train_config(network_of(checkpoint), rows, batch_size, freeze)

    def batch(key: Any, step: Any) -> MultimodalBatch:
        del key
        return training_batch(rows.batch(int(step), batch_size))

    initial = initial_params(config, checkpoint)
    run = make_run(config, Examples(batch, None, {}), LogConfig(), initial=initial)
    state, steps = run.init(), itertools.count()

    def update() -> float:
        nonlocal state
        state, metrics = run.update(state, next(steps))
        return float(metrics.loss)

    return Case(update, shown=float)


def package_answers(checkpoint: Checkpoint, rows: Rows, batch_size: int, num_new: int) -> Case:
    """Answers to a batch of questions, as `answer` draws them."""
    network, params = network_of(checkpoint), checkpoint_params(checkpoint)
    decoder, table = multimodal_decoder(network), color_table(network)
    next_rows = batches(rows, batch_size)

    def drawn() -> list[np.ndarray]:
        some = next_rows()
        prompts = [row[:length] for row, length in zip(some.tokens, some.prompts, strict=True)]
        asked = Asked(prompts, lambda own: some.pixels[own][:, None])
        found = greedy_answers(
            decoder, [params], asked, table=table, max_new=num_new, batch_size=batch_size
        )
        return found.ids

    return Case(drawn, shown=listed)


# ── the plain first version ───────────────────────────────────────────────────────────────────────


def pictures_of(rows: Rows, table: np.ndarray) -> np.ndarray:
    """[R, H, W, 3], the numbers that the tower reads."""
    return table[rows.pixels, np.arange(3)[None, None, None]]


def plain_updates(
    checkpoint: Checkpoint, rows: Rows, batch_size: int, freeze: tuple[str, ...]
) -> Case:
    """Updates of `plain`."""
    network = network_of(checkpoint)
    table, next_rows = color_table(network), batches(rows, batch_size)
    begin, update = plain.make_update(network, freeze)
    state = begin(checkpoint_params(checkpoint))

    def updated() -> float:
        nonlocal state
        some = next_rows()
        arrays = some.tokens, some.learnt, pictures_of(some, table)
        state, loss = update(state, plain.TrainingRow(*map(jnp.asarray, arrays)))
        return float(loss)

    return Case(updated, shown=float)


def plain_answers(checkpoint: Checkpoint, rows: Rows, batch_size: int, num_new: int) -> Case:
    """Answers of `plain`; prompts are padded to the longest of all."""
    network, params = network_of(checkpoint), checkpoint_params(checkpoint)
    table, next_rows, width = color_table(network), batches(rows, batch_size), rows.prompts.max()
    draw = jax.jit(partial(plain.answers, num_new=num_new, config=network))

    def drawn() -> jax.Array:
        some = next_rows()
        pictures = jnp.asarray(pictures_of(some, table))
        return jax.block_until_ready(draw(params, some.tokens[:, :width], some.prompts, pictures))

    return Case(drawn, shown=listed)


if __name__ == "__main__":
    if sys.argv[3:] == [KEEP]:
        keep_buffers()  # before jax allocates
    serve(partial(prepare, Path(sys.argv[1]), sys.argv[2]))
