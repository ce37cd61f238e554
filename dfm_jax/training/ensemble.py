"""An ensemble of trained experts: a manifest of their names, hashes, configs and weights.

The prior of the gate, w_k, is an expert's share of the training tokens. Token counts are integers,
so the weights sum to exactly 1. If an expert is removed and added again, the weights are the same
as before.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from dfm_jax.checks import check_count, require
from dfm_jax.data.listing import lies_inside
from dfm_jax.json_text import read_json
from dfm_jax.json_types import as_type, from_json
from dfm_jax.storage.folders import Folder, StorePath, write_whole
from dfm_jax.training.checkpoint import best_step, checkpoint_steps, read_record
from dfm_jax.training.config import config_digest
from dfm_jax.training.digests import (
    CheckpointError,
    DamagedError,
    mended_by_training,
)

MANIFEST = "ensemble.json"
_MEMBER = re.compile(r"expert_\d{3,}", flags=re.ASCII)  # a copy that lies beside it is no expert
# What experts must share for their next-token distributions to be mixed.
_SHARED = (
    ("data", "tokenizer"),
    ("config", "objective"),
    ("config", "model", "num_tokens"),
    ("config", "model", "num_states"),
)


@dataclass(frozen=True, kw_only=True)
class Expert:
    """One expert: its checkpoint and its number of training tokens."""

    name: str  # the name of its folder in the run
    step: int
    sha256: str  # the hash of its checkpoint's SHA256SUMS
    config_sha256: str
    config: dict[str, Any]  # and its data
    count: int  # its training tokens: w_k = count / Σ count

    def __post_init__(self) -> None:
        """Refuse an expert without training tokens, because w_k must be above 0."""
        check_count("count", self.count)


class _Written(NamedTuple):
    """The content of ensemble.json: an expert's own fields, and its weight."""

    experts: list[dict[str, Any]]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Experts in the order of their names."""

    experts: tuple[Expert, ...]

    def __post_init__(self) -> None:
        """Refuse no experts, two of one name, and experts whose distributions do not mix."""
        names = [expert.name for expert in self.experts]
        if not names:
            raise ValueError("An ensemble must have an expert; got names = [].")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"An ensemble must have each expert once; got {name!r} twice.")
        if names != sorted(names):
            raise ValueError(
                f"Experts must stand in the order of their names; got names = {names}."
            )
        first = self.experts[0]
        for expert in self.experts[1:]:
            for path in _SHARED:
                here, there = _at(first.config, path), _at(expert.config, path)
                if here != there:
                    raise ValueError(
                        f"Experts must have the same `{'.'.join(path)}`; got {path[-1]} = {here!r} "
                        f"for {first.name} and {there!r} for {expert.name}."
                    )

    @property
    def weights(self) -> tuple[Fraction, ...]:
        """The exact weights w_k, which sum to 1."""
        total = sum(expert.count for expert in self.experts)
        return tuple(Fraction(expert.count, total) for expert in self.experts)

    @property
    def log_weights(self) -> np.ndarray:
        """log w_k in float64, [K]: the state of a gate at the start."""
        counts = np.array([expert.count for expert in self.experts], np.float64)
        return np.log(counts) - np.log(counts.sum())

    def with_expert(self, expert: Expert) -> "Ensemble":
        """Add an expert; the weights of the others shrink in proportion."""
        return _ensemble([*self.experts, expert])

    def without_expert(self, name: str) -> "Ensemble":
        """Remove an expert; the weights of the others grow in proportion.

        Raises:
            ValueError: if there is no such expert, or it is the only one.
        """
        self._check_name(name)
        return _ensemble(expert for expert in self.experts if expert.name != name)

    def with_replaced(self, expert: Expert) -> "Ensemble":
        """Replace the expert of the same name; the new one has its own number of tokens.

        Raises:
            ValueError: if there is no expert of that name.
        """
        self._check_name(expert.name)
        return _ensemble([*(e for e in self.experts if e.name != expert.name), expert])

    def _check_name(self, name: str) -> None:
        names = [expert.name for expert in self.experts]
        if name not in names:
            raise ValueError(f"`name` must be one of {', '.join(names)}; got name = {name!r}.")


def read_expert(member: Folder, *, best: bool = False) -> Expert:
    """The expert in a member's last checkpoint, or its best, after it was verified.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged.
    """
    steps = checkpoint_steps(member)
    step = (best_step(member) if best else steps[-1]) if steps else None
    if step is None:
        what = "evaluated checkpoint" if best and steps else "checkpoint"
        raise CheckpointError(f"{member}: no {what} is there.")
    with mended_by_training():
        record = read_record(member / str(step))
    try:
        read = as_type(dict[str, Any], record.config.get("data", {}), "config.data")
        count = as_type(int, read.get("train_tokens"), "config.data.train_tokens")
    except ValueError as error:
        rule = f"{member / str(step)} must be a checkpoint of an expert"
        raise CheckpointError(f"{rule}; got another record: {error}") from error
    return Expert(
        name=member.name,
        step=step,
        sha256=record.sha256,
        config_sha256=config_digest(record.config),
        config=record.config,
        count=count,
    )


def make_ensemble(run: Folder, *, best: bool = False, without: Sequence[str] = ()) -> Ensemble:
    """The ensemble of the experts of a run, `RUN/expert_*`, except those in `without`.

    Raises:
        CheckpointError: if an expert has no checkpoint, or there is no expert.
        ValueError: if `without` names an expert that does not exist, or names all of them.
    """
    members = sorted(path for path in run.glob("expert_*") if _MEMBER.fullmatch(path.name))
    if not members:
        raise CheckpointError(f"{run}: no expert is there.")
    names = [member.name for member in members]
    for name in without:
        require(name in names, f"Each of `without` must be one of {', '.join(names)}", name)
    kept = [_inside(run, member) for member in members if member.name not in without]
    require(bool(kept), "`without` must leave an expert", list(without))
    return _ensemble(read_expert(member, best=best) for member in kept)


def write_ensemble(path: Folder, ensemble: Ensemble) -> None:
    """Write the manifest, completely or not at all."""
    rows = [
        asdict(expert) | {"weight": str(weight)}
        for expert, weight in zip(ensemble.experts, ensemble.weights, strict=True)
    ]
    text = json.dumps({"experts": rows, "sha256": _digest(rows)}, indent=1)
    write_whole(path, text + "\n")


def read_ensemble(path: Folder) -> Ensemble:
    """Read and verify the manifest, but not the checkpoints; `check_ensemble` verifies those.

    Raises:
        CheckpointError: if it is missing.
        DamagedError: if it is not as it was written.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no manifest is there. Make one with `make-ensemble`.")
    try:
        rows, digest = from_json(_Written, read_json(path), where="manifest")
        names = [item.name for item in fields(Expert)]
        ensemble = _ensemble(
            from_json(Expert, {name: row.get(name) for name in names}, where=f"experts.{number}")
            for number, row in enumerate(rows)
        )
    except ValueError as error:
        raise DamagedError(f"{path} must be a manifest; got another content: {error}") from error
    if _digest(rows) != digest:
        found = f"SHA-256 = {_digest(rows)[:16]}…"
        raise DamagedError(
            f"The SHA-256 of {path} must be {digest[:16]}…; got {found}. It is damaged."
        )
    for expert in ensemble.experts:
        checkpoint_folder(path.parent, expert)
    return ensemble


