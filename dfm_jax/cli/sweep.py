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
        from dfm_jax.parallel import make_mesh
        from dfm_jax.training.config import LogConfig, to_json
        from dfm_jax.training.members import load_member_data, member_data_path
        from dfm_jax.training.presets import load_axes, load_config
        from dfm_jax.training.stopping import ExitStatus, NonFiniteError, stop_on_signals
        from dfm_jax.training.sweep import by_shape, grid, train_sweep
        from dfm_jax.training.trackers import open_tracker

        axes = load_axes(self.grid, self.set)
        config = load_config(self.config, self.set, tokenizer=self.tokenizer)
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
        finite, told = False, False  # the data are the same for all groups
        with stop_on_signals(asked=False) as stop:
            for number in mine:
                configs, columns = groups[number], Columns(text_only=self.text_only)
                data = load_member_data(source, configs[0], self.tokenizer, columns=columns)
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
