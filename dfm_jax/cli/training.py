"""train, evaluate and gather: one member of a run, resumable; what it pays; the ensemble."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Train:
    r"""Train one expert, or the centre; the same command goes on after any interruption.

    A finished run is left alone, another config refused. Exit status: 0 finished; 2 bad input; 3 a
    loss that is not finite; 130 or 143 stopped by SIGINT or SIGTERM, everything saved.

    For example:

        python -m dfm_jax train --config tiny --data texts --run run

        python -m dfm_jax train --config small --data parts --expert 3 --run run

        python -m dfm_jax train --config mine.json --set seed=1 model.width=96 \
            --data rows.jsonl --run run
    """

    config: str
    """A preset (tiny, small, small-masked, medium), a JSON file, or the config.json of a member."""
    data: Path
    """A folder of text, rows as .jsonl, or a folder that `partition` wrote."""
    folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of the run; the member writes to RUN/expert_003 or RUN/centre."""
    expert: int | None = None
    """Which expert of the partition; without it, the centre."""
    tokenizer: Path | None = None
    """A tokenizer.json; without it, bytes."""
    set: tuple[str, ...] = ()
    """Single fields of the config, as FIELD=VALUE."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 200
    """Steps between checkpoints; the last step is saved too."""
    evaluate_every: int = 200
    """Steps between evaluations on held-out documents."""
    keep_last: int = 2
    """Checkpoints kept, besides the best."""
    tensorboard: bool = False
    """Write event files too (extra `tb`)."""

    def run(self) -> int:
        """Go on to the end, or to a signal."""
        from dfm_jax.training.config import Watch
        from dfm_jax.training.presets import load_config
        from dfm_jax.training.run import train_member
        from dfm_jax.training.stopping import ExitStatus, NonFiniteError, stop_on_signals

        watch = Watch(
            log_every=self.log_every,
            save_every=self.save_every,
            evaluate_every=self.evaluate_every,
            keep_last=self.keep_last,
        )
        with stop_on_signals() as stop:
            try:
                outcome = train_member(
                    load_config(self.config, self.set),
                    self.data,
                    self.folder,
                    expert=self.expert,
                    tokenizer=self.tokenizer,
                    watch=watch,
                    stop=stop,
                    tensorboard=self.tensorboard,
                )
            except NonFiniteError as error:
                print(f"python -m dfm_jax train: {error}", file=sys.stderr)
                return ExitStatus.NON_FINITE
        if outcome.began_at == outcome.step:
            print(f"{self.folder} is finished already, at step {outcome.step}; nothing was done.")
        elif outcome.finished:
            print(f"finished at step {outcome.step}: {_numbers(outcome.metrics)}")
        else:
            print(f"stopped at step {outcome.step}, saved; the same command goes on from here.")
        return ExitStatus.FINISHED if outcome.finished else stop.status


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What each trained member pays for held-out documents: nats per token and per byte.

    With 95 % intervals over documents. The documents are those that the member held out, or all of
    --data.

    For example:

        python -m dfm_jax evaluate --run run

        python -m dfm_jax evaluate --run run --expert 3 --data other --checkpoint best
    """

    folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of the run."""
    expert: int | None = None
    """Which expert; without it, every member that is there."""
    data: Path | None = None
    """Documents to judge by, all of them; without it, those that were held out."""
    tokenizer: Path | None = None
    """The tokenizer.json of the run, if it had one."""
    checkpoint: Literal["last", "best"] = "last"
    """Best: of the lowest validation loss among those kept."""

    def run(self) -> int:
        """Print a line per member."""
        from dfm_jax.training.evaluation import evaluate_member, members_of

        print(f"{'member':<12}{'step':>9}{'documents':>11}{'nats/token':>19}{'nats/byte':>19}")
        for member in members_of(self.folder, self.expert):
            row = evaluate_member(
                member, data=self.data, tokenizer=self.tokenizer, best=self.checkpoint == "best"
            )
            print(
                f"{member.name:<12}{row.step:>9,}{row.num_documents:>11,}"
                f"{_with_interval(row.per_token):>19}{_with_interval(row.per_byte):>19}"
            )
        return 0


def _with_interval(value: tuple[float, float]) -> str:
    return f"{value[0]:.4f} ± {value[1]:.4f}"


def _numbers(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
