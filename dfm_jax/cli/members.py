"""What a launch is of: members of a run, or the groups of a sweep."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from dfm_jax.launch import Job


@dataclass(frozen=True, kw_only=True)
class Members:
    """Which members, and how each is trained: the options of `train`."""

    config: str
    """A preset (tiny, small, small-masked, medium), a JSON file, or the config.json of a member."""
    data: Path
    """A folder that `partition` wrote."""
    folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of the run."""
    experts: tuple[int, ...] = ()
    """Which experts; by default every one of the data."""
    centre: bool = False
    """The centre too."""
    grid: tuple[str, ...] = ()
    """Instead of members the groups of this `sweep`, over all of the data: FIELD=VALUE,VALUE."""
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
    on_disk: bool = False
    """Leave the tokens on the disk, read ahead (extra `data`): the same run, for much data."""
    text_only: bool = False
    """Of rows with pictures read what is said, and leave the pictures out."""
    placement: Literal["replicated", "sharded"] | None = None
    """Each over all devices of its hosts: replicated or sharded; without it, on one device."""

    def jobs(self, hosts: int = 1) -> "list[Job]":
        """A `train` command for each, or a `sweep` command for each group.

        Raises:
            ValueError: if several hosts are to hold a group of a sweep, or no placement is given;
                if there is no such preset.
        """
        from dfm_jax.checks import require
        from dfm_jax.launch import experts_of, sweep_jobs, train_jobs
        from dfm_jax.training.presets import load_config

        if not self.config.endswith(".json"):  # a file may lie where the members will run
            load_config(self.config)
        counts = ("log_every", "save_every", "evaluate_every")
        words = ["--config", self.config]
        words += [] if self.tokenizer is None else ["--tokenizer", str(self.tokenizer)]
        words += [w for name in counts for w in (_flag(name), str(getattr(self, name)))]
        words += ["--text-only"] if self.text_only else []
        words += ["--set", *self.set] if self.set else []
        if hosts > 1:
            rule = "`hosts_per_expert` must be 1 for the groups of a `grid`"
            require(not self.grid, rule, hosts)
            rule = "`placement` must be replicated or sharded for members of several hosts"
            require(self.placement is not None, rule, self.placement)
        if self.grid:
            words += ["--grid", *self.grid]
            return sweep_jobs(self.data, self.folder, words, self.num_groups())
        words += ["--keep-last", str(self.keep_last)]
        words += [_flag(name) for name in ("tensorboard", "on_disk") if getattr(self, name)]
        words += [] if self.placement is None else ["--placement", self.placement]
        words += ["--distributed"] if hosts > 1 else []
        experts = self.experts or experts_of(self.data)
        if self.data.is_dir():  # it may lie in a pod, and there alone
            known = experts_of(self.data)
            rule = f"`experts` must be some of the {len(known)} that {self.data} has"
            require(set(experts) <= set(known), rule, list(experts))
        return train_jobs(self.data, self.folder, words, experts=experts, centre=self.centre)

    def num_groups(self) -> int:
        """Of the grid; what a sweep cannot do is refused.

        Raises:
            ValueError: if members are named too, or an option is of `train` alone.
        """
        from dfm_jax.checks import require
        from dfm_jax.training.presets import load_axis, load_config
        from dfm_jax.training.sweep import by_shape, grid

        alone = ("experts", "centre", "keep_last", "tensorboard", "on_disk", "placement")
        given = [name for name in alone if getattr(self, name) != getattr(Members, name)]
        require(not given, "`grid` goes without the options of members", ", ".join(given))
        axes = dict(map(load_axis, self.grid))
        return len(by_shape(grid(load_config(self.config, self.set), axes)))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
