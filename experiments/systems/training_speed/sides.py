"""What `training_speed` compares: the work on disk, and processes that wait for commands."""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dfm_jax.models import TransformerConfig, transformer
from dfm_jax.models.pretrained import checkpoint_tensors
from experiments.lib.builds import Build
from experiments.systems.benchmarks.kinds import BEFORE
from experiments.systems.benchmarks.serving import KEEP, Side

FIRST_STEPS = 5
ADAMW = {
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "b1": 0.9,
    "b2": 0.95,
    "epsilon": 1e-8,
    "max_norm": 1.0,
}
DEFAULT = "glibc's default"
BUFFERS_KEPT = "buffers kept"
# No variable is set: ours does what commands of the package do, all others have the default.
AS_COMMANDS_START = "as a command starts it"
ALLOCATORS: dict[str, dict[str, str]] = {
    DEFAULT: {},
    BUFFERS_KEPT: {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
        "MALLOC_TOP_PAD_": str(2**26),
        "MALLOC_ARENA_MAX": "1",
    },
    AS_COMMANDS_START: {},
}
OURS = "dfm_jax"
PHASES = ("forward", "gradient", "products")  # parts of a step, measured apart


class Plan(NamedTuple):
    """How the sides are run."""

    torch_python: str  # the Python of an environment with PyTorch
    peers: tuple[str, ...]
    num_threads: int
    num_blocks: int  # rounds over the sides
    seed: int  # of weights and tokens
    before: Build | None = None  # an earlier build of ours, as a further side


@dataclass(frozen=True)
class Size:
    """The size of the network and its batches."""

    width: int
    num_layers: int
    num_heads: int
    num_tokens: int
    num_positions: int
    batch_size: int
    steps: int  # in a block

    @property
    def model(self) -> dict[str, Any]:
        """The options of its network, a Llama."""
        return {
            "num_tokens": self.num_tokens,
            "width": self.width,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "ffn_width": -(-8 * self.width // 3 // 32) * 32,
            "max_positions": self.num_positions,
        }

    @property
    def name(self) -> str:
        """A name for tables, with all that fixes the work."""
        return (
            f"width {self.width}, {self.num_layers} layers, V {self.num_tokens}, "
            f"{self.batch_size} × {self.num_positions} tokens"
        )


SIZES = (
    Size(128, 4, 4, 2048, 128, 8, steps=10),
    Size(128, 4, 4, 256, 256, 8, steps=6),
    Size(256, 6, 8, 2048, 128, 8, steps=3),
)


# ── the work, written where both sides find it ──────────────────────────────────────────────────


def write_work(folder: Path, size: Size, plan: Plan) -> None:
    """Write the options, the weights under both names, and the batches."""
    model = TransformerConfig(**size.model)
    params = transformer(model).init(jax.random.key(plan.seed))
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    ours = {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}
    weights = dict(checkpoint_tensors(model, params))
    np.savez(folder / "params.npz", allow_pickle=False, **ours)
    np.savez(folder / "weights.npz", allow_pickle=False, **weights)
    rng = np.random.default_rng(plan.seed)
    shape = (16, size.batch_size, size.num_positions)
    tokens = rng.zipf(1.3, shape) % size.num_tokens
    np.save(folder / "tokens.npy", tokens.astype(np.int32))
    work = {
        **size.model,
        "model": size.model,
        "kv_width": model.kv_heads * model.head_size,
        "head_size": model.head_size,
        "norm_epsilon": model.norm_epsilon,
        "rope_base": model.rope_base,
        "num_positions": size.num_positions,
        "num_threads": plan.num_threads,
        "adamw": ADAMW,
        "products": products(model, size),
    }
    (folder / "work.json").write_text(json.dumps(work))


def products(model: TransformerConfig, size: Size) -> list[tuple[int, int, int]]:
    """(m, k, n) of every product of a step with a weight: forward, and both of the backward pass.

    Those inside attention, between activations, are not among them.
    """
    rows, width, ffn = size.batch_size * size.num_positions, model.width, model.ffn_width
    kv = model.kv_heads * model.head_size
    layer = [(width, width), (width, kv), (width, kv), (width, width)]
    layer += [(width, ffn), (width, ffn), (ffn, width)]
    maps = layer * model.num_layers + [(width, model.num_tokens)]
    return [shape for i, o in maps for shape in ((rows, i, o), (rows, o, i), (i, rows, o))]


# ── sides ───────────────────────────────────────────────────────────────────────────────────────


class Trainer:
    """A side that trains on command, and its answers so far."""

    def __init__(self, name: str, allocator: str, folder: Path, plan: Plan) -> None:
        self.found: dict[str, Any] = {"side": name, "allocator": allocator, "step": []}
        self.found |= {phase: [] for phase in PHASES}
        where = None
        if name == OURS:
            command = [sys.executable, "-m", "experiments.training_speed.jax_side", str(folder)]
            command += [KEEP] * (allocator == AS_COMMANDS_START)
        elif name == BEFORE:
            assert plan.before is not None
            command = plan.before.command("training_speed", str(folder))
            where = plan.before.folder
        else:
            program = str(Path(__file__).with_name("torch_side.py"))
            # -P: its own folder, which holds a `statistics`, is not searched for modules.
            command = [plan.torch_python, "-P", program, str(folder), name]
        self.side = Side(name, command, plan.num_threads, ALLOCATORS[allocator], where)

    def told(self, phase: str, steps: int) -> dict[str, Any]:
        """The answer to one command.

        Raises:
            ValueError: if the process has ended.
        """
        return self.side.told({"phase": phase, "steps": steps})


def measured(size: Size, plan: Plan, phases: Sequence[str] = PHASES) -> dict[str, Any]:
    """All blocks of one size: per side and allocator its times, losses and page faults.

    A side that is the same process under two allocators runs once, and its answers stand for both.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_work(folder, size, plan)
        others = (*((BEFORE,) if plan.before else ()), *plan.peers)
        names = [(OURS, allocator) for allocator in ALLOCATORS]
        names += [(side, a) for a in ALLOCATORS if a != AS_COMMANDS_START for side in others]
        sides: list[Trainer] = []
        load = [os.getloadavg()[0]]
        try:
            for side in names:
                sides.append(Trainer(*side, folder, plan))
                # Here it compiles; from now on it waits.
                sides[-1].found["losses"] = sides[-1].told("step", FIRST_STEPS)["losses"]
            for block in range(plan.num_blocks):
                turn = block % len(sides)
                for side in (*sides[turn:], *sides[:turn]):
                    side.found["step"].append(side.told("step", size.steps))
            for phase in phases:
                for block in range(1 + plan.num_blocks // 2):
                    for side in sides:
                        answer = side.told(phase, size.steps)
                        if block:  # the first one compiles
                            side.found[phase].append(answer)
            load.append(os.getloadavg()[0])
        finally:
            for side in sides:
                side.side.end()
    found = [side.found for side in sides]
    same = [one for one in found if one["side"] != OURS and one["allocator"] == DEFAULT]
    found += [one | {"allocator": AS_COMMANDS_START} for one in same]
    return {"size": size.name, "steps": size.steps, "load": load, "sides": found}
