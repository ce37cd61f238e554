"""The command plan: what a run will take, and what is missing, before anything is computed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfm_jax.training.config import TrainConfig
    from dfm_jax.training.row_survey import RowSurvey

_LISTED = 20  # files of a folder, each in a line of its own
_FAULTS = 3  # of rows


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Print what a run will take, as rows, tokens, steps, FLOPs and memory, and what is missing.

    It takes seconds, and it needs neither weights nor data: the numbers come from the shapes of the
    config. If there are data or a checkpoint, their files are listed. Of conversations with
    pictures, rows and pictures are counted, and with a tokenizer the tokens of at most 20,000 rows;
    no picture is decoded. For the presets of the paper's systems it also says what neither the
    paper nor the public scripts tell.

    FLOPs count matrix products, with 2 for a multiplication and an addition, and the second forward
    pass of layers that are recomputed. Memory is a formula for a state that is split over the chips
    (`train --placement sharded`) and for `scan_layers` and `remat`.

    The exit status is 0, whatever is missing.

    For example:

        python -m dfm_jax plan --config internvl2.5-1b --chips 4

        python -m dfm_jax plan --config llava-1.5-7b --chips 16 --data rows.json --images photos
        --init llava
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
    images: Path | None = None
    """The folder of the pictures that rows name; by default as for `train`."""
    tokenizer: Path | None = None
    """A tokenizer.json, or a folder that holds it; by default that of --init."""

    def run(self) -> int:
        """Print it."""
        from dfm_jax.checks import require
        from dfm_jax.training.plan import files_read, missing, num_data_rows, plan_of
        from dfm_jax.training.presets import UNKNOWN, load_config

        config = load_config(self.config, self.set)
        for name in ("images", "tokenizer"):
            given = getattr(self, name)
            rule = f"`{name}` must not be given, because the config has no `pictures`"
            require(given is None or config.pictures is not None, rule, given)
        frozen = config.optimizer.freeze if self.freeze is None else self.freeze
        plan = plan_of(config, chips=self.chips, frozen=frozen)
        count = num_data_rows(self.data)
        known = "not known" if count is None else f"{count:,}"
        total = plan.flops * plan.steps
        _line("parameters", f"{plan.parameters:,}, of which {plan.trained:,} are trained")
        _line("frozen", ", ".join(frozen) or "nothing")
        if plan.adapters:
            _line("adapters", f"{plan.adapters:,} parameters, of rank {config.lora.rank}")
        _line("rows", f"{known} in the data, {plan.rows:,} sequences in an update")
        _line("tokens", f"{plan.tokens:,} in an update, {plan.tokens * plan.steps:,} in all")
        if plan.pictures:
            _line("pictures", f"at most {plan.pictures:,} in an update")
        _line("steps", f"{plan.steps:,}")
        for name, text in self._of_data(config):
            _line(name, text)
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

    def _of_data(self, config: "TrainConfig") -> Iterator[tuple[str, str]]:
        """What the conversations hold; nothing for data of another kind."""
        from dfm_jax.training.conversation_rows import tokenizer_file, usual_images
        from dfm_jax.training.members import member_data_path
        from dfm_jax.training.row_survey import survey_rows

        if config.pictures is None or self.data is None or not self.data.exists():
            return
        images = usual_images(self.data) if self.images is None else self.images
        tokenizer = self.init if self.tokenizer is None else self.tokenizer
        if tokenizer is not None and not tokenizer_file(tokenizer).is_file():
            tokenizer = None
        try:
            source = member_data_path(self.data, None)
            found = survey_rows(source, config, images=images, tokenizer=tokenizer)
        except ValueError as error:
            yield "data", f"cannot be read: {error}"
            return
        yield from _data_lines(found, config)


def _data_lines(found: "RowSurvey", config: "TrainConfig") -> Iterator[tuple[str, str]]:
    lengths, packed = found.lengths, config.pictures is not None and config.pictures.packed
    absent = f"{found.absent:,} that rows name are not there"
    yield "pictures", f"{found.pictures:,} files; {absent}; {found.without:,} rows have none"
    if found.faults:
        yield "faults", f"{len(found.faults):,} in rows, which `train` refuses; the first are"
        for fault in found.faults[:_FAULTS]:
            yield "", fault
    if lengths is None:
        yield "lengths", "not known without a tokenizer (--tokenizer, or that of --init)"
    else:
        each = f"{lengths.tokens:,.1f} tokens in a row, {lengths.learnt:,.1f} of them learnt"
        yield "lengths", f"{each}; {lengths.longest:,} in the longest of {lengths.rows:,} rows"
        if lengths.too_long:
            most = f"{config.num_positions:,} tokens"
            yield "too long", f"{lengths.too_long:,} of these rows have more than {most}"
        if lengths.too_many:
            yield "too many", f"{lengths.too_many:,} of these rows have more pictures than fit"
    if lengths is not None or not packed:
        share = 1.0 if lengths is None else lengths.sequences
        sequences = found.an_epoch * (1 - config.held_out) * share
        updates = sequences / config.batch_size
        text = f"about {sequences:,.0f} sequences, {updates:,.1f} updates"
        if updates > 0:
            text += f"; {config.num_steps / updates:,.2f} epochs in all"
        yield "epoch", text


def _line(name: str, text: str) -> None:
    print(f"{name:<14}{text}")
