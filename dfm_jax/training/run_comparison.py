"""The dense model and the experts of one run on the same held-out rows, as JSON values.

Each row is scored once by every model. All gates mix the same scores, the Bayes gate among them,
which is the ensemble of `make-ensemble`; a gate starts again with each row. Differences are paired
by document.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.comparison.evaluation_sets import EvaluationSet
from dfm_jax.comparison.gates import Sequences
from dfm_jax.comparison.record import gate_comparison_record
from dfm_jax.data.tokens import Tokenizer
from dfm_jax.mixture import bayes_gate, mix_log_probs
from dfm_jax.storage.folders import Folder
from dfm_jax.training.batches import Batch
from dfm_jax.training.checkpoint import checkpoint_steps
from dfm_jax.training.compared_rows import (
    ComparedRows,
    TokenLogProbs,
    check_comparable,
    compared_rows,
    token_log_probs,
)
from dfm_jax.training.digests import CheckpointError
from dfm_jax.training.ensemble import (
    MANIFEST,
    Ensemble,
    check_ensemble,
    make_ensemble,
    read_ensemble,
)
from dfm_jax.training.equal_cost import member_cost, training_cost
from dfm_jax.training.evaluation import Trained, load_expert, load_member
from dfm_jax.training.loop import METRICS
from dfm_jax.training.members import member_folder, read_member, tokenizer_of
from dfm_jax.training.metrics import metric_name, read_metrics
from dfm_jax.training.step import batch_size_of

SUMS_WITHIN = 1e-6  # nats per document, of the account
_NUM_TEXTS = 3
_MOST_POINTS = 200  # of a curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """What a comparison depends on besides the models and the rows; stated before it is made.

    Raises:
        ValueError: if a number lies outside its domain.
    """

    margin: float = 0.01  # nats per byte: the smallest difference that matters
    level: float = 0.95  # of all intervals, and of the verdict
    alpha: float = 0.01  # of fixed share
    prefix: int = 16  # tokens after which a gate is kept
    num_draws: int = 10_000  # of the bootstrap over documents
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        """Refuse them by name before anything is computed."""
        check_interval("margin", self.margin, 0.0, np.inf, ends="()")
        check_interval("level", self.level, 0.5, 1.0, ends="()")
        check_interval("alpha", self.alpha, 0.0, 1.0)
        check_count("prefix", self.prefix)
        check_count("num_draws", self.num_draws)
        check_count("seed", self.seed, at_least=0)


def compare_run(
    run: Folder,
    *,
    dense_run: Folder | None = None,
    data: Path | None = None,
    tokenizer: Path | None = None,
    best: bool = False,
    text_only: bool = False,
    options: ComparisonOptions | None = None,
) -> dict[str, Any]:
    """Compare the experts of a run with its dense model, by every gate.

    Args:
        run: The folder of the run. Its experts are those of its `ensemble.json`, or else all.
        dense_run: The run that holds the dense model, if it is another one.
        data: A folder that `partition` or `route` wrote; by default the documents held out.
        tokenizer: The tokenizer.json file of the run, if it had one.
        best: Whether to take the best checkpoints and not the last; an ensemble names its own.
        text_only: Whether to read only the text of rows in `data` that have pictures.
        options: The numbers that the comparison depends on.

    Raises:
        CheckpointError: if there is no expert, or no dense model, with a checkpoint.
        ValueError: if the models cannot be compared: they have other tokenizers, windows or data,
            or nothing was held out.
    """
    options = ComparisonOptions() if options is None else options
    ensemble = _ensemble(run, best)
    folder = member_folder(run if dense_run is None else dense_run, None)
    if not checkpoint_steps(folder):
        raise CheckpointError(
            f"{folder} must hold the dense model with which the experts are compared; got no "
            "checkpoint. Train it with `launch --dense`, or name the run that has it."
        )
    members = [run / expert.name for expert in ensemble.experts]
    check_comparable(folder, members)
    reading = {"data": data, "tokenizer": tokenizer}
    rows = compared_rows(folder, members, text_only=text_only, **reading)
    dense = load_member(folder, best=best)
    scores = [token_log_probs(dense.state, dense.config, rows.rows)]
    spent = [member_cost(folder.name, dense.config, dense.step)]
    for expert in ensemble.experts:  # one at a time is in memory
        config, state = load_expert(run, expert)
        scores.append(token_log_probs(state, config, rows.rows))
        spent.append(member_cost(expert.name, config, expert.step))
    evaluated = evaluation_set(rows, scores)
    names = [expert.name for expert in ensemble.experts]
    labels = {"expert": tuple(names[k] for k in rows.part)} | dict(rows.groups)
    kept = evaluated.documents
    record = gate_comparison_record(
        evaluated.sequences,
        ensemble.log_weights,
        options.alpha,
        None,
        prefixes=(options.prefix,),
        num_draws=options.num_draws,
        seed=options.seed,
        num_bytes=None if rows.num_bytes is None else rows.num_bytes[kept],
        groups=_masks(labels, kept),
        margin=options.margin,
        level=options.level,
    )
    rule = f"The terms of the account must sum to the difference within {SUMS_WITHIN} nats"
    residual = record["sum_residual"]
    require(residual <= SUMS_WITHIN, rule, residual, name="the residual of a document")
    of_text = rows.num_bytes is not None
    pieces = _tokenizer(folder, dense, tokenizer) if of_text else None
    every = [folder, *members]
    return {
        "run": str(run),
        "dense_run": str(folder.parent),
        "data": None if data is None else str(data),
        "experts": names,
        "weights": [float(weight) for weight in ensemble.weights],
        "unit": "byte" if of_text else "token",
        "documents": len(kept),
        "tokens": len(scores[0].log_probs),
        "size": record["bytes"],
        "options": dataclasses.asdict(options) | {"checkpoint": "best" if best else "last"},
        "dense": record["dense_nll"],
        "gates": [_row(row, labels) for row in record["rows"]],
        "residuals": {name: record[f"{name}_residual"] for name in ("sum", "b1")},
        "training": training_cost(spent[0], spent[1:]),
        "curves": [_curve(member, cost) for member, cost in zip(every, spent, strict=True)],
        "texts": [] if pieces is None else example_texts(rows, scores, ensemble, pieces),
        "versions": {name: version(name) for name in ("dfm_jax", "jax", "numpy")},
    }


def _ensemble(run: Folder, best: bool) -> Ensemble:
    manifest = run / MANIFEST
    if not manifest.is_file():
        return make_ensemble(run, best=best)
    ensemble = read_ensemble(manifest)
    check_ensemble(run, ensemble)
    return ensemble


def _tokenizer(folder: Folder, dense: Trained, path: Path | None) -> Tokenizer:
    record = read_member(folder)
    named = record["data"]["tokenizer"]
    return tokenizer_of(dense.config, path, recorded=named, padded="init" in record)


# ── the documents as sequences ──────────────────────────────────────────────────────────────────


class Evaluated(NamedTuple):
    """The scored rows as an evaluation set, and the number of each document that has a token."""

    sequences: EvaluationSet
    documents: np.ndarray  # [D] ascending


def evaluation_set(rows: ComparedRows, scores: Sequence[TokenLogProbs]) -> Evaluated:
    """Rows as sequences in which gates start again; `scores` are the dense model's, the experts'.

    Raises:
        ValueError: if no token counts.
    """
    dense, *experts = scores
    held = dense.counts > 0
    counts, documents = dense.counts[held], rows.rows.document[held]
    rule = "The held-out rows must hold a token that counts"
    require(counts.size > 0, rule, counts.size, name="number of such rows")
    starts = np.cumsum(counts) - counts
    kept, unit = np.unique(documents, return_inverse=True)
    spans = Sequences(starts=starts, windows=starts, num_bytes=int(counts.sum()))
    found = EvaluationSet(
        name="held out",
        log_probs=np.stack([one.log_probs for one in experts], axis=1),
        dense=dense.log_probs,
        part=np.repeat(rows.part[documents], counts),
        sequences=spans,
        unit=unit,
    )
    return Evaluated(found, kept)


def _masks(labels: Mapping[str, Sequence[str]], documents: np.ndarray) -> dict[str, np.ndarray]:
    """`KIND: LABEL` → which of the documents have it."""
    masks = {}
    for kind, found in labels.items():
        here = np.array(found)[documents]
        masks |= {f"{kind}: {name}": here == name for name in sorted(set(here.tolist()))}
    return masks


def _row(row: Mapping[str, Any], labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A gate variant with its groups by kind."""
    groups = {
        kind: {
            name.removeprefix(f"{kind}: "): found
            for name, found in row["groups"].items()
            if name.startswith(f"{kind}: ")
        }
        for kind in labels
    }
    return dict(row) | {"groups": groups}


