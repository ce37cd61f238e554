"""The cost of a run on n chips, by formula: bytes sent, memory, seconds.

    ring all-reduce   2 (n − 1)/n · bytes      all-gather, reduce-scatter   (n − 1)/n · bytes

These are the bytes that each chip sends. A run over several pods sums in three steps: it scatters
inside a pod, reduces between the pods the part that each chip holds, and gathers inside. Latency,
stragglers and failures are left out; all three grow with the number of chips that wait for each
other.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from dfm_jax.checks import check_count, check_interval, require
from dfm_jax.models import TransformerConfig, flops_per_token, num_parameters

STATE_BYTES = 16  # a parameter: itself, its gradient, two moments of Adam, all in float32
PASSES = 4  # forward, backward twice, and forward once more: layers are recomputed
HALF, SINGLE = 2, 4  # bytes of bfloat16 and float32


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A kind of chip and its two networks; rates are per chip, and for sending."""

    flops: float
    """bfloat16, dense, per second, at its peak."""
    memory: float
    """Bytes."""
    pod: int
    """How many chips the fast network joins."""
    fast: float
    """Bytes per second inside a pod."""
    slow: float
    """Bytes per second between pods."""

    def __post_init__(self) -> None:
        """Refuse values that no chip can have."""
        check_count("pod", self.pod)
        for name in ("flops", "memory", "fast", "slow"):
            check_interval(name, getattr(self, name), 0, math.inf, ends="()")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The assumptions for every run."""

    length: int  # tokens of a sequence
    efficiency: float  # of the peak, while nothing waits for the network
    usable: float  # share of the memory
    gradient_bytes: int  # a gradient, as it is summed
    gather_bytes: int  # a parameter, as it is gathered


class Traffic(NamedTuple):
    """Bytes that each chip sends for one update."""

    fast: float  # inside its pod
    slow: float  # to other pods

    def __add__(self, other: tuple) -> "Traffic":
        """The traffic of one after the other."""
        return Traffic(self.fast + other[0], self.slow + other[1])

    def times(self, count: float) -> "Traffic":
        """The traffic of so many of them."""
        return Traffic(count * self.fast, count * self.slow)


class Cost(NamedTuple):
    """The cost of one update of one run, on each of its chips."""

    shards: int  # chips over which one copy of the state is cut
    micro_batches: int
    traffic: Traffic
    memory: float  # bytes
    fits: bool
    compute: float  # seconds
    fast: float
    slow: float

    @property
    def in_turn(self) -> float:
        """The seconds if nothing is sent while something is computed."""
        return self.compute + self.fast + self.slow

    @property
    def at_once(self) -> float:
        """The seconds if everything that can overlap does overlap."""
        return max(self.compute, self.fast, self.slow)


# ── bytes ───────────────────────────────────────────────────────────────────────────────────────


def gather(num_bytes: float, span: int, pod: int) -> Traffic:
    """The traffic to gather an array split over `span` chips; a reduce-scatter sends the same.

    The gather between pods comes first, while the pieces are small: num_bytes / m each, with m
    chips of a pod.
    """
    inside, pods = _inside(span, pod)
    return Traffic((inside - 1) / inside * num_bytes, (pods - 1) / pods * num_bytes / inside)


def all_reduce(num_bytes: float, span: int, pod: int) -> Traffic:
    """The traffic to all-reduce an array on `span` chips: reduce-scatter, then all-gather."""
    return gather(num_bytes, span, pod).times(2)


def update_traffic(
    model: TransformerConfig,
    num_chips: int,
    shards: int,
    micro_batches: int,
    pod: int,
    rules: Rules,
) -> Traffic:
    """The traffic of an update if the state is split over `shards` chips; 1 is data-parallel.

    If it is sharded, every micro-batch gathers the parameters twice, for the forward and the
    backward pass, and scatters its gradient once. Copies are summed once, at the end.
    """
    size = num_parameters(model)
    weights, gradient = rules.gather_bytes * size, rules.gradient_bytes * size
    cut = gather(2 * weights + gradient, shards, pod).times(micro_batches)
    return cut + _between_copies(gradient / shards, num_chips, shards, pod)


def _between_copies(num_bytes: float, num_chips: int, shards: int, pod: int) -> Traffic:
    """The all-reduce of a shard over the chips that hold the same one."""
    copies = num_chips // shards
    return all_reduce(num_bytes, copies, max(1, min(pod, num_chips) // shards))


def _inside(span: int, pod: int) -> tuple[int, int]:
    """How many of the chips are in one pod, and how many pods they make.

    Raises:
        ValueError: if the chips do not fill whole pods.
    """
    inside = min(span, pod)
    require(span % inside == 0, f"`span` must fill whole pods of {pod} chips", span)
    return inside, span // inside


# ── memory ──────────────────────────────────────────────────────────────────────────────────────


def memory(model: TransformerConfig, tokens: float, shards: int, rules: Rules) -> float:
    """Bytes on a chip: state, weights in use, and the activations of a micro-batch's tokens.

    The inputs of layers are kept. The branches of one layer at a time are recomputed, and each has
    a gradient. Logits and their gradient are float32. Attention is fused, so its scores are never
    written.
    """
    width, kv_width = model.width, model.kv_heads * model.head_size
    head = width * model.num_tokens
    layer = 2 * width * width + 2 * width * kv_width + 3 * width * model.ffn_width
    in_use = HALF * (layer + head)
    if shards > 1:  # the next layer is gathered, and the last one's gradient not yet scattered
        in_use += rules.gather_bytes * layer + rules.gradient_bytes * (layer + head)
    kept = HALF * width * model.num_layers
    branches = 2 * HALF * (5 * width + 2 * kv_width + 3 * model.ffn_width)
    logits = 2 * SINGLE * model.num_tokens
    state = STATE_BYTES * num_parameters(model) / shards
    return state + in_use + tokens * (kept + branches + logits)


# ── seconds ─────────────────────────────────────────────────────────────────────────────────────


def cost(
    model: TransformerConfig, tokens: int, num_chips: int, shards: int, chip: Chip, rules: Rules
) -> Cost:
    """The cost of one update by `tokens` tokens, in as few micro-batches as the memory allows.

    Raises:
        ValueError: if a chip gets less than one sequence.
    """
    check_count("shards", shards, at_most=num_chips)
    here = tokens / num_chips
    rule = f"`tokens` must give each of {num_chips} chips a sequence of {rules.length} tokens"
    require(here >= rules.length, rule, tokens)
    most, micro_batches = math.floor(here / rules.length), 1
    room = rules.usable * chip.memory
    while memory(model, here / micro_batches, shards, rules) > room and micro_batches < most:
        micro_batches = min(2 * micro_batches, most)
    used = memory(model, here / micro_batches, shards, rules)
    traffic = update_traffic(model, num_chips, shards, micro_batches, chip.pod, rules)
    flops = PASSES * here * flops_per_token(model, rules.length)
    return Cost(
        shards,
        micro_batches,
        traffic,
        used,
        used <= room,
        flops / (chip.flops * rules.efficiency),
        traffic.fast / chip.fast,
        traffic.slow / chip.slow,
    )


def sharded_cost(
    model: TransformerConfig, tokens: int, num_chips: int, chip: Chip, rules: Rules
) -> Cost:
    """The cost of the fastest sharded layout that fits; if none fits, split over all chips.

    Copies have 2, 4, 8 … chips; a copy that spans pods uses the slow network at every gather.
    """
    cuts = [2**power for power in range(1, num_chips.bit_length())]
    found = [cost(model, tokens, num_chips, cut, chip, rules) for cut in cuts]
    fitting = [one for one in found if one.fits]
    return min(fitting, key=lambda one: one.in_turn) if fitting else found[-1]


def between_sites(model: TransformerConfig, num_sites: int, rules: Rules) -> float:
    """The bytes that each site sends for one update of a dense model that lies in several sites."""
    return 2 * (num_sites - 1) / num_sites * rules.gradient_bytes * num_parameters(model)
