"""The five works that `stacks` times: four of `benchmarks`, and the step of `training_speed`."""

from typing import NamedTuple


class Work(NamedTuple):
    """One piece of work, in the form in which it is fastest."""

    name: str
    workload: str  # of `benchmarks`; "" for a training step
    size: dict[str, int]
    form: str


TRAINING = "training step"
WORKS = (
    Work(TRAINING, "", {}, ""),
    Work("balanced k-means", "balanced k-means", {"K": 8, "R": 10_000}, "clear"),
    Work("cached decoding", "AR sampling with cache", {"batch": 4, "V": 8192, "new": 128}, "fast"),
    Work("path sampling", "path sampling", {"N": 1024, "batch": 256}, "clear"),
    Work(
        "generalized KL with gradient", "generalized KL", {"V": 2048, "batch": 8, "N": 128}, "fast"
    ),
)
