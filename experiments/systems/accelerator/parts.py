"""The parts of `accelerator`: each compiles its programs before it runs them, and returns rows."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from dfm_jax import fast
from dfm_jax.mixture import mixture_decoder, mixture_params
from dfm_jax.models import transformer, transformer_decoder
from dfm_jax.models.sizes import flops_per_token, num_parameters
from dfm_jax.parallel import collectives, independent, make_mesh
from dfm_jax.sampling import sample_autoregressive
from dfm_jax.theory.cases import draw_cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.verification import MAIN_SHAPE, TOLERANCE, find_statement
from dfm_jax.training.batches import Batch
from dfm_jax.training.config import OptimizerConfig
from dfm_jax.training.losses import next_token_losses
from dfm_jax.training.state import init_state, make_optimizer
from dfm_jax.training.step import make_train_step
from experiments.lib.programs import TINY
from experiments.systems.accelerator.config import LARGE_V, Sizes
from experiments.systems.accelerator.devices import Peak, share

Row = dict[str, Any]
ROUNDS, AT_MOST = 10, 3.0  # of a program that is timed, and seconds after which no round begins
BFLOAT16 = "bfloat16"


class Place(NamedTuple):
    """Where and of what size the work is."""

    device: Any
    peak: Peak | None
    sizes: Sizes
    seed: int


class Part(NamedTuple):
    """A part of the study."""

    name: str
    seconds: float  # that it probably needs with `gpu`, compilation included
    run: Callable[[Place], list[Row]]


def compiled(program: Any, *shapes: Any) -> tuple[Any, dict[str, float]]:
    """A compiled program; the seconds that it took, and the bytes of its temporary memory."""
    start = time.perf_counter()
    ready = program.lower(*shapes).compile()
    memory = ready.memory_analysis()
    found = {"compile_s": time.perf_counter() - start, "temporary_bytes": memory.temp_size_in_bytes}
    return ready, found


def median_seconds(run: Callable[[], Any]) -> float:
    """The median over rounds; the first, which allocates, does not count."""
    jax.block_until_ready(run())
    seconds: list[float] = []
    while len(seconds) < ROUNDS and sum(seconds) < AT_MOST:
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def shapes_of(tree: Any) -> Any:
    """The shapes and types of the arrays of a tree."""
    return jax.eval_shape(lambda: tree)


# ── training ────────────────────────────────────────────────────────────────────────────────────


def training(attention: str) -> Callable[[Place], list[Row]]:
    """An update in bfloat16, with one form of attention: tokens a second, and the share of peak.

    FLOPs are those of the products alone, three times those of the forward pass.
    """

    def run(place: Place) -> list[Row]:
        sizes = place.sizes
        model = dataclasses.replace(sizes.model, attention=attention)
        network, optimizer = transformer(model), make_optimizer(OptimizerConfig(), num_steps=1000)
        update = make_train_step(next_token_losses(network, start=None), optimizer)
        init = jax.jit(lambda key: init_state(key, network, optimizer))
        key = jax.random.key(place.seed)
        shape = (sizes.batch_size, sizes.num_positions)
        batch = Batch(jax.random.randint(key, shape, 0, model.num_tokens), jnp.ones(shape, bool))
        state = init(key)
        step, found = compiled(jax.jit(update, donate_argnums=0), *shapes_of((state, batch, key)))
        losses = []

        def once() -> Any:
            nonlocal state
            state, metrics = step(state, batch, key)
            losses.append(metrics.loss)
            return state

        seconds, tokens = median_seconds(once), batch.tokens.size
        flops = 3 * tokens * flops_per_token(model, sizes.num_positions)
        row = {
            "kind": "training step",
            "name": f"{attention} attention, {shape[0]} × {shape[1]} tokens",
            "parameters": num_parameters(model),
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "flops_per_s": flops / seconds,
            "share_of_peak": share(flops / seconds, place.peak and place.peak.flops),
            "first_loss": float(losses[0]),
            "last_loss": float(losses[-1]),
        }
        return [row | found]

    return run


# ── losses ──────────────────────────────────────────────────────────────────────────────────────


def exact_losses(logits: np.ndarray, x_1: np.ndarray, x_t: np.ndarray) -> dict[str, float]:
    """Both losses of rows of equal weight, in float64 and without jax."""
    rows, total = np.arange(len(logits)), logsumexp(logits, axis=1)
    log_data, log_now = logits[rows, x_1] - total, logits[rows, x_t] - total
    inside = np.exp(log_now) + np.where(x_t == x_1, -1.0, log_data)
    return {"cross-entropy": -log_data.mean(), "generalized KL": -inside.mean()}


def losses(place: Place) -> list[Row]:
    """Both losses and their gradients at a large vocabulary, in float32 and bfloat16.

    The least traffic is to read the logits and to write the gradient, once each.
    """
    num_rows = place.sizes.loss_rows
    rng = np.random.default_rng(place.seed)
    x_1 = rng.integers(LARGE_V, size=num_rows)
    x_t = np.where(rng.random(num_rows) < 0.5, x_1, rng.integers(LARGE_V, size=num_rows))
    weights = jnp.full(num_rows, 1 / num_rows)
    some = np.arange(min(num_rows, 64))  # those whose losses are computed again in float64
    forms = {
        "cross-entropy": lambda logits, x_1, x_t, w: fast.cross_entropy(logits, x_1, w),
        "generalized KL": fast.generalized_kl,
    }
    rows = []
    for dtype in ("float32", BFLOAT16):
        shape = (num_rows, LARGE_V)
        logits = 3 * jax.random.normal(jax.random.key(place.seed), shape, jnp.dtype(dtype))
        first = np.asarray(logits[: len(some)]).astype(float)
        truth = exact_losses(first, x_1[some], x_t[some])
        for name, form in forms.items():
            data = (logits, jnp.asarray(x_1), jnp.asarray(x_t), weights)
            program, found = compiled(jax.jit(jax.value_and_grad(form)), *shapes_of(data))
            seconds = median_seconds(lambda program=program, data=data: program(*data))
            own = form(logits[: len(some)], data[1][some], data[2][some], jnp.full(len(some), 1.0))
            moved = 2 * logits.nbytes / seconds
            row = {
                "kind": "loss",
                "name": f"{name}, {dtype}, {num_rows} rows",
                "seconds": seconds,
                "bytes_per_s": moved,
                "share_of_memory": share(moved, place.peak and place.peak.memory),
                "temporary_share": found["temporary_bytes"] / (4 * num_rows * LARGE_V),
                "gap": abs(float(own) / len(some) - truth[name]),
            }
            rows.append(row | found)
    return rows


# ── decoding ────────────────────────────────────────────────────────────────────────────────────


def decoding(place: Place) -> list[Row]:
    """Next tokens with a cache, from one model."""
    key = jax.random.key(place.seed)
    params = jax.jit(transformer(place.sizes.model).init)(key)
    decoder = transformer_decoder(place.sizes.model)
    return [_decoded(place, "decoding", decoder, params, size, 1) for size in place.sizes.batches]


def mixture(place: Place) -> list[Row]:
    """Next tokens with a cache from K experts under the Bayes gate, at the largest batch.   [D7]"""
    sizes = place.sizes
    init = jax.jit(transformer(sizes.model).init)
    experts = [init(jax.random.key(place.seed + k)) for k in range(sizes.num_experts)]
    decoders = (transformer_decoder(sizes.model),) * sizes.num_experts
    prior = jnp.full(sizes.num_experts, -np.log(sizes.num_experts))
    params = mixture_params(decoders, prior, experts)
    decoder, size = mixture_decoder(decoders), sizes.batches[-1]
    return [_decoded(place, "mixture", decoder, params, size, sizes.num_experts)]


def _decoded(place: Place, kind: str, decoder: Any, params: Any, size: int, num_models: int) -> Row:
    new = place.sizes.new_tokens

    def draw(key: Any, params: Any, prompts: Any, lengths: Any) -> Any:
        return sample_autoregressive(key, params, decoder, prompts, lengths, max_new=new).tokens

    data = (jax.random.key(1), params, jnp.zeros((size, 1), int), jnp.ones(size, int))
    program, found = compiled(jax.jit(draw), *shapes_of(data))
    seconds = median_seconds(lambda: program(*data))
    # Every new token of a row reads the parameters, and all rows share one reading.
    read = 4 * num_models * num_parameters(place.sizes.model) * new / seconds
    row = {
        "kind": kind,
        "name": f"{num_models} × the model, batch {size}, {new} new tokens",
        "seconds": seconds,
        "tokens_per_s": size * new / seconds,
        "bytes_per_s": read,
        "share_of_memory": share(read, place.peak and place.peak.memory),
    }
    return row | found


# ── isolation ───────────────────────────────────────────────────────────────────────────────────


def isolation(place: Place) -> list[Row]:
    """Two experts on one chip, in one program: what one reads does not move a bit of the other."""
    network, optimizer = transformer(TINY), make_optimizer(OptimizerConfig(), num_steps=100)
    update = make_train_step(next_token_losses(network, start=None), optimizer)
    keys = jax.random.split(jax.random.key(place.seed), 2)
    states = jax.vmap(lambda key: init_state(key, network, optimizer))(keys)
    rng = np.random.default_rng(place.seed)
    tokens = rng.integers(TINY.num_tokens, size=(2, 2, 32))
    other = np.stack([tokens[0], (tokens[1] + 1) % TINY.num_tokens])
    program = jax.jit(independent(update, make_mesh(1, devices=[place.device])))
    batches = [Batch(jnp.asarray(rows), jnp.ones(rows.shape, bool)) for rows in (tokens, other)]
    step, found = compiled(program, *shapes_of((states, batches[0], keys)))
    after = [jax.tree.leaves(step(states, batch, keys)[0].params) for batch in batches]
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(*after, strict=True)]
    row = {
        "kind": "isolation",
        "name": "2 experts in one program",
        "collectives": len(collectives(step)),
        "leaves": len(pairs),
        "first_differ": sum(bool(np.any(a[0] != b[0])) for a, b in pairs),
        "second_differ": sum(bool(np.any(a[1] != b[1])) for a, b in pairs),
    }
    return [row | found]


# ── statements ──────────────────────────────────────────────────────────────────────────────────


class InHalf(Run):
    """The mathematics on arrays in bfloat16, on the default device."""

    def __init__(self) -> None:
        super().__init__("float32")

    def _cast(self, array: np.ndarray, missing: int) -> np.ndarray:
        array = super()._cast(array, missing)
        return array.astype(jnp.bfloat16) if array.dtype == np.float32 else array

    @staticmethod
    def _back(array: np.ndarray) -> np.ndarray:
        return array.astype(np.float64) if array.dtype == jnp.bfloat16 else Run._back(array)


def statements(place: Place) -> list[Row]:
    """The residuals of D4 and D7 in float32 and in bfloat16, and their falsifiers.   [D4, D7]"""
    cases = draw_cases(MAIN_SHAPE, place.sizes.instances, place.seed)
    # As in `verify`: 100 epsilons, for numbers up to 20 after 100 roundings.
    half = 100 * float(jnp.finfo(jnp.bfloat16).eps)
    runs = {"float32": (Run("float32"), TOLERANCE["float32"]), BFLOAT16: (InHalf(), half)}
    rows = []
    for label in ("D4", "D7"):
        statement = find_statement(label)
        for dtype, (run, tolerance) in runs.items():
            with np.errstate(divide="ignore", invalid="ignore"):  # falsifiers may leave the domain
                residual = statement.residual(cases, run)
                broken = statement.falsifier(cases, run)[cases.generic]
            row = {
                "kind": "statement",
                "name": f"{label}, {dtype}",
                "residual": float(residual.max()),
                "tolerance": tolerance,
                "falsifier": float(broken.min()),
                "instances": len(cases),
            }
            rows.append(row)
    return rows


def parts_of(sizes: Sizes) -> tuple[Part, ...]:
    """All parts, those first that a short budget should reach."""
    steps = (Part(f"training, {form}", 75, training(form)) for form in sizes.attention)
    return (
        *steps,
        Part("losses", 60, losses),
        Part("statements", 60, statements),
        Part("decoding", 75, decoding),
        Part("mixture", 90, mixture),
        Part("isolation", 30, isolation),
    )
