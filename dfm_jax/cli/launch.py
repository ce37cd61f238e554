"""The command launch: each expert becomes a process here, a SLURM task, or a Kubernetes pod."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dfm_jax.cli.arguments import KeepBuffers, RunFolder
from dfm_jax.training.trackers import TrackerName

if TYPE_CHECKING:
    from dfm_jax.launch import DeviceSet, Job
    from dfm_jax.models.pretrained import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Members:
    """Which members are trained, and how: the options of `train`."""

    config: str
    """The config: a preset (tiny, small, small-masked, medium, llava-1.5-7b, internvl2.5-1b), a
    JSON file, or the config.json of a member."""
    data: Path
    """The folder of the data, as `partition` wrote it."""
    folder: RunFolder
    """The folder of the run, which may lie on an object store."""
    experts: tuple[int, ...] = ()
    """The numbers of the experts to train; by default every expert of the data."""
    dense: bool = False
    """Train the dense model on all of the data too."""
    total_steps: int | None = None
    """The steps S of the dense model, divided among the experts: expert k makes round(w_k S), where
    w_k is its share of the data. Without it every member makes the num_steps of the config, and K
    experts read K times what the dense model reads."""
    grid: tuple[str, ...] = ()
    """Instead of members, train the groups of this `sweep` over all data: FIELD=VALUE,VALUE."""
    tokenizer: Path | None = None
    """A tokenizer.json file; without it, tokens are bytes. A config with `pictures` needs one, or a
    Hugging Face folder that holds it."""
    images: Path | None = None
    """The folder of the pictures that rows name; without it, the folder `images` in --data. Only
    for a config with `pictures`."""
    pixels: Path | None = None
    """The folder where pictures are kept as the network reads them, shared by all members. Without
    it, each keeps them in its own folder. Only for a config with `pictures`."""
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
    """Leave the tokens on the disk and read them ahead (extra `data`). Results stay the same."""
    text_only: bool = False
    """Read only the text of rows that have pictures."""
    placement: Literal["replicated", "sharded"] | None = None
    """Spread each member over all devices of its hosts, replicated or sharded; by default a member
    uses one device."""
    keep_buffers: KeepBuffers = True

    def jobs(self, hosts: int = 1) -> "list[Job]":
        """One `train` command for each member, or one `sweep` command for each group.

        Raises:
            ValueError: if there is no such preset; if it has no such field, or a value is not
                allowed; if a count is below 1; if a group of a sweep is to run on several hosts; if
                a member is to run on several hosts and no placement is given.
        """
        from dfm_jax.checks import require
        from dfm_jax.launch import experts_of, sweep_jobs, train_jobs
        from dfm_jax.training.config import LogConfig
        from dfm_jax.training.presets import load_config, with_freeze
        from dfm_jax.training.trackers import tracker_name

        init = self._initial_here()
        if not self.config.endswith(".json") and (self.init is None or init is not None):
            # A file, or the folder of --init, may lie where the members will run.
            load_config(self.config, with_freeze(self.set, self.freeze), init=init)
        counts = ("log_every", "save_every", "evaluate_every")
        LogConfig(**{name: getattr(self, name) for name in (*counts, "keep_last")})
        words = ["--config", self.config]
        words += [] if self.tokenizer is None else ["--tokenizer", str(self.tokenizer)]
        words += [w for name in counts for w in (_flag(name), str(getattr(self, name)))]
        words += ["--text-only"] if self.text_only else []
        words += [] if self.keep_buffers else ["--no-keep-buffers"]
        tracker = tracker_name(self.tracker, self.tensorboard)
        words += [] if tracker is None else ["--tracker", tracker]
        words += ["--set", *self.set] if self.set and self.total_steps is None else []
        words += [] if self.init is None else ["--init", self.init]
        words += ["--freeze", *self.freeze] if self.freeze else []
        if hosts > 1:
            rule = "`hosts_per_expert` must be 1 if `grid` is given"
            require(not self.grid, rule, hosts)
            rule = "`placement` must be replicated or sharded if a member runs on several hosts"
            require(self.placement is not None, rule, self.placement)
        if self.grid:
            words += ["--grid", *self.grid]
            return sweep_jobs(self.data, self.folder, words, self.num_groups())
        words += ["--keep-last", str(self.keep_last)]
        words += [] if self.images is None else ["--images", str(self.images)]
        words += [] if self.pixels is None else ["--pixels", str(self.pixels)]
        words += ["--on-disk"] if self.on_disk else []
        words += [] if self.placement is None else ["--placement", self.placement]
        words += ["--distributed"] if hosts > 1 else []
        experts = self.experts or experts_of(self.data)
        if self.data.is_dir():  # it may lie in a pod, and there alone
            known = experts_of(self.data)
            rule = f"`experts` must be some of the {len(known)} that {self.data} has"
            require(set(experts) <= set(known), rule, list(experts))
        own = {} if self.total_steps is None else self.own_words(self.total_steps)
        run, dense = self.folder, self.dense
        return train_jobs(self.data, run, words, experts=experts, dense=dense, own=own)

    def own_words(self, total_steps: int) -> dict[int | None, list[str]]:
        """The changes of the config of each member, with its own share of the steps.

        Raises:
            ValueError: if the changes give `num_steps` already; if there are fewer steps than
                experts; if the data do not say how much each expert reads.
        """
        import numpy as np

        from dfm_jax.checks import check_count, require
        from dfm_jax.launch import data_loads, experts_of
        from dfm_jax.training.equal_cost import divided_steps

        given = [change for change in self.set if change.partition("=")[0] == "num_steps"]
        rule = "`set` must not give num_steps if `total_steps` is given"
        require(not given, rule, given)
        loads = np.array(data_loads(self.data))
        check_count("total_steps", total_steps, at_least=len(loads))
        steps = divided_steps(loads / loads.sum(), total_steps).tolist()
        of_members = {**dict(zip(experts_of(self.data), steps, strict=True)), None: total_steps}
        return {
            number: ["--set", *self.set, f"num_steps={own}"] for number, own in of_members.items()
        }

    def num_groups(self) -> int:
        """The number of groups of the grid.

        Raises:
            ValueError: if members are named too, or an option is given that only `train` has.
        """
        from dfm_jax.checks import require
        from dfm_jax.training.presets import load_axis, load_config, with_freeze
        from dfm_jax.training.sweep import by_shape, grid

        alone = ("experts", "dense", "keep_last", "on_disk", "placement", "images", "pixels")
        alone += ("total_steps",)
        given = [name for name in alone if getattr(self, name) != getattr(Members, name)]
        rule = "`grid` must not be given together with the options of members"
        require(not given, rule, given, name="options of members")
        axes = dict(map(load_axis, self.grid))
        changes = with_freeze(self.set, self.freeze)
        config = load_config(self.config, changes, init=self._initial_here())
        return len(by_shape(grid(config, axes)))

    def _initial_here(self) -> "Checkpoint | None":
        """The checkpoint of --init, if its folder is on this machine."""
        from dfm_jax.models.pretrained import open_folder

        here = self.init is not None and Path(self.init).is_dir()
        return open_folder(str(self.init)) if here else None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


Shared = Annotated[Members, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Local:
    """Start one process for each member on this machine, with one log each.

    A member is an expert or the dense model. The end of one member does not end another. A member
    that is killed, crashes or meets trouble that may pass (status 75) is started again and goes on
    from its last checkpoint. A member that ends with bad input (status 2), or with a number that is
    not finite (status 3), is not started again. The same command goes on after any interruption.

    For example:

        python -m dfm_jax launch local --config small --data parts --run run --jobs 2

        python -m dfm_jax launch local --config small --data parts --run run --dense
        --total-steps 2000

        python -m dfm_jax launch local --config small --data parts --run run --jobs auto
        --devices-per-expert 1

        python -m dfm_jax launch local --config small --data parts --run run --jobs 4 --gpus 0 1 2 3

        python -m dfm_jax launch local --config tiny --data parts --run run --experts 0 2 --dense
    """

    members: Shared
    logs: Path | None = None
    """The folder of the logs; by default RUN/logs. It must be given if the run is on an object
    store."""
    jobs: int | Literal["auto"] = 1
    """The number of members that run at the same time; auto: as many as there are sets of
    devices."""
    retries: int = 3
    """The number of attempts in a row that may end without a newer checkpoint; other attempts are
    not counted."""
    pause: float = 1.0
    """The seconds before a new attempt after such a failure; each time they double, up to 60."""
    grace: float = 120.0
    """The seconds that a member has to save after SIGTERM; then it is killed."""
    devices_per_expert: int | None = None
    """The number of devices that each member has for itself: chips on a TPU host, else GPUs, else
    cores of the processor; by default all members share all devices."""
    gpus: tuple[str, ...] = ()
    """Instead, the value of CUDA_VISIBLE_DEVICES for each of the members that run at the same
    time."""

    def devices(self) -> "list[DeviceSet]":
        """The devices of each of the members that run at the same time; none if all share them.

        Raises:
            ValueError: if `--gpus` is given too; if there are fewer devices, or more members at a
                time than there are sets; if a member would leave chips or GPUs unused.
        """
        from dfm_jax.checks import check_count, require
        from dfm_jax.launch import device_kind, device_sets, gpu_sets

        size = self.devices_per_expert
        rule = "`gpus` must not be given together with `devices_per_expert`"
        require(not self.gpus or size is None, rule, self.gpus)
        if self.jobs != "auto":
            check_count("jobs", self.jobs)
        if size is not None:
            sets = device_sets(size)
            rule = "`placement` must be replicated or sharded if a member has several chips or GPUs"
            one = size == 1 or device_kind() == "cpu" or bool(self.members.grid)
            require(one or self.members.placement is not None, rule, self.members.placement)
            at_once = len(sets) if self.jobs == "auto" else self.jobs
            rule = f"`jobs` must be at most {len(sets)}, the number of sets of devices"
            require(at_once <= len(sets), rule, at_once)
            return sets[:at_once]
        rule = "`devices_per_expert` or `gpus` must be given if `jobs` is auto"
        require(self.jobs != "auto" or bool(self.gpus), rule, self.jobs, name="jobs")
        rule = f"`gpus` must hold {self.jobs} GPUs, one for each member that runs at once"
        require(not self.gpus or self.jobs in ("auto", len(self.gpus)), rule, self.gpus)
        return gpu_sets(self.gpus)

    def run(self) -> int:
        """Run them all, and print how each ended."""
        from dfm_jax.launch import run_jobs, summary_text
        from dfm_jax.training.stopping import ExitStatus, stop_on_signals

        devices = self.devices()
        with stop_on_signals(at_once=False) as stop:  # a second signal: they end, and then we
            rows = run_jobs(
                self.members.jobs(),
                self.members.folder,
                logs=self.logs,
                at_once=len(devices) if self.jobs == "auto" else self.jobs,
                retries=self.retries,
                pause=self.pause,
                grace=self.grace,
                devices=devices,
                stop=stop,
                say=lambda text: print(text, flush=True),
            )
        print(f"\n{summary_text(rows)}")
        if lines := self.cost_lines():
            print("", *lines, sep="\n")
        if stop.signal is not None:
            return stop.status
        failed = any(row.status == "failed" for row in rows)
        return ExitStatus.MEMBER_FAILED if failed else ExitStatus.FINISHED

    def cost_lines(self) -> list[str]:
        """What the training of the experts has cost so far, beside that of the dense model."""
        from dfm_jax.durable import TemporaryError
        from dfm_jax.training.equal_cost import cost_lines, costs_of
        from dfm_jax.training.members import member_folder

        run = self.members.folder
        try:
            experts = sorted(path for path in run.glob("expert_*") if path.is_dir())
            return cost_lines(costs_of([member_folder(run, None)]), costs_of(experts))
        except (TemporaryError, ValueError) as error:  # the members have ended all the same
            return [f"What the training has cost is not known: {error}"]


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Write a SLURM array with one task for each member; `sbatch FILE` submits it.

    If there are more members than one array may hold, several files are written, each with an array
    of its own; the last lines that are printed submit them.

    Before its time is up, a task is asked to save; then it goes back to the queue. A task also goes
    back if it crashed after a newer checkpoint, or met trouble that may pass (status 75). A task
    that ends with status 2 or 3 stays failed.

    For example:

        python -m dfm_jax launch slurm --config small --data parts --run run --out run.sbatch
        --time 04:00:00 --gpus 1 --setup "source .venv/bin/activate"

        python -m dfm_jax launch slurm --config small --data parts --run run --out run.sbatch
        --at-once 8 --partition gpu --lines=--account=a

        python -m dfm_jax launch slurm --config medium --data parts --run run --out run.sbatch
        --hosts-per-expert 2 --gpus 4 --placement sharded
    """

    members: Shared
    out: Path
    """The file to write."""
    logs: Path | None = None
    """The folder of the logs; by default RUN/logs. It must be given if the run is on an object
    store."""
    name: str = "dfm_jax"
    """The name of the job array."""
    at_once: int | None = None
    """The largest number of tasks that run at the same time, in all arrays together."""
    max_array_size: int | None = None
    """The largest number of tasks of one array; by default the cluster's MaxArraySize, if
    `scontrol` can be asked here, or else 1001."""
    partition: str | None = None
    """The partition of the cluster that runs the tasks."""
    time: str | None = None
    """The time limit of one attempt, such as 04:00:00."""
    gpus: int | None = None
    """The number of GPUs of each host."""
    cpus: int | None = None
    """The number of CPUs of each task."""
    memory: str | None = None
    """The memory of each host, such as 64G."""
    hosts_per_expert: int = 1
    """The number of hosts of one member; several hosts need --placement."""
    grace: int = 120
    """The seconds before the end of the time limit at which a task is asked to save."""
    lines: tuple[str, ...] = ()
    """More options of sbatch, such as --lines=--account=a."""
    setup: tuple[str, ...] = ()
    """Shell commands that run first in each task."""
    python: str = "python"
    """The Python interpreter on the cluster."""

    def run(self) -> int:
        """Write the file or files, the folder of the logs, and the list of members for `status`."""
        from dfm_jax.launch import (
            Allocation,
            logs_folder,
            max_array_size,
            planned_rows,
            slurm_texts,
            write_summary,
        )

        options = {name: value for name, value in vars(self).items() if name not in _OURS}
        allocation = Allocation(**options, hosts=self.hosts_per_expert)
        run, jobs = self.members.folder, self.members.jobs(self.hosts_per_expert)
        _check_out(self.out)
        size = max_array_size() if self.max_array_size is None else self.max_array_size
        options = {"folder": Path.cwd(), "logs": self.logs, "max_array_size": size}
        scripts = slurm_texts(jobs, run, allocation, **options)
        logs_folder(run, self.logs).mkdir(parents=True, exist_ok=True)  # sbatch makes none
        if isinstance(run, Path):  # a store may be out of reach from here
            write_summary(run, planned_rows(jobs))
        name = self.out
        files = {first: name.with_stem(f"{name.stem}_{first}") for first in scripts} | {0: name}
        for first, text in scripts.items():
            _write(files[first], text)
        if len(files) == 1:
            print(f"{name}: {len(jobs)} tasks; submit it with `sbatch {shlex.quote(str(name))}`.")
            return 0
        print(f"{len(jobs):,} tasks in {len(files)} arrays, of at most {size:,} each; submit all:")
        print(*(f"sbatch {shlex.quote(str(file))}" for file in files.values()), sep="\n")
        return 0


