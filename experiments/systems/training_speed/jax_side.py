"""Our side of `training_speed`: the package's own network, loss and training step.

    python -m experiments.training_speed.jax_side FOLDER [keep]

`training_speed` runs it; with "keep" it starts as a command of the package does. It reads commands
as lines of JSON, and answers each with one line.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.allocator import keep_buffers
from dfm_jax.models import TransformerConfig, transformer
from dfm_jax.training.batches import Batch
from dfm_jax.training.config import OptimizerConfig
from dfm_jax.training.losses import next_token_losses
from dfm_jax.training.state import TrainState, make_optimizer
from dfm_jax.training.step import make_train_step
from experiments.systems.benchmarks.serving import KEEP


def phases(folder: Path) -> dict[str, Callable[[], float]]:
    """The possible commands; each does its work once, on the next batch, and returns the loss."""
    work = json.loads((folder / "work.json").read_text())
    params = jax.tree.map(jnp.array, unflattened(np.load(folder / "params.npz")))
    tokens = jnp.asarray(np.load(folder / "tokens.npy"), jnp.int32)
    batches = [Batch(rows, jnp.ones(rows.shape, bool)) for rows in tokens]
    network = transformer(TransformerConfig(**work["model"]))
    loss_function = next_token_losses(network, start=None)
    # A constant rate: the schedule's work is done, its shape is 1.
    config = OptimizerConfig(warmup_steps=0, final_fraction=1.0, **work["adamw"])
    optimizer = make_optimizer(config, num_steps=1_000_000)
    step = jax.jit(make_train_step(loss_function, optimizer), donate_argnums=0)
    state = TrainState(jnp.zeros((), jnp.int32), params, jax.jit(optimizer.init)(params), None)
    fixed = jax.tree.map(jnp.copy, params)  # the state's own are donated
    key = jax.random.key(0)  # without dropout nothing is drawn from it

    def loss(params, batch):
        terms = jax.vmap(loss_function, in_axes=(None, 0, None))(params, batch, None)
        return jnp.sum(terms.nats) / jnp.sum(terms.counts)

    forward, gradient = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
    rng = np.random.default_rng(0)

    def operand(rows: int, columns: int) -> jax.Array:
        return jnp.asarray(rng.random((rows, columns), np.float32))

    products = [(operand(m, k), operand(k, n)) for m, k, n in work["products"]]
    multiply = jax.jit(lambda pairs: [a @ b for a, b in pairs])  # one dispatch for all
    count = 0

    def next_batch() -> Batch:
        nonlocal count
        count += 1
        return batches[(count - 1) % len(batches)]

    def run_step() -> float:
        nonlocal state
        state, metrics = step(state, next_batch(), key)
        return float(metrics.loss)

    def run_gradient() -> float:
        value, grads = gradient(fixed, next_batch())
        jax.block_until_ready(grads)
        return float(value)

    def run_products() -> float:
        jax.block_until_ready(multiply(products))
        return 0.0

    return {
        "step": run_step,
        "gradient": run_gradient,
        "forward": lambda: float(forward(fixed, next_batch())),
        "products": run_products,
    }


def unflattened(arrays: np.lib.npyio.NpzFile) -> dict:
    """`layers_0/mlp/up_proj/kernel` → nested dictionaries."""
    tree: dict = {}
    for name in arrays.files:
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = arrays[name]
    return tree


def serve(known: dict[str, Callable[[], float]]) -> None:
    """Answer commands until the input ends: {"phase", "steps"} → losses, seconds, faults."""
    for line in sys.stdin:
        order = json.loads(line)
        phase = known[order["phase"]]
        before, losses, seconds = resource.getrusage(resource.RUSAGE_SELF), [], []
        for _ in range(order["steps"]):
            start = time.perf_counter()
            losses.append(phase())
            seconds.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        answer = {"losses": losses, "seconds": seconds, "cpu": cpu}
        answer["faults"] = after.ru_minflt - before.ru_minflt
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if sys.argv[2:] == [KEEP]:
        keep_buffers()  # before jax allocates
    # Before jax counts the processors.
    threads = json.loads((Path(sys.argv[1]) / "work.json").read_text())["num_threads"]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    serve(phases(Path(sys.argv[1])))