# ── what the page shows ─────────────────────────────────────────────────────────────────────────


def _curve(member: Folder, cost: Mapping[str, Any]) -> dict[str, Any]:
    """The losses in the log of a member, in nats per token: points (step, loss)."""
    path = member / METRICS
    lines = read_metrics(path) if path.is_file() else []
    exact = metric_name("exact")

    def points(name: str) -> list[list[float]]:
        found = [[line["step"], line[name]] for line in lines if name in line]
        every = max(1, -(-len(found) // _MOST_POINTS))
        return found[:-1:every] + found[-1:]

    per_step = cost["tokens"] / cost["step"] if cost["step"] else 0
    common = {"name": cost["name"], "tokens_per_step": per_step}
    return common | {"loss": points("loss"), "validation": points(exact)}


def example_texts(
    rows: ComparedRows,
    scores: Sequence[TokenLogProbs],
    ensemble: Ensemble,
    tokenizer: Tokenizer,
) -> list[dict[str, Any]]:
    """The Bayes gate along three rows, each of another part: r_k(x^{<i}) before each token.  [D7]

    Of each part it is the first of its longest rows; the parts are those with the lowest numbers.
    """
    counts, first = scores[0].counts, np.cumsum(scores[0].counts) - scores[0].counts
    part = rows.part[rows.rows.document]
    found = []
    for k in np.unique(part[counts > 0])[:_NUM_TEXTS].tolist():
        row = int(np.argmax(np.where(part == k, counts, -1)))
        span = slice(first[row], first[row] + counts[row])
        log_probs = np.stack([one.log_probs[span] for one in scores[1:]], axis=1)
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            log_gate, nats = _gate_along(ensemble.log_weights, log_probs)
        found.append(
            {
                "expert": ensemble.experts[k].name,
                "pieces": _pieces(_tokens(rows, row), tokenizer)[-len(log_probs) :],
                "weights": np.exp(np.asarray(log_gate)).round(4).tolist(),
                "nats": {
                    "dense": float(-scores[0].log_probs[span].sum()),
                    "ensemble": float(nats),
                },
            }
        )
    return found


@jax.jit
def _gate_along(log_prior: Any, log_probs: Any) -> tuple[Any, Any]:
    """log r_k(x^{<i}), [N, K], and −log q̂(x) = −Σ_i log Σ_k r_k(x^{<i}) q̂_k(x^i | x^{<i}).   [D7]

    Compiled, it does not refuse the logarithm of a certain token that was rounded to above 0.
    """
    log_gate = bayes_gate(log_prior, log_probs).log_weights[:-1]
    return log_gate, -jnp.sum(jax.vmap(mix_log_probs)(log_gate, log_probs))


def _tokens(rows: ComparedRows, row: int) -> list[int]:
    size = batch_size_of(rows.rows.batches[0])
    batch: Batch = rows.rows.batches[row // size]
    tokens, valid = np.asarray(batch.tokens), np.asarray(batch.valid)
    return tokens[row % size][valid[row % size]].tolist()


def _pieces(tokens: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The text that each token adds; a token inside a character adds none."""
    pieces, first, told = [], 0, 0  # tokens[first:told] added the last text
    for end in range(1, len(tokens) + 1):
        before = tokenizer.decode(list(tokens[first:told]))
        text = tokenizer.decode(list(tokens[first:end]))
        whole = text.startswith(before) and not text.endswith("\ufffd")
        pieces.append(text[len(before) :] if whole else "")
        if whole:
            first, told = told, end
    return pieces
