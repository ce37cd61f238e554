"""train, evaluate, sample: members of a run, what they pay and say."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from dfm_jax.training.texts import Generator


@dataclass(frozen=True, kw_only=True)
class Train:
    r"""Train one expert, or the dense model; the same command goes on after any interruption.

    A finished run is left alone, or lengthened by a larger num_steps; another config is refused.
    Exit status: 0 finished; 2 bad input; 3 a loss that is not finite; 75 trouble that may pass, as
    a full disk; 130 or 143 stopped by SIGINT or SIGTERM, the step in hand saved.

    A member may lie over all devices (--placement), and over several hosts (--distributed): then
    each host gives the same command, and all see the same files. Checkpoints don't depend on it.

    For example:

        python -m dfm_jax train --config tiny --data texts --run run

        python -m dfm_jax train --config small --data parts --expert 3 --run run

        JAX_COORDINATOR_ADDRESS=host0:5555 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 \
            python -m dfm_jax train --config medium --data texts --run run \
            --placement sharded --distributed

        python -m dfm_jax train --config mine.json --set seed=1 model.width=96 \
            --data rows.jsonl --run run

        python -m dfm_jax train --config run/dense/config.json --data texts --run run \
            --set num_steps=200 optimizer.decay_steps=100
    """

    config: str
    """The config: a preset (tiny, small, small-masked, medium), a JSON file, or the config.json of
    a member."""
    data: Path
    """The data: a folder of text, a .jsonl file of rows, or a folder that `partition` wrote."""
    folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of the run; the member is written to RUN/expert_003 or RUN/dense."""
    expert: int | None = None
    """The number of the expert to train; without it, the dense model is trained on all of the
    data."""
    tokenizer: Path | None = None
    """A tokenizer.json file; a preset takes its number of tokens. Without it, tokens are bytes."""
    set: tuple[str, ...] = ()
    """Change single fields of the config: FIELD=VALUE."""
    log_every: int = 10
    """The number of steps between two lines of metrics.jsonl."""
    save_every: int = 200
    """The number of steps between two checkpoints; the last step is saved too."""
    evaluate_every: int = 200
    """The number of steps between two evaluations on held-out documents."""
    keep_last: int = 2
    """The number of checkpoints that are kept, besides the best one."""
    tensorboard: bool = False
    """Write TensorBoard event files too (extra `tb`)."""
    on_disk: bool = False
    """Leave the tokens on the disk and read them ahead (extra `data`); the results do not
    change."""
    text_only: bool = False
    """Read only the text of rows that have pictures."""
    placement: Literal["replicated", "sharded"] | None = None
    """Spread the member over all devices: each holds the whole state (replicated) or a part of it
    (sharded). Without it, one device is used."""
    distributed: bool = False
    """Run as one of several processes, found by JAX_COORDINATOR_ADDRESS and its kin, by SLURM or by
    a Cloud TPU."""

    def run(self) -> int:
        """Go on to the end, or to a signal."""
        from dfm_jax.checks import require
        from dfm_jax.training.config import LogConfig
        from dfm_jax.training.distributed import is_first, join_processes, over_all_devices
        from dfm_jax.training.fit import train_member
        from dfm_jax.training.presets import load_config
        from dfm_jax.training.stopping import ExitStatus, stop_on_signals

        log_config = LogConfig(
            log_every=self.log_every,
            save_every=self.save_every,
            evaluate_every=self.evaluate_every,
            keep_last=self.keep_last,
        )
        config = load_config(self.config, self.set, tokenizer=self.tokenizer)
        if self.distributed:
            rule = "`placement` must be replicated or sharded if several processes train one run"
            require(self.placement is not None, rule, self.placement)
            join_processes()
        layout = None if self.placement is None else over_all_devices(self.placement)
        # Of several processes none may leave the others waiting: a signal is noted from the start.
        with stop_on_signals(asked=self.distributed) as stop:
            outcome = train_member(
                config,
                self.data,
                self.folder,
                expert=self.expert,
                tokenizer=self.tokenizer,
                log_config=log_config,
                stop=stop,
                tensorboard=self.tensorboard,
                on_disk=self.on_disk,
                layout=layout,
                text_only=self.text_only,
                say=print,
            )
        if not is_first():
            pass  # one line is enough
        elif outcome.began_at == outcome.step:
            print(f"{self.folder} is finished already, at step {outcome.step}; nothing was done.")
        elif outcome.finished:
            print(f"finished at step {outcome.step}: {_numbers(outcome.metrics)}")
        else:
            print(f"stopped at step {outcome.step}, saved; the same command goes on from here.")
        return ExitStatus.FINISHED if outcome.finished else stop.status


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Print what each trained member, and their ensemble, pays: nats per token and per byte.

    With 95 % intervals over documents. The documents are those that the member held out, of the
    ensemble those that any of its experts held out, or all of --data. The last column says what the
    number is: −log p, exactly, of a network that reads from left to right; of a masked one an upper
    bound on it, with the standard error of its draws.

    For example:

        python -m dfm_jax evaluate --run run

        python -m dfm_jax evaluate --run run --expert 3 --data other --checkpoint best
    """

    folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of the run."""
    expert: int | None = None
    """The number of the expert to evaluate; without it, every member that is there."""
    data: Path | None = None
    """The documents to evaluate on, all of them; without it, the documents that were held out."""
    tokenizer: Path | None = None
    """The tokenizer.json file of the run, if it had one."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint to read; best is the one of the lowest validation loss among those kept."""
    draws: int = 8
    """The number of draws for each window, where the loss is a bound that is estimated."""
    text_only: bool = False
    """Read only the text of rows in --data that have pictures."""

    def run(self) -> int:
        """Print a line per member."""
        from dfm_jax.data.columns import Columns
        from dfm_jax.training.ensemble import MANIFEST, read_ensemble
        from dfm_jax.training.evaluation import (
            Evaluation,
            can_be_judged,
            evaluate_ensemble,
            evaluate_member,
            members_of,
        )
        from dfm_jax.training.metrics import measure_words

        print(
            f"{'member':<12}{'step':>9}{'documents':>11}{'nats/token':>19}{'nats/byte':>19}"
            "  what it is"
        )
        notes: dict[str, None] = {}

        def tell(name: str, row: Evaluation, columns: Columns) -> None:
            what = measure_words(row.measure, row.num_draws, row.draw_error)
            notes.update({f"{name}: {columns.text()}": None} if columns.unused else {})
            print(
                f"{name:<12}{row.step:>9,}{row.num_documents:>11,}"
                f"{_with_interval(row.per_token):>19}{_with_interval(row.per_byte):>19}  {what}"
            )

        for member in members_of(self.folder, self.expert):
            columns = Columns(text_only=self.text_only)
            row = evaluate_member(
                member,
                data=self.data,
                tokenizer=self.tokenizer,
                best=self.checkpoint == "best",
                columns=columns,
                num_draws=self.draws,
            )
            tell(member.name, row, columns)
        manifest = self.folder / MANIFEST
        if self.expert is None and manifest.is_file():
            ensemble, columns = read_ensemble(manifest), Columns(text_only=self.text_only)
            if can_be_judged(ensemble):
                options = {"data": self.data, "tokenizer": self.tokenizer, "columns": columns}
                row = evaluate_ensemble(self.folder, ensemble, **options)
                tell("ensemble", row, columns)
            else:
                notes["ensemble: not judged, for a mixture of drawn bounds is no bound."] = None
        print("\n".join(notes), end="\n" * bool(notes))
        return 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Continue a prompt with the gathered ensemble or one member of it.

    A network that reads from left to right draws token by token; a masked one fills in --max-new
    masks behind the prompt, along its grid.

    Without --expert: the ensemble that `make-ensemble` made, its experts mixed by the Bayes gate;
    where none was made, the only member there is. A token is drawn from the model's own
    distribution unless it is cut: --temperature, --top-k, --top-p. The same seed draws the same
    text.

    For example:

        python -m dfm_jax sample --run run --prompt "In the beginning" --max-new 200

        python -m dfm_jax sample --run run --expert 3 --num-samples 4 --top-p 0.9 --seed 7

        python -m dfm_jax sample --run run --expert dense --stop 10 --ids
    """

    folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of the run."""
    prompt: str = ""
    """The text that the model continues."""
    expert: int | Literal["dense"] | None = None
    """The member that draws; without it, the ensemble, or the only member there is."""
    max_new: int = 128
    """The largest number of tokens to draw."""
    num_samples: int = 1
    """The number of continuations; each is drawn independently."""
    temperature: float = 1.0
    """The number that divides the logits; at 0 the likeliest token is taken."""
    top_k: int | None = None
    """Keep only the k likeliest tokens."""
    top_p: float | None = None
    """Keep only the fewest likeliest tokens that have this probability in all."""
    stop: tuple[int, ...] = ()
    """The ids of tokens after which a continuation ends."""
    seed: int = 0
    """The seed of the draws."""
    ids: bool = False
    """Print the ids of the tokens, one sample a line, and no text."""
    tokenizer: Path | None = None
    """The tokenizer.json file of the run, if it had one."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint to read; best is the one of the lowest validation loss among those kept. An
    ensemble names its own."""

    def run(self) -> int:
        """Print the texts, a line between two."""
        from dfm_jax.training.texts import sampled_ids

        generator = self._generator()
        samples = sampled_ids(
            generator,
            self.prompt,
            seed=self.seed,
            num_samples=self.num_samples,
            max_new=self.max_new,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            stop_tokens=self.stop,
        )
        if self.ids:
            print("\n".join(" ".join(map(str, ids)) for ids in samples))
        else:
            print("\n――――――――\n".join(generator.tokenizer.decode(ids) for ids in samples))
        return 0

    def _generator(self) -> "Generator":
        from dfm_jax.training.ensemble import MANIFEST, read_ensemble
        from dfm_jax.training.evaluation import members_of
        from dfm_jax.training.members import member_folder
        from dfm_jax.training.texts import ensemble_generator, member_generator

        manifest = self.folder / MANIFEST
        if self.expert is None and manifest.is_file():
            return ensemble_generator(
                self.folder, read_ensemble(manifest), tokenizer=self.tokenizer
            )
        if self.expert is None:
            members = members_of(self.folder)
            if len(members) > 1:
                names = ", ".join(member.name for member in members)
                raise ValueError(
                    f"`expert` must be given if a run has several members; got members {names}. "
                    "Give one of them, or make an ensemble of them with `make-ensemble`."
                )
            (member,) = members
        else:
            number = None if self.expert == "dense" else self.expert
            member = member_folder(self.folder, number)
        best = self.checkpoint == "best"
        return member_generator(member, tokenizer=self.tokenizer, best=best)


