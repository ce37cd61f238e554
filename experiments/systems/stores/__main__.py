"""Checkpoints to an object store cost a training loop about what those to a disk cost it.

    python -m experiments.stores --preset standard

The same training loop runs with checkpoints to a folder of this disk, and to a server of objects
on loopback, in turns; a third loop saves only its last state, to the disk. Checkpoints are written
by a thread beside the steps. The server is another process of the same machine, so it takes time
from the loop that a server elsewhere would not take. Each loop is timed from its first update to
the end of its last checkpoint; compiling is not counted.
"""

import os
import shutil
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from dfm_jax.models.config import TransformerConfig
from dfm_jax.storage import Folder, run_folder
from dfm_jax.training.checkpoint import read_record
from dfm_jax.training.config import LogConfig, OptimizerConfig, TrainConfig
from dfm_jax.training.fit import make_run
from dfm_jax.training.loop import Run, train
from dfm_jax.training.members import load_member_data
from experiments.lib import reporting, study
from experiments.lib.corpora import write_texts
from experiments.lib.reporting import Verdict
from experiments.systems.stores.config import PRESETS, Config, check_config
from experiments.systems.stores.server import BUCKET, s3_environment, s3_server

PACKAGES = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "obstore", "moto")
VARIANTS = ("one checkpoint", "disk", "store")
_PROG = "python -m experiments.stores"
_RATIO = 1.15  # the store's loop over the disk's
_ROWS, _LENGTH = 4, 64


def make_loop(config: Config) -> Run:
    """The run that every variant makes; its programs are compiled by the first of them."""
    texts = config.out / "texts"
    shutil.rmtree(texts, ignore_errors=True)
    write_texts(texts)
    model = TransformerConfig(
        num_tokens=256,
        num_states=257,
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.width // 32,
        ffn_width=4 * config.width,
    )
    trained = TrainConfig(
        model=model,
        optimizer=OptimizerConfig(warmup_steps=2),
        num_steps=config.num_steps,
        batch_size=_ROWS,
        num_positions=_LENGTH,
        held_out=0.0,
    )
    return make_run(trained, load_member_data(texts, trained, None), LogConfig())


def seconds_of(run: Run, folder: Folder, save_every: int) -> float:
    """Seconds of the loop, from the first update to the end of the last checkpoint."""
    began: list[float] = []

    def update(state: Any, step: int) -> tuple[Any, Any]:
        if not began:
            jax.block_until_ready(state)
            began.append(time.perf_counter())
        return run.update(state, step)

    log_config = LogConfig(log_every=10, save_every=save_every)
    train(
        run._replace(update=update, updates=None),
        folder,
        config={},
        log_config=log_config,
        say=lambda text: None,
    )
    return time.perf_counter() - began[0]


def measured(config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each loop, and what the checkpoints are."""
    disk = config.out / "disk"
    shutil.rmtree(disk, ignore_errors=True)
    run, rows = make_loop(config), list[dict[str, Any]]()
    seconds_of(run._replace(num_steps=2), disk / "warm", 2)
    for number in range(config.rounds):
        for variant in VARIANTS:
            name = f"{variant.replace(' ', '_')}_{number}"
            folder = run_folder(f"s3://{BUCKET}/{name}") if variant == "store" else disk / name
            every = config.num_steps if variant == "one checkpoint" else config.save_every
            rows.append(
                {
                    "round": number,
                    "variant": variant,
                    "seconds": seconds_of(run, folder / "dense", every),
                }
            )
            if variant != "store" and number:
                shutil.rmtree(disk / name)
    last = str(config.num_steps)
    here = read_record(disk / "disk_0" / "dense" / last)
    there = read_record(run_folder(f"s3://{BUCKET}/store_0") / "dense" / last)
    files = [path for path in (disk / "disk_0" / "dense" / last).rglob("*") if path.is_file()]
    return rows, {
        "megabytes_of_a_checkpoint": sum(path.stat().st_size for path in files) / 1e6,
        "files_of_a_checkpoint": len(files),
        "leaves_that_differ": sum(here.leaves[name] != there.leaves[name] for name in here.leaves),
    }


def verdicts_of(ratio: float, differing: int) -> tuple[Verdict, ...]:
    """The claims, whose bounds are stated only here."""
    return (
        Verdict("seconds of the store's loop over the disk's", "loop", ratio, "≤", _RATIO),
        Verdict("leaves of the last checkpoint that differ", "checkpoint", differing, "≤", 0),
    )


def show(console: Console, medians: Mapping[str, float], found: Mapping[str, Any]) -> None:
    """Print the medians."""
    table = Table(title=f"A checkpoint has {found['megabytes_of_a_checkpoint']:.1f} MB")
    for name in ("checkpoints to", "seconds, median", "over the disk's"):
        table.add_column(name, justify="left" if name == "checkpoints to" else "right")
    for variant in VARIANTS:
        table.add_row(
            variant, f"{medians[variant]:.2f}", f"{medians[variant] / medians['disk']:.3f}"
        )
    console.print(table)


def run(config: Config, console: Console) -> bool:
    """Run the whole study: files into `config.out`; return whether every claim holds."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with s3_server() as port:
        os.environ.update(s3_environment(f"http://127.0.0.1:{port}"))
        rows, found = measured(config)
    medians = {
        variant: statistics.median(row["seconds"] for row in rows if row["variant"] == variant)
        for variant in VARIANTS
    }
    ratio = medians["store"] / medians["disk"]
    return reporting.conclude(
        console,
        config,
        versions=reporting.installed(PACKAGES),
        seeds=[0],
        rows=rows,
        summary={
            "median_seconds": medians,
            "store_over_disk": ratio,
            "added_by_disk_seconds": medians["disk"] - medians["one checkpoint"],
            "added_by_store_seconds": medians["store"] - medians["one checkpoint"],
            **found,
        },
        verdicts=verdicts_of(ratio, found["leaves_that_differ"]),
        tables=lambda: show(console, medians, found),
    )


main = study.main_of(_PROG, PRESETS, run, check_config)

if __name__ == "__main__":
    raise SystemExit(main())
