"""From a config and a folder of text to a trained member."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax

from dfm_jax.checks import require
from dfm_jax.training.batches import document_windows, mapped_windows, stream_windows
from dfm_jax.training.config import TrainConfig, Watch
from dfm_jax.training.evaluation import evaluated
from dfm_jax.training.loop import Outcome, Run, train
from dfm_jax.training.members import (
    TOKENS,
    MemberData,
    load_member_data,
    member_data_path,
    member_folder,
    network_and_terms,
    record_member,
)
from dfm_jax.training.reading import read_ahead
from dfm_jax.training.state import TrainState, init_state, make_optimiser
from dfm_jax.training.step import TrainStep, make_train_step
from dfm_jax.training.stopping import StopRequest
from dfm_jax.types import Key


def train_member(
    config: TrainConfig,
    data: Path,
    run: Path,
    *,
    expert: int | None = None,
    tokenizer: Path | None = None,
    watch: Watch | None = None,
    stop: StopRequest | None = None,
    tensorboard: bool = False,
    on_disk: bool = False,
) -> Outcome:
    """Train a member to its end, or to a signal, from wherever it is; see `loop.train`.

    With `on_disk` the tokens stay on the disk, in the member's folder, and are read ahead: for data
    that outgrow memory. The batches are the same, and so is what comes out.

    Raises:
        CheckpointError: if the folder holds a run of another config or other data.
        NonFiniteError: see `loop.train`.
    """
    watch = Watch() if watch is None else watch
    folder, source = member_folder(run, expert), member_data_path(data, expert)
    tokens = folder / TOKENS if on_disk else None
    documents = load_member_data(source, config, tokenizer, tokens=tokens)
    record = record_member(folder, config, documents, source)
    member = make_run(config, documents, watch)
    return train(member, folder, config=record, watch=watch, stop=stop, tensorboard=tensorboard)


def make_run(config: TrainConfig, data: MemberData, watch: Watch) -> Run:
    """The run of a config on its data, as pure functions.

    Keys: the seed's key is split for parameters, batches, steps and evaluation, in this order.
    """
    init_key, batch_key, step_key, evaluation_key = jax.random.split(jax.random.key(config.seed), 4)
    init_from, step = _compiled(config)
    size, length, train = config.batch_size, config.num_positions, data.train
    if data.mapped:
        rule = "`config.windows` must be documents for tokens that stay on the disk"
        require(config.windows == "documents", rule, config.windows)
        batches = read_ahead(mapped_windows(train.tokens, train.offsets, length, size))
    elif config.windows == "stream":
        batches = stream_windows(train.tokens, length, size)
    else:
        batches = document_windows(train.tokens, train.offsets, length, size)

    def init() -> TrainState:
        return init_from(jax.random.clone(init_key))  # once for the shapes, once for the values

    def evaluate(state: TrainState) -> dict[str, float]:
        documents = evaluated(
            state, config, data.held_out, evaluation_key, limit=watch.evaluation_windows
        )
        return {"validation": float(documents.nats.sum() / documents.counts.sum())}

    measured = evaluate if config.held_out > 0 else None
    return Run(init, step, batches, measured, batch_key, step_key, config.num_steps)


@cache  # members that one process trains share what was compiled
def _compiled(config: TrainConfig) -> tuple[Callable[[Key], TrainState], TrainStep]:
    network, terms_of = network_and_terms(config)
    optimiser = make_optimiser(config.optimiser, config.num_steps)
    step = make_train_step(
        terms_of,
        optimiser,
        num_micro_batches=config.num_micro_batches,
        ema_decay=config.ema_decay,
    )

    def init(key: Key) -> TrainState:
        return init_state(key, network, optimiser, ema=config.ema_decay is not None)

    return jax.jit(init), jax.jit(step, donate_argnums=0)
