"""Texts from trained members, one or an ensemble: continue a prompt, or fill in masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import check_count, check_seed, require
from dfm_jax.data.tokens import Tokenizer, encoded
from dfm_jax.interfaces import Denoiser, Task
from dfm_jax.json_types import as_type
from dfm_jax.likelihoods import any_order_nll
from dfm_jax.mixture import mixture_decoder, mixture_params, sample_mixture_on_table
from dfm_jax.models import Params
from dfm_jax.sampling import sample_autoregressive, sample_infilling, truncated_denoiser
from dfm_jax.schedules import any_order, linear, masked, with_context
from dfm_jax.storage.folders import Folder
from dfm_jax.training.config import TrainConfig
from dfm_jax.training.ensemble import Ensemble, check_ensemble
from dfm_jax.training.evaluation import load_expert, load_member
from dfm_jax.training.members import read_member, tokenizer_of
from dfm_jax.training.memory import check_sample_fits
from dfm_jax.training.state import TrainState
from dfm_jax.training.tasks import task_of
from dfm_jax.types import Key


class Generator(NamedTuple):
    """What draws texts: the tasks and parameters of its experts, and the tokenizer."""

    configs: tuple[TrainConfig, ...]
    params: tuple[Params, ...]
    log_prior: np.ndarray | None  # [K] log w_k of an ensemble; None: one member alone
    tokenizer: Tokenizer

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the experts."""
        return tuple(map(task_of, self.configs))


def member_generator(
    member: Folder, *, tokenizer: Path | None = None, best: bool = False
) -> Generator:
    """A generator from one member, from its last checkpoint or its best.

    Raises:
        CheckpointError: if the member has no good checkpoint.
        ValueError: if its task cannot draw samples.
    """
    trained, record = load_member(member, best=best), read_member(member)
    return _generator([(trained.config, trained.state)], None, record, tokenizer)


def ensemble_generator(
    run: Folder, ensemble: Ensemble, *, tokenizer: Path | None = None
) -> Generator:
    """A generator from all experts of an ensemble, mixed by the Bayes gate.   [D6, D7]

    Raises:
        CheckpointError: if an expert's checkpoint is not the one in the manifest.
        ValueError: if the task of an expert cannot draw samples, or experts draw in different ways.
    """
    check_ensemble(run, ensemble)
    experts = [load_expert(run, expert) for expert in ensemble.experts]
    record = ensemble.experts[0].config  # experts share the tokenizer
    return _generator(experts, ensemble.log_weights, record, tokenizer)


def sampled_ids(
    generator: Generator,
    prompt: str,
    *,
    seed: int = 0,
    num_samples: int = 1,
    max_new: int = 128,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: tuple[int, ...] = (),
) -> list[list[int]]:
    """The ids of the prompt and of a continuation, `num_samples` times.   [S1, S2]

    A causal network continues token by token. A masked network gets the prompt as context and
    `max_new` masks. It fills them in along the grid of its training, several per step. An ensemble
    of masked networks draws one position per step in a random order, which gives its exact
    distribution. A text begins where training sequences begin. Positions beyond the length of
    training sequences were never learned.

    Raises:
        ValueError: if the prompt is empty and no start id stands before a text; if the ids do not
            give the prompt back; if prompt and `max_new` are together longer than a masked network
            reads; as `sample_autoregressive`.
    """
    check_count("num_samples", num_samples)
    check_seed("seed", seed)
    check_count("max_new", max_new)
    ids = encoded(prompt, generator.tokenizer).tolist()
    last = generator.tokenizer.num_tokens - 1
    for token in stop_tokens:  # before an array is made of them, which holds 64 bits
        require(0 <= token <= last, f"`stop_tokens` must hold ids in [0, {last}]", token)
    check_sample_fits(num_samples, len(ids) + max_new, last + 1)
    truncate = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    drawn = _continued if generator.tasks[0].decoder is not None else _filled_in
    asked = _Asked(ids, jax.random.key(seed), num_samples, max_new, truncate, stop_tokens)
    return [_until(row, len(ids), stop_tokens) for row in drawn(generator, asked)]


class _Asked(NamedTuple):
    """What to draw: the number of texts, which begin with `ids`."""

    ids: list[int]
    key: Key
    num_samples: int
    max_new: int
    truncate: dict[str, Any]  # temperature, top_k, top_p
    stop_tokens: tuple[int, ...]


def _continued(generator: Generator, asked: _Asked) -> list[list[int]]:
    """Draw token by token, from the decoders."""
    tasks, start = generator.tasks, generator.tasks[0].start
    decoders = tuple(task.decoder for task in tasks if task.decoder is not None)
    params = generator.params
    ids = [*start, *asked.ids]
    rule = "`prompt` must not be empty, because the model has no token before a text"
    require(len(ids) > 0, rule, ids)
    decoder, given = decoders[0], params[0]
    if generator.log_prior is not None:
        decoder = mixture_decoder(decoders)
        given = mixture_params(decoders, generator.log_prior, params)
    sample = sample_autoregressive(
        asked.key,
        given,
        decoder,
        np.tile(np.array(ids, np.int32), (asked.num_samples, 1)),
        np.full(asked.num_samples, len(ids), np.int32),
        max_new=asked.max_new,
        stop_tokens=asked.stop_tokens,
        **asked.truncate,
    )
    return np.asarray(sample.tokens)[:, len(start) :].tolist()


