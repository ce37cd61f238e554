"""What a trained member says: a prompt continued, as text."""

from pathlib import Path

import jax
import numpy as np

from dfm_jax.checks import check_count, require
from dfm_jax.models import transformer_decoder
from dfm_jax.sampling import sample_autoregressive
from dfm_jax.training.evaluation import load_member
from dfm_jax.training.members import tokenizer_of


def sampled_texts(
    member: Path,
    prompt: str,
    *,
    seed: int = 0,
    num_samples: int = 1,
    max_new: int = 128,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: tuple[int, ...] = (),
    tokenizer: Path | None = None,
    best: bool = False,
) -> list[str]:
    """The prompt and what the member makes of it, `num_samples` times.   [S1]

    A text begins where training sequences do: behind the mask, if the network has one. Beyond the
    length of training sequences nothing was learned about positions.

    Raises:
        CheckpointError: if the member has no good checkpoint.
        ValueError: if it was not trained left to right, or the prompt is empty and there is no mask
            to begin from; see also `sample_autoregressive`.
    """
    check_count("num_samples", num_samples)
    trained = load_member(member, best=best)
    config, model = trained.config, trained.config.model
    rule = "`config.objective` must be autoregressive to continue a prompt"
    require(config.objective == "autoregressive", rule, config.objective)
    pieces = tokenizer_of(config, tokenizer)
    start = [model.num_tokens] if model.states > model.num_tokens else []
    ids = [*start, *pieces.encode(prompt)]
    rule = "`prompt` must not be empty: the network has no mask to begin from; its tokens number"
    require(len(ids) > 0, rule, len(ids))
    params = trained.state.params if trained.state.ema is None else trained.state.ema
    sample = sample_autoregressive(
        jax.random.key(seed),
        params,
        transformer_decoder(model),
        np.tile(np.array(ids, np.int32), (num_samples, 1)),
        np.full(num_samples, len(ids), np.int32),
        max_new=max_new,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_tokens=stop_tokens,
    )
    rows = zip(np.asarray(sample.tokens), np.asarray(sample.lengths), strict=True)
    return [pieces.decode(row[len(start) : length].tolist()) for row, length in rows]
