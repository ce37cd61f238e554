"""The command plan: what a run will take, and what is missing, before anything is computed."""

from dataclasses import dataclass
from pathlib import Path

_LISTED = 20  # files of a folder, each in a line of its own


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Print what a run will take, as rows, tokens, steps, FLOPs and memory, and what is missing.

    It takes seconds, and it needs neither weights nor data: the numbers come from the shapes of the
    config. If there are data or a checkpoint, their files are listed. For the presets of the
    paper's systems it also says what neither the paper nor the public scripts tell.

    FLOPs count matrix products, with 2 for a multiplication and an addition, and the second forward
    pass of layers that are recomputed. Memory is a formula for a state that is split over the chips
    (`train --placement sharded`) and for `scan_layers` and `remat`.

    The exit status is 0, whatever is missing.

    For example:

        python -m dfm_jax plan --config internvl2.5-1b --chips 4

        python -m dfm_jax plan --config llava-1.5-7b --chips 16 --data rows.json --init llava
    """

    config: str
    """The config: a preset (tiny, small, small-masked, medium, llava-1.5-7b, internvl2.5-1b), a
    JSON file, or the config.json of a member."""
    set: tuple[str, ...] = ()
    """Change single fields of the config: FIELD=VALUE."""
    chips: int = 1
    """The number of chips over which a member is split."""
    freeze: tuple[str, ...] | None = None
    """The parts that are not trained: vision_tower, or vision_tower multi_modal_projector. Without
    this option, those that the config freezes."""
    data: Path | None = None
    """The data that `train` would read."""
    init: Path | None = None
    """The Hugging Face folder from which `train` would start."""

    def run(self) -> int:
        """Print it."""
        from dfm_jax.training.plan import files_read, missing, num_data_rows, plan_of
        from dfm_jax.training.presets import UNKNOWN, load_config

        config = load_config(self.config, self.set)
        frozen = config.optimizer.freeze if self.freeze is None else self.freeze
        plan = plan_of(config, chips=self.chips, frozen=frozen)
        count = num_data_rows(self.data)
        known = "not known" if count is None else f"{count:,}"
        total = plan.flops * plan.steps
        _line("parameters", f"{plan.parameters:,}, of which {plan.trained:,} are trained")
        _line("frozen", ", ".join(frozen) or "nothing")
        _line("rows", f"{known} in the data, {plan.rows:,} sequences in an update")
        _line("tokens", f"{plan.tokens:,} in an update, {plan.tokens * plan.steps:,} in all")
        if plan.pictures:
            _line("pictures", f"at most {plan.pictures:,} in an update")
        _line("steps", f"{plan.steps:,}")
        _line("FLOPs", f"{plan.flops:.3g} in an update, {total:.3g} in all")
        _line("memory", f"{plan.memory / 1e9:.1f} GB on each of {self.chips} chips, of which")
        for name in ("state", "gradients", "weights", "activations"):
            print(f"{'':<14}{getattr(plan, name) / 1e9:>8.2f} GB {name}")
        for root in (self.data, self.init):
            files = files_read(root)
            for path, size in files[:_LISTED]:
                _line("file", f"{path}, {size:,} bytes")
            if more := files[_LISTED:]:
                _line("files", f"{len(more):,} more, {sum(size for _, size in more):,} bytes")
        for what in missing(config, self.data, self.init):
            _line("missing", what)
        for what in UNKNOWN.get(self.config, ()):
            _line("not known", what)
        return 0


def _line(name: str, text: str) -> None:
    print(f"{name:<14}{text}")
