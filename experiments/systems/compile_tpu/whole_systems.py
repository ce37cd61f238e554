"""The paper's systems at their sizes: an expert on a slice of its own, the dense model over all."""

from dataclasses import dataclass, replace

from dfm_jax.training.config import TrainConfig
from dfm_jax.training.presets import PRESETS
from experiments.systems.compile_tpu.topologies import Topology


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A preset and the chips over which one run of it lies, state and batch split."""

    preset: str
    topology: Topology
    num_micro_batches: int | None = None
    """In the place of the preset's, where the chips do not divide the rows of a micro-batch."""

    @property
    def config(self) -> TrainConfig:
        """The config of the run."""
        config = PRESETS[self.preset]
        if self.num_micro_batches is None:
            return config
        return replace(config, num_micro_batches=self.num_micro_batches)


_V5P, _V5E = Topology(name="v5p:2x2x2", chip="megacore"), Topology(name="v5e:2x2")
# Experts are runs of their own, so the program of one knows no chip outside its slice.
ARMS = {
    "llava-1.5-7b, expert": Arm(preset="llava-1.5-7b", topology=_V5P),
    "llava-1.5-7b, dense": Arm(preset="llava-1.5-7b", topology=replace(_V5P, num_slices=2)),
    "internvl2.5-1b, expert": Arm(preset="internvl2.5-1b", topology=_V5E),
    "internvl2.5-1b, dense": Arm(
        preset="internvl2.5-1b", topology=replace(_V5E, num_slices=3), num_micro_batches=1
    ),
}