def _filled_in(generator: Generator, asked: _Asked) -> list[list[int]]:
    """Fill in masks after the prompt, with the denoisers."""
    config, mask_id = generator.configs[0], generator.configs[0].model.num_tokens
    ids, max_new = asked.ids, asked.max_new
    length = len(ids) + max_new
    rule = (
        f"`max_new` must be at most {config.num_positions - len(ids)}, because the network reads "
        f"{config.num_positions} tokens and the prompt has {len(ids)}"
    )
    require(length <= config.num_positions, rule, max_new)
    x = np.array(ids + [0] * max_new, np.int32)
    context = np.arange(length) < len(ids)
    denoiser = truncated_denoiser(_denoiser(generator), **asked.truncate)
    keys = jax.random.split(asked.key, asked.num_samples)
    if generator.log_prior is None:
        grid = masked(linear(), config.num_grid_steps, length)

        def draw(key: Any) -> Any:
            args = key, generator.params[0], denoiser, x, context, grid
            return sample_infilling(*args)

        drawn = [np.asarray(draw(one)) for one in keys]
    else:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *generator.params)
        x_0 = np.where(context, x, mask_id).astype(np.int32)
        log_prior = _given_prompt(generator, ids, length)
        drawn = []
        for one in keys:
            order_key, key = jax.random.split(one)
            later = len(ids) + np.asarray(jax.random.permutation(order_key, max_new))
            order = np.concatenate([np.arange(len(ids)), later])  # so t is the share revealed
            table = with_context(any_order(order), context)
            args = key, stacked, denoiser, log_prior, x_0, table
            drawn.append(np.asarray(sample_mixture_on_table(*args).tokens))
    return [row.tolist() for row in drawn]


def _given_prompt(generator: Generator, ids: list[int], length: int) -> np.ndarray:
    """log r_k, the gate after the prompt, whose tokens are read from left to right.   [D7]

    r_k ∝ w_k Π_i p̂_k(x^i | x^{<i}, masks)
    """
    assert generator.log_prior is not None
    log_prior = np.asarray(generator.log_prior)
    if not ids:
        return log_prior
    x = np.array(ids + [0] * (length - len(ids)), np.int32)
    order, nothing = np.arange(length), np.zeros(length, bool)
    denoiser = _denoiser(generator)
    nats = [
        any_order_nll(params, denoiser, x, order, nothing)[: len(ids)].sum()
        for params in generator.params
    ]
    joint = log_prior - np.array(nats, np.float64)
    return joint - np.logaddexp.reduce(joint)


def _denoiser(generator: Generator) -> Denoiser:
    denoiser = generator.tasks[0].denoiser
    assert denoiser is not None  # `_generator` sees to it
    return denoiser


def _until(ids: list[int], num_given: int, stop_tokens: tuple[int, ...]) -> list[int]:
    """The ids up to and including the first stop token after those that are given."""
    for at in range(num_given, len(ids)):
        if ids[at] in stop_tokens:
            return ids[: at + 1]
    return ids


def _generator(
    experts: Sequence[tuple[TrainConfig, TrainState]],
    log_prior: np.ndarray | None,
    record: dict[str, Any],
    tokenizer: Path | None,
) -> Generator:
    configs = tuple(config for config, _ in experts)
    tasks = [task_of(config) for config in configs]
    for task in tasks:
        rule = "The task must have a decoder or a denoiser, because texts are drawn from it"
        good, kinds = task.decoder is not None or task.denoiser is not None, (None, None)
        require(good, rule, kinds, name="(decoder, denoiser)")
        rule = "Either all experts must read from left to right, or all must fill in masks"
        reads = [one.decoder is not None for one in tasks]
        require(
            reads[0] == (task.decoder is not None), rule, reads, name="reads from left to right"
        )
        if task.decoder is None:
            rule = "Experts that fill in masks must all have the sizes of the first one"
            sizes = [config.model for config in configs]
            require(task.denoiser is tasks[0].denoiser, rule, sizes, name="models")
    data = as_type(dict[str, Any], record.get("data"), "data")
    rule = "The data of the run must be texts, with a tokenizer"
    require("tokenizer" in data, rule, list(data), name="fields")
    named = as_type(str, data["tokenizer"], "data.tokenizer")
    pieces = tokenizer_of(configs[0], tokenizer, recorded=named, padded="init" in record)
    averages = (state.params if state.ema is None else state.ema for _, state in experts)
    return Generator(configs, tuple(averages), log_prior, pieces)