@dataclass(frozen=True, kw_only=True)
class Jobset:
    """Write a Kubernetes JobSet with one index for each member; `kubectl apply -f FILE` submits it.

    Each index is retried on its own, unless it ended with status 2 or 3; an evicted pod does not
    count as a retry. The cluster needs Kubernetes 1.29 and JobSet 0.6, or newer ones. The commands
    of the indexes lie in ConfigMaps in the same file. Paths are those inside the pod. If the data
    are not on this machine, --experts must list the experts.

    For example:

        python -m dfm_jax launch jobset --config small --data /data/parts --run /data/run
        --experts 0 1 2 3 --image registry/dfm_jax:1 --claim data --gpus 1 --out run.yaml

        python -m dfm_jax launch jobset --config small --data /data/parts --run /data/run
        --experts 0 1 --image registry/dfm_jax:1 --claim data --tpus 4 --placement replicated
        --accelerator tpu-v5-lite-podslice --topology 2x2 --out run.yaml
    """

    members: Shared
    out: Path
    """The file to write."""
    image: str
    """A container image in which this package is installed."""
    name: str = "dfm-jax"
    """The name of the JobSet."""
    at_once: int | None = None
    """The largest number of members that run at the same time."""
    retries: int = 10
    """The largest number of times that Kubernetes starts each index again."""
    hosts_per_expert: int = 1
    """The number of hosts of one member; several hosts need --placement."""
    grace: int = 120
    """The seconds that a pod has to save."""
    claim: str | None = None
    """The PersistentVolumeClaim that holds the data and receives the run."""
    mount: str = "/data"
    """The path at which the claim is mounted in the pod."""
    cpus: str | None = None
    """The number of CPUs of each pod."""
    memory: str | None = None
    """The memory of each pod, such as 64Gi."""
    gpus: int | None = None
    """The number of nvidia.com/gpu devices of each pod."""
    tpus: int | None = None
    """The number of google.com/tpu devices of each pod."""
    accelerator: str | None = None
    """The label cloud.google.com/gke-tpu-accelerator of the nodes, such as tpu-v5-lite-podslice."""
    topology: str | None = None
    """The label cloud.google.com/gke-tpu-topology of the nodes, such as 2x2."""
    python: str = "python"
    """The Python interpreter in the image."""

    def run(self) -> int:
        """Write the file."""
        from dfm_jax.launch import Pods, jobset_text

        options = {name: value for name, value in vars(self).items() if name not in _OURS}
        pods = Pods(**options, hosts=self.hosts_per_expert)
        _check_out(self.out)
        jobs = self.members.jobs(self.hosts_per_expert)
        _write(self.out, jobset_text(jobs, pods))
        kind = "indexes" if self.hosts_per_expert == 1 else "JobSets"
        out = shlex.quote(str(self.out))
        print(f"{self.out}: {len(jobs)} {kind}; submit it with `kubectl apply -f {out}`.")
        return 0


_OURS = ("members", "out", "logs", "hosts_per_expert", "max_array_size")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Train every expert of a partition by itself: here, or with a file for SLURM or Kubernetes.

    The exit status of `launch local` is 0 if all members are finished; 4 if some failed; 130 or 143
    if SIGINT or SIGTERM stopped them, after everything was saved.

    For example:

        python -m dfm_jax launch local --config small --data parts --run run --jobs 2

        python -m dfm_jax launch slurm --config small --data parts --run run --out run.sbatch
    """

    where: Annotated[
        Annotated[Local, tyro.conf.subcommand("local")]
        | Annotated[Slurm, tyro.conf.subcommand("slurm")]
        | Annotated[Jobset, tyro.conf.subcommand("jobset")],
        tyro.conf.arg(name=""),
    ]
    """The place where the members run."""

    def run(self) -> int:
        """Do what the chosen place does."""
        return self.where.run()


def _check_out(path: Path) -> None:
    from dfm_jax.checks import require

    require(bool(path.name) and not path.is_dir(), "`out` must be a file, not a folder", path)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
