"""What a workload of `benchmarks` is, its aims, and the names of sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Size = dict[str, int]
Check = Literal["values", "probs", "objective", "none"]
"""Of a pair's results: numbers that must be equal, draws from one distribution, an objective,
nothing.
"""
FULL = "the full mixture (ours)"
EVERY_STEP = "fast, every step"  # also the steps that move nobody
FULL_FAST = "the full mixture, fast (ours)"
BEFORE = "before"
"""The peer that is an earlier build of ours, if the option `before` names one."""


@dataclass(frozen=True)
class Goal:
    """The ratio that the peer's time, or its peak of memory, over ours should reach."""

    peer: str
    ratio: float
    where: Mapping[str, int] = field(default_factory=dict)  # sizes it is stated for; {}: all
    allocator: str = ""  # "": each side at its own best
    at: Literal["best", "every"] = "best"  # size of those it is stated for
    of: Literal["seconds", "memory"] = "seconds"

    def applies(self, peer: str, size: Mapping[str, int]) -> bool:
        """Whether the aim is for this peer at this size."""
        return peer == self.peer and all(size[axis] == value for axis, value in self.where.items())


@dataclass(frozen=True)
class Workload:
    """One piece of work that we and a peer do."""

    name: str
    axis: str  # of a size: what grows
    sizes: tuple[Size, ...]  # of the standard preset
    quick: tuple[Size, ...]
    peers: tuple[str, ...]
    check: Check
    goals: tuple[Goal, ...] = ()
    forms: tuple[str, ...] = ("clear", "fast")
    before: str | None = ""  # its name in the earlier build; "": the same; None: not there
    slow: bool = False  # seconds a repetition: not every setting is measured

    def goals_at(self, size: Mapping[str, int]) -> list[Goal]:
        """The aims that are stated for a size."""
        return [goal for goal in self.goals if goal.applies(goal.peer, size)]

    def goal(self, peer: str, size: Mapping[str, int], allocator: str) -> float | None:
        """The aim of seconds for a peer at a size with an allocator, if there is one."""
        fitting = (
            goal.ratio
            for goal in self.goals
            if goal.of == "seconds"
            and goal.applies(peer, size)
            and goal.allocator in ("", allocator)
        )
        return next(fitting, None)


def size_name(size: Mapping[str, int]) -> str:
    """A name such as `batch 8, V 512`, for tables, which `size_of` can read."""
    return ", ".join(f"{axis} {value}" for axis, value in size.items())


def size_of(name: str) -> Size:
    """The size from a name that `size_name` wrote."""
    pairs = (part.rsplit(" ", 1) for part in name.split(", "))
    return {axis: int(value) for axis, value in pairs}


def grown(axis: str, values: Sequence[int], **fixed: int) -> tuple[Size, ...]:
    """Sizes along one axis; all else is fixed."""
    return tuple({**fixed, axis: value} for value in values)
