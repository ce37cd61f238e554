"""The command sweep: it trains a grid of runs, and runs of one shape as one program."""

from dataclasses import dataclass
from pathlib import Path

from dfm_jax.cli.arguments import KeepBuffers, RunFolder
from dfm_jax.training.trackers import TrackerName


@dataclass(frozen=True, kw_only=True)
class Sweep:
    r"""Train every combination of values; runs that can share one program are trained together.

    Runs that differ only in seed, learning rate, weight decay, warm-up or number of steps form a
    group. A group is one program with an axis of runs, which is split over the devices. Other
    fields make further groups, in the folders RUN/group_000 and so on. They are trained one after
    another, or only one of them (--group). The same command goes on after any interruption. A run
    whose numbers are not finite stops, and the others go on. The exit status is 0 if all is
    finished; 2 if the input is bad; 3 if no run stays finite to its end; 75 if there is trouble
    that may pass; 130 or 143 if SIGINT or SIGTERM stopped the sweep, after the current step was
    saved.

    For example:

        python -m dfm_jax sweep --config tiny --data texts --run sweep \
            --grid seed=0:16 optimizer.learning_rate=1e-3,3e-3,1e-2

        python -m dfm_jax sweep --config small --data texts --run sweep --group 1 \
            --grid seed=0:4 model.width=64,128

        python -m dfm_jax sweep --config small --init llama --data texts --run sweep \
            --freeze embed_tokens --grid optimizer.learning_rate=1e-5,3e-5,1e-4
    """

    config: str
    """The config: a preset (tiny, small, small-masked, medium, llava-1.5-7b, internvl2.5-1b), a
    JSON file, or the config.json of a member."""
    data: Path
    """The data: a folder of text, a .jsonl file of rows, or a folder that `partition` wrote."""
    folder: RunFolder
    """The folder of the sweep."""
    grid: tuple[str, ...]
    """The axes of the grid: FIELD=VALUE,VALUE, or FIELD=FROM:TO for integers."""
    expert: int | None = None
    """The number of the expert whose part of the data is used; without it, all of the data."""
    group: int | None = None
    """The number of the only group to train; without it, all groups."""
    devices: int | None = None
    """The number of devices to use; without it, all devices."""
    tokenizer: Path | None = None
    """A tokenizer.json file; a preset takes its number of tokens. Without it, tokens are bytes."""
    set: tuple[str, ...] = ()
    """Change single fields of the config: FIELD=VALUE."""
    freeze: tuple[str, ...] = ()
    """The parts of the network that are not trained, by the names of their parameters: embed_tokens
    layers_0 layers_1/mlp; in a name, * stands for any characters."""
    init: str | None = None
    """Start every run from the parameters in this Hugging Face folder, or repository org/name. A
    preset takes its network, and its tokenizer is taken unless another one is given."""
    text_only: bool = False
    """Read only the text of rows that have pictures."""
    tracker: TrackerName | None = None
    """Also tell the lines of metrics.jsonl to this tracker (extra `tb`, `trackio` or `wandb`)."""
    log_every: int = 10
    """The number of steps between two lines of metrics.jsonl."""
    save_every: int = 200
    """The number of steps between two checkpoints; the last step is saved too."""
    evaluate_every: int = 200
    """The number of steps between two evaluations on held-out documents."""
    keep_buffers: KeepBuffers = True

    def run(self) -> int:
        """Train to the end, or until a signal comes; print one line for each run."""
        from dfm_jax.checks import check_count, require
        from dfm_jax.data.columns import Columns
        from dfm_jax.models.pretrained import open_folder
        from dfm_jax.parallel import make_mesh
        from dfm_jax.training.config import LogConfig, to_json
        from dfm_jax.training.members import load_member_data, member_data_path
        from dfm_jax.training.presets import load_axes, load_config, with_freeze
        from dfm_jax.training.pretrained import (
            Initial,
            folder_tokenizer,
            initial_params,
            tensors_digest,
        )
        from dfm_jax.training.stopping import ExitStatus, NonFiniteError, stop_on_signals
        from dfm_jax.training.sweep import by_shape, grid, train_sweep
        from dfm_jax.training.trackers import open_tracker

        init, tokenizer = None, self.tokenizer
        if self.init is not None:
            init = open_folder(self.init)
            tokenizer = folder_tokenizer(init) if tokenizer is None else tokenizer
        changes = with_freeze(self.set, self.freeze)
        axes = load_axes(self.grid, changes)
        config = load_config(self.config, changes, tokenizer=tokenizer, init=init)
        rule = "`pictures` of the config must be None, because a sweep reads texts only"
        require(config.pictures is None or config.task is not None, rule, config.pictures)
        groups = by_shape(grid(config, axes))
        if self.group is not None:
            check_count("group", self.group, at_least=0, at_most=len(groups) - 1)
        log_config = LogConfig(
            log_every=self.log_every,
            save_every=self.save_every,
            evaluate_every=self.evaluate_every,
        )
        mesh, source = make_mesh(self.devices), member_data_path(self.data, self.expert)
        mine = range(len(groups)) if self.group is None else (self.group,)
        initials: dict[int, Initial | None] = dict.fromkeys(mine)
        if init is not None:  # of all groups, before the first one takes hours
            digest = tensors_digest(init)
            initials = {one: initial_params(groups[one][0], init, digest=digest) for one in mine}
        finite, told = False, False  # the data are the same for all groups
        with stop_on_signals(asked=False) as stop:
            for number in mine:
                configs, columns = groups[number], Columns(text_only=self.text_only)
                options = {"columns": columns, "padded": init is not None}
                data = load_member_data(source, configs[0], tokenizer, **options)
                if columns.unused and not told:
                    print(columns.text())
                    told = True
                folders = [self.folder / f"group_{one:03d}" for one in mine]
                for folder in folders:  # who watches the sweep knows of all of them
                    folder.mkdir(parents=True, exist_ok=True)
                folder = self.folder / f"group_{number:03d}"
                config_of = {"runs": [to_json(one) for one in configs]}
                with open_tracker(self.tracker, folder, config=config_of) as tracker:
                    outcome = train_sweep(
                        configs,
                        data,
                        folder,
                        mesh,
                        log_config=log_config,
                        stop=stop,
                        tracker=tracker,
                        initial=initials[number],
                    )
                if not outcome.finished:
                    print(f"stopped at step {outcome.step}, saved; the same command goes on.")
                    return stop.status
                finite |= _print_results(folder, tuple(axes))
                if stop.signal is not None and number != mine[-1]:
                    print("stopped between two groups; the same command goes on.")
                    return stop.status
        if not finite:
            raise NonFiniteError(f"{self.folder}: every run has met a number that is not finite.")
        return ExitStatus.FINISHED


def _print_results(folder: RunFolder, axes: tuple[str, ...]) -> bool:
    """Print one line for each run; return whether one of them came to its end."""
    from dfm_jax.training.config import to_json
    from dfm_jax.training.metrics import measure_words
    from dfm_jax.training.sweep import read_results

    rows = read_results(folder)
    print(f"{folder}: {len(rows)} runs, one program")
    names = "".join(f"{name.split('.')[-1]:>15}" for name in axes)
    print(f"{'run':>4}{names}{'step':>10}{'nats/token':>12}  what it is")
    for number, row in enumerate(rows):
        values = "".join(f"{_value(to_json(row.config), name)!s:>15}" for name in axes)
        loss = "" if row.validation is None else f"{row.validation:.4f}"
        what = "" if row.validation is None else measure_words(row.measure, 1, None)
        if row.standard_error is not None:
            what += f", s.e. over documents and draws {row.standard_error:.4f}"
        why = "" if row.finished else "  stopped: the next update was not finite"
        print(f"{number:>4}{values}{row.step:>10,}{loss:>12}  {what}{why}".rstrip())
    return any(row.finished for row in rows)


def _value(config: dict, name: str) -> object:
    for part in name.split("."):
        config = config[part]
    return config
