"""The commands train, evaluate, sample, make-ensemble, export: they work on members of a run."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dfm_jax.cli.arguments import KeepBuffers, RunFolder
from dfm_jax.training.trackers import TrackerName

if TYPE_CHECKING:
    from dfm_jax.training.texts import Generator


@dataclass(frozen=True, kw_only=True)
class Train:
    r"""Train one expert, or the dense model; the same command goes on after any interruption.

    A finished run is left as it is, unless num_steps is larger now: then it goes on. Another config
    is refused. The exit status is 0 if the run is finished; 2 if the input is bad; 3 if a loss is
    not finite; 75 if there is trouble that may pass, such as a full disk; 130 or 143 if SIGINT or
    SIGTERM stopped the run, after the current step was saved.

    A member (an expert or the dense model) can use all devices (--placement) and several hosts
    (--distributed). With several hosts, the same command is started on each, and all see the same
    files. Checkpoints do not depend on the number of devices.

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

        python -m dfm_jax train --config small --init llama --data texts --run run
    """

    config: str
    """The config: a preset (tiny, small, small-masked, medium, llava-1.5-7b, internvl2.5-1b), a
    JSON file, or the config.json of a member."""
    data: Path
    """The data: a folder of text, a .jsonl file of rows, or a folder that `partition` wrote. A
    config with `pictures` takes rows in LLaVA's form (a .jsonl file or a JSON array), or InternVL's
    file of several sets of rows."""
    folder: RunFolder
    """The folder of the run; the member is written to RUN/expert_003 or RUN/dense. It may lie on an
    object store: gs://BUCKET/RUN or s3://BUCKET/RUN (extra `stores`)."""
    expert: int | None = None
    """The number of the expert to train; without it, the dense model is trained on all data."""
    tokenizer: Path | None = None
    """A tokenizer.json file; a preset takes its number of tokens. Without it, tokens are bytes. A
    config with `pictures` needs one, or a Hugging Face folder that holds it."""
    images: Path | None = None
    """The folder of the pictures that rows name; without it, the folder `images` in --data, or
    beside it if it is a file. Only for a config with `pictures`."""
    pixels: Path | None = None
    """The folder where pictures are kept as the network reads them; several members can share it.
    Without it, they are kept in the folder of the member. Only for a config with `pictures`."""
    set: tuple[str, ...] = ()
    """Change single fields of the config: FIELD=VALUE."""
    freeze: tuple[str, ...] = ()
    """The parts of the network that are not trained, by the names of their parameters: embed_tokens
    layers_0 layers_1/mlp; in a name, * stands for any characters."""
    init: str | None = None
    """Start from the parameters in this Hugging Face folder, or repository org/name. A preset takes
    its network, and its tokenizer is taken unless another one is given."""
    log_every: int = 10
    """The number of steps between two lines of metrics.jsonl."""
    save_every: int = 200
    """The number of steps between two checkpoints; the last step is saved too."""
    evaluate_every: int = 200
    """The number of steps between two evaluations on held-out documents."""
    keep_last: int = 2
    """The number of checkpoints that are kept, besides the best one."""
    tracker: TrackerName | None = None
    """Also tell the lines of metrics.jsonl to this tracker (extra `tb`, `trackio` or `wandb`)."""
    tensorboard: bool = False
    """The old name of `--tracker tensorboard`, until version 0.3."""
    on_disk: bool = False
    """Leave the tokens on the disk and read them ahead (extra `data`). Results stay the same. Of
    pictures, which always stay on the disk, batches are read ahead."""
    text_only: bool = False
    """Read only the text of rows that have pictures."""
    placement: Literal["replicated", "sharded"] | None = None
    """Spread the member over all devices: each device holds the whole state (replicated) or a part
    of it (sharded). Without this option, one device is used."""
    distributed: bool = False
    """Run as one of several processes. They find each other by JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, by SLURM, or by a Cloud TPU."""
    keep_buffers: KeepBuffers = True

    def run(self) -> int:
        """Train to the end, or until a signal comes."""
        from dfm_jax.checks import require
        from dfm_jax.models.pretrained import open_folder
        from dfm_jax.training.config import LogConfig, to_json
        from dfm_jax.training.distributed import is_first, join_processes, over_all_devices
        from dfm_jax.training.fit import train_member
        from dfm_jax.training.members import member_folder
        from dfm_jax.training.presets import load_config, with_freeze
        from dfm_jax.training.pretrained import folder_tokenizer
        from dfm_jax.training.stopping import ExitStatus, stop_on_signals
        from dfm_jax.training.trackers import open_tracker, tracker_name

        name = tracker_name(self.tracker, self.tensorboard)
        log_config = LogConfig(
            log_every=self.log_every,
            save_every=self.save_every,
            evaluate_every=self.evaluate_every,
            keep_last=self.keep_last,
        )
        init, tokenizer = None, self.tokenizer
        if self.init is not None:
            init = open_folder(self.init)
            tokenizer = folder_tokenizer(init) if tokenizer is None else tokenizer
        changes = with_freeze(self.set, self.freeze)
        config = load_config(self.config, changes, tokenizer=tokenizer, init=init)
        if self.distributed:
            rule = "`placement` must be replicated or sharded if several processes train one run"
            require(self.placement is not None, rule, self.placement)
            join_processes()
        layout = None if self.placement is None else over_all_devices(self.placement)
        member = member_folder(self.folder, self.expert)
        # Of several processes none may leave the others waiting: a signal is noted from the start.
        with (
            stop_on_signals(asked=self.distributed) as stop,
            open_tracker(name, member, config=to_json(config)) as tracker,
        ):
            outcome = train_member(
                config,
                self.data,
                self.folder,
                expert=self.expert,
                tokenizer=tokenizer,
                log_config=log_config,
                stop=stop,
                tracker=tracker,
                on_disk=self.on_disk,
                layout=layout,
                text_only=self.text_only,
                init=init,
                images=self.images,
                pixels=self.pixels,
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
    """Print the loss of each trained member, and of their ensemble, in nats per token and per byte.

    A member is an expert or the dense model. Each loss has a 95 % interval over documents. A member
    is evaluated on the documents that it held out, and the ensemble on those that any of its
    experts held out; with --data, on all documents of --data. The last column says what the number
    is. For a network that reads from left to right, it is exactly −log p. For a masked network, it
    is an upper bound on −log p, with the standard error that comes from the draws.

    For example:

        python -m dfm_jax evaluate --run run

        python -m dfm_jax evaluate --run run --expert 3 --data other --checkpoint best
    """

    folder: RunFolder
    """The folder of the run, which may lie on an object store."""
    expert: int | None = None
    """The number of the expert to evaluate; without it, every member is evaluated."""
    data: Path | None = None
    """Evaluate on all of these documents; without it, on the documents that were held out."""
    tokenizer: Path | None = None
    """The tokenizer.json file of the run, if it had one."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint to read; best is the one of the lowest validation loss among those kept."""
    draws: int = 8
    """The number of draws for each window, if the loss is a bound that draws estimate."""
    text_only: bool = False
    """Read only the text of rows in --data that have pictures."""
    keep_buffers: KeepBuffers = True

    def run(self) -> int:
        """Print one line for each member."""
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
    """Continue a prompt with the ensemble of a run, or with one of its members.

    A network that reads from left to right draws token by token. A masked network puts --max-new
    masks after the prompt and fills them in along its time grid.

    Without --expert, the ensemble that `make-ensemble` made draws, with its experts mixed by the
    Bayes gate. If there is no ensemble, the only member of the run draws. Tokens are drawn from the
    model's own distribution, unless --temperature, --top-k or --top-p changes it. The same seed
    draws the same text.

    For example:

        python -m dfm_jax sample --run run --prompt "In the beginning" --max-new 200

        python -m dfm_jax sample --run run --expert 3 --num-samples 4 --top-p 0.9 --seed 7

        python -m dfm_jax sample --run run --expert dense --stop 10 --ids
    """

    folder: RunFolder
    """The folder of the run, which may lie on an object store."""
    prompt: str = ""
    """The text that the model continues."""
    expert: int | Literal["dense"] | None = None
    """The member that draws; without it, the ensemble draws, or else the only member."""
    max_new: int = 128
    """The largest number of tokens to draw."""
    num_samples: int = 1
    """The number of continuations; each is drawn independently."""
    temperature: float = 1.0
    """The number that divides the logits; at 0 the most likely token is taken."""
    top_k: int | None = None
    """Keep only the k most likely tokens."""
    top_p: float | None = None
    """Keep only the most likely tokens: as few as have this probability together."""
    stop: tuple[int, ...] = ()
    """The ids of tokens after which a continuation ends."""
    seed: int = 0
    """The seed of the draws."""
    ids: bool = False
    """Print the ids of the tokens, one sample a line, and no text."""
    tokenizer: Path | None = None
    """The tokenizer.json file of the run, if it had one."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint of a member to read; best is the one of the lowest validation loss among
    those kept. An ensemble names its checkpoints itself."""
    keep_buffers: KeepBuffers = True

    def run(self) -> int:
        """Print the texts, with a line between any two."""
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


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a trained member as a Hugging Face folder: config.json, weights, and its tokenizer.

    The folder that --init named at training gives what stands beside the weights: the tokens that
    begin and end a text, the settings of generation, the template of chats. If the run keeps an
    average of the parameters, the average is written.

    For example:

        python -m dfm_jax export --run run --expert 3 --out expert_3

        python -m dfm_jax export --run run --expert dense --out dense --checkpoint best --like llama
    """

    folder: RunFolder
    """The folder of the run, which may lie on an object store."""
    expert: int | Literal["dense"]
    """The member to write."""
    out: Path
    """The folder to write, which must not exist yet."""
    like: str | None = None
    """A folder of the same kind, or a repository org/name, in the place of the one that --init
    named at training."""
    tokenizer: Path | None = None
    """The tokenizer.json file of the run, if it is not that of the folder."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint to read; best is the one of the lowest validation loss among those kept."""

    def run(self) -> int:
        """Write the folder and say where it is."""
        from dfm_jax.models.pretrained import open_folder
        from dfm_jax.training.export import export_member
        from dfm_jax.training.members import member_folder

        member = member_folder(self.folder, None if self.expert == "dense" else self.expert)
        export_member(
            member,
            self.out,
            like=None if self.like is None else open_folder(self.like),
            tokenizer=self.tokenizer,
            best=self.checkpoint == "best",
        )
        print(f"{self.out}: {member.name} as a Hugging Face folder.")
        return 0


def _with_interval(value: tuple[float, float]) -> str:
    mean, half = value  # one document has no interval
    return f"{mean:.4f} ± {'–' if math.isnan(half) else f'{half:.4f}'}"


def _numbers(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


@dataclass(frozen=True, kw_only=True)
class MakeEnsemble:
    """Write RUN/ensemble.json, which makes an ensemble of the trained experts of a run.

    The file names the checkpoint of each expert by its hash. It gives each expert a weight, its
    share of the training tokens, as an exact fraction. Run the command again after an expert was
    added, trained again or removed.

    For example:

        python -m dfm_jax make-ensemble --run run
    """

    folder: RunFolder
    """The folder of the run, which may lie on an object store."""
    without: tuple[str, ...] = ()
    """The names of the experts to leave out."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint to read; best is the one of the lowest validation loss among those kept."""

    def run(self) -> int:
        """Write the file and print it."""
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
