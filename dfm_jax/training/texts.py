"""What trained members say, one alone or an ensemble mixed by its gate: a prompt continued."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dfm_jax.checks import check_count, check_seed, require
from dfm_jax.data.tokens import Tokenizer, encoded
from dfm_jax.interfaces import Decoder
from dfm_jax.json_types import as_type
from dfm_jax.mixture import mixture_decoder, mixture_params
from dfm_jax.models import Params, transformer_decoder
from dfm_jax.sampling import sample_autoregressive
from dfm_jax.training.checkpoint import read_checkpoint
from dfm_jax.training.config import TrainConfig, from_json
from dfm_jax.training.ensemble import Ensemble, check_ensemble, checkpoint_folder
from dfm_jax.training.evaluation import load_member
from dfm_jax.training.members import read_member, state_template, tokenizer_of
from dfm_jax.training.memory import check_parameters_fit, check_sample_fits
from dfm_jax.training.state import TrainState


class Speaker(NamedTuple):
    """What continues a prompt: a decoder, its parameters, and how text becomes ids."""

    decoder: Decoder
    params: Any
    start: tuple[int, ...]  # what stands before every sequence: the mask, if the network has one
    tokenizer: Tokenizer


def member_speaker(member: Path, *, tokenizer: Path | None = None, best: bool = False) -> Speaker:
    """One member alone, from its last checkpoint or its best.

    Raises:
        CheckpointError: if the member has no good checkpoint.
        ValueError: if it was not trained left to right.
    """
    trained, named = load_member(member, best=best), read_member(member)["data"]["tokenizer"]
    pieces = tokenizer_of(trained.config, tokenizer, recorded=named)
    return _speaker([trained.config], [_averaged(trained.state)], None, pieces)


def ensemble_speaker(run: Path, ensemble: Ensemble, *, tokenizer: Path | None = None) -> Speaker:
    """All experts of an ensemble, mixed by the Bayes gate that begins at its weights.   [D6, D7]

    Raises:
        CheckpointError: if an expert's checkpoint is not the one that was gathered.
        ValueError: if an expert was not trained left to right.
    """
    check_ensemble(run, ensemble)
    configs, params = [], []
    for expert in ensemble.experts:
        config = from_json(TrainConfig, expert.config.get("config"))
        check_parameters_fit(config.model)
        path = checkpoint_folder(run, expert)
        state = read_checkpoint(path, state_template(config), config=expert.config)
        configs.append(config)
        params.append(_averaged(state))
    data = as_type(dict[str, Any], ensemble.experts[0].config.get("data"), "data")
    named = as_type(str, data.get("tokenizer"), "data.tokenizer")  # experts share it
    pieces = tokenizer_of(configs[0], tokenizer, recorded=named)
    return _speaker(configs, params, ensemble.log_weights, pieces)


def sampled_ids(
    speaker: Speaker,
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
    """The ids of the prompt and of what the speaker makes of it, `num_samples` times.   [S1]

    A text begins where training sequences do: behind the mask, if the network has one. Beyond the
    length of training sequences nothing was learned about positions.

    Raises:
        ValueError: if the prompt is empty and there is no mask to begin from, or cannot be had
            back from its ids; see also `sample_autoregressive`.
    """
    check_count("num_samples", num_samples)
    check_seed("seed", seed)
    ids = [*speaker.start, *encoded(prompt, speaker.tokenizer).tolist()]
    rule = "`prompt` must not be empty: the network has no mask to begin from; its tokens number"
    require(len(ids) > 0, rule, len(ids))
    check_count("max_new", max_new)
    last = speaker.tokenizer.num_tokens - 1
    for token in stop_tokens:  # before an array is made of them, which holds 64 bits
        require(0 <= token <= last, f"`stop_tokens` must hold ids in [0, {last}]", token)
    check_sample_fits(num_samples, len(ids) + max_new, speaker.tokenizer.num_tokens)
    sample = sample_autoregressive(
        jax.random.key(seed),
        speaker.params,
        speaker.decoder,
        np.tile(np.array(ids, np.int32), (num_samples, 1)),
        np.full(num_samples, len(ids), np.int32),
        max_new=max_new,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_tokens=stop_tokens,
    )
    rows = zip(np.asarray(sample.tokens), np.asarray(sample.lengths), strict=True)
    return [row[len(speaker.start) : length].tolist() for row, length in rows]


def _speaker(
    configs: Sequence[TrainConfig],
    params: Sequence[Params],
    log_prior: np.ndarray | None,
    pieces: Tokenizer,
) -> Speaker:
    for config in configs:
        rule = "`config.objective` must be autoregressive to continue a prompt"
        require(config.objective == "autoregressive", rule, config.objective)
    decoders = tuple(transformer_decoder(config.model) for config in configs)
    model = configs[0].model
    start = (model.num_tokens,) if model.states > model.num_tokens else ()
    if log_prior is None:
        return Speaker(decoders[0], params[0], start, pieces)
    mixed = mixture_params(decoders, log_prior, params)
    return Speaker(mixture_decoder(decoders), mixed, start, pieces)


def _averaged(state: TrainState) -> Params:
    """The average of the parameters where one is kept."""
    return state.params if state.ema is None else state.ema