def _with_interval(value: tuple[float, float]) -> str:
    mean, half = value  # one document has no interval
    return f"{mean:.4f} ± {'–' if math.isnan(half) else f'{half:.4f}'}"


def _numbers(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


@dataclass(frozen=True, kw_only=True)
class MakeEnsemble:
    """Gather the trained experts of a run into an ensemble: RUN/ensemble.json.

    It names every expert's checkpoint by its hash, and its weight, the share of training tokens, as
    an exact fraction. An expert added, retrained or taken away: run it again.

    For example:

        python -m dfm_jax make-ensemble --run run
    """

    folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of the run."""
    without: tuple[str, ...] = ()
    """The names of the experts to leave out."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint to read; best is the one of the lowest validation loss among those kept."""

    def run(self) -> int:
        """Write the manifest and print it."""
        from dfm_jax.json_types import as_type
        from dfm_jax.training.ensemble import MANIFEST, make_ensemble, write_ensemble

        best = self.checkpoint == "best"
        ensemble = make_ensemble(self.folder, best=best, without=self.without)
        write_ensemble(self.folder / MANIFEST, ensemble)
        print(f"{'expert':<12}{'step':>9}{'of':>9}{'tokens':>14}{'weight':>9}  sha256")
        for expert, weight in zip(ensemble.experts, ensemble.weights, strict=True):
            whole = as_type(int, expert.config["config"].get("num_steps"), "config.num_steps")
            print(
                f"{expert.name:<12}{expert.step:>9,}{whole:>9,}{expert.count:>14,}"
                f"{float(weight):>9.4f}  {expert.sha256[:16]}…"
            )
        return 0