def checkpoint_folder(run: Folder, expert: Expert) -> Folder:
    """The folder of an expert's checkpoint, which must lie inside the folder of the run.

    Raises:
        CheckpointError: if the name is not that of a member; if the step is not a number; if a link
            leads out of the run.
    """
    if not isinstance(expert.name, str) or not _MEMBER.fullmatch(expert.name):
        rule = "`name` must be that of a member, such as expert_000"
        raise CheckpointError(f"{rule}; got name = {expert.name!r}.")
    if type(expert.step) is not int or expert.step < 0:
        rule = "`step` must be a whole number, at least 0"
        raise CheckpointError(f"{rule}; got step = {expert.step!r}.")
    return _inside(run, run / expert.name / str(expert.step))


def _inside(run: Folder, path: Folder) -> Folder:
    """`path`, if no link leads out of the run, because an ensemble lies in one folder."""
    if isinstance(path, StorePath) or isinstance(run, StorePath):  # a store has no links
        return path
    if not lies_inside(path, run):
        there = os.path.realpath(path)
        raise CheckpointError(f"{path} must lie in the folder of the run; got a link to {there}.")
    return path


def check_ensemble(run: Folder, ensemble: Ensemble) -> None:
    """Check that every expert's checkpoint is there, is undamaged, and is the one in the manifest.

    Raises:
        CheckpointError: if one is not; the message names the first.
    """
    for expert in ensemble.experts:
        path = checkpoint_folder(run, expert)
        found = read_record(path).sha256
        if found != expert.sha256:
            raise CheckpointError(
                f"{path}: the SHA-256 of the checkpoint must be {expert.sha256[:16]}…, as the "
                f"ensemble says; got SHA-256 = {found[:16]}…. It is another checkpoint."
            )


def _ensemble(experts: Iterable[Expert]) -> Ensemble:
    return Ensemble(experts=tuple(sorted(experts, key=lambda expert: expert.name)))


def _digest(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _at(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = config.get(name) if isinstance(config, dict) else None
    return config
