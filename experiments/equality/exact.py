"""The counted half of `equality`: dense = gated experts at every state of an n-gram.   [D4, D6]

With pseudo-counts α for the dense model and α/K for each expert, the distribution of the dense
model at a state is

    p(v | z) = (n(z, v) + α) / (n(z) + αV)  =  Σ_k r_k(z) p_k(v | z),

whatever the parts are, if r_k(z) = w_k P(z | k) / P(z) is the part's posterior given the state.
"""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dfm_jax.mixture import expert_posterior, mix
from dfm_jax.steps import next_token_velocity
from dfm_jax.types import Array, Float, Scalar, Velocity, typed
from experiments.lib.ngrams import NUM_BYTES, NgramCounts, blocks, part_sizes

GATES = ("posterior", "static", "wrong")


class Deviation(NamedTuple):
    """How far a gated mixture is from the dense model at one state."""

    residual: Array  # max_v |Σ_k r_k u_k(v) − u(v)|
    tv: Array  # total variation of the two next-byte distributions
    extra_nll: Array  # Σ_v n(v) log(p(v) / p_mix(v)) over the text, in nats


@dataclass(frozen=True, kw_only=True)
class Row:
    """One partition, one n: the mixture by three gates against the dense model."""

    partition: str
    n: int
    num_experts: int
    num_states: int
    num_bytes: int
    dense_nll: float  # nats per byte of the text that was counted
    oracle_nll: float  # the same if each byte goes to its own expert
    residual: dict[str, float]  # by gate: the largest over states and bytes
    tv_mean: dict[str, float]  # by gate: over the states as often as the text visits them
    tv_max: dict[str, float]
    extra_nll: dict[str, float]  # by gate: nats per byte above the dense model


@typed
def velocity_of(next_byte: Float[Array, " V"]) -> Velocity:
    """u(v, z) = p(v | z) − δ_m(v): the last n − 1 bytes are given, one masked byte is next. [A3]"""
    num_bytes = next_byte.shape[0]
    mask = jnp.full((1,), num_bytes)
    return next_token_velocity(next_byte, mask, jnp.asarray(0), num_states=num_bytes + 1)


@typed
def smoothed(counts: Float[Array, "*parts V"], alpha: Scalar) -> Float[Array, "*parts V"]:
    """(n(v) + α) / (n + αV)."""
    total = counts.sum(-1, keepdims=True) + alpha * counts.shape[-1]
    return (counts + alpha) / total


@typed
def deviations(
    dense: Float[Array, " V"],
    experts: Float[Array, "K V"],
    part_totals: Float[Array, " K"],
    alpha: Scalar,
) -> dict[str, Deviation]:
    """Gated experts against the dense model at one state, for each of `GATES`.

        r_k(z) ∝ w_k P(z | k),  w_k P(z | k) = (n_k(z) + αV/K) / total   [D3]

    Args:
        dense: n(z, v), counted on all the text.
        experts: n_k(z, v), counted on each part.
        part_totals: Σ_z n_k(z) + αV/K over the states seen.
        alpha: the dense model's pseudo-count.
    """
    num_experts, num_bytes = experts.shape
    share = alpha / num_experts
    log_prior = jnp.log(part_totals) - jnp.log(part_totals.sum())
    log_p_state = jnp.log(experts.sum(-1) + share * num_bytes) - jnp.log(part_totals)
    posterior = expert_posterior(log_prior, log_p_state)
    gates = {"posterior": posterior, "static": jnp.exp(log_prior), "wrong": jnp.roll(posterior, 1)}

    p = smoothed(dense, alpha)
    u = velocity_of(p)
    u_k = jax.vmap(velocity_of)(smoothed(experts, share))

    def deviation(gate: Float[Array, " K"]) -> Deviation:
        mixed = mix(gate, jnp.asarray(u_k))
        p_mix = mixed[0, :num_bytes]
        return Deviation(
            residual=jnp.abs(mixed - u).max(),
            tv=jnp.abs(p_mix - p).sum() / 2,
            extra_nll=jnp.sum(dense * (jnp.log(p) - jnp.log(p_mix))),
        )

    return {name: deviation(gates[name]) for name in GATES}


_at_every_state = jax.jit(jax.vmap(deviations, in_axes=(0, 0, None, None)))


def measure(
    counts: NgramCounts,
    part_of: np.ndarray,
    num_experts: int,
    *,
    partition: str,
    alpha: float,
) -> Row:
    """Every state seen in the text, every byte value, in float64 on the host's CPU."""
    num_states = counts.states.size
    sizes = part_sizes(counts, part_of, num_experts)
    totals = sizes + alpha * NUM_BYTES * num_states / num_experts
    found, visits, dense_nll, oracle_nll = [], [], 0.0, 0.0
    progress = tqdm(
        total=num_states, desc=f"by {partition}, n = {counts.n}", leave=False, disable=None
    )
    cpu = jax.local_devices(backend="cpu")[0]
    with progress, jax.enable_x64(True), jax.default_device(cpu):
        for block in blocks(counts, part_of, num_experts):
            at_states = _at_every_state(block.dense, block.experts, totals, np.asarray(alpha))
            found.append(jax.tree.map(lambda x, size=block.size: np.asarray(x)[:size], at_states))
            visits.append(block.dense[: block.size].sum(-1))
            dense_nll += _nll(block.dense, alpha)
            oracle_nll += _nll(block.experts, alpha / num_experts)
            progress.update(block.size)
    by_gate: dict[str, Deviation] = jax.tree.map(lambda *xs: np.concatenate(xs), *found)
    visited = np.concatenate(visits)
    num_bytes = int(visited.sum())
    return Row(
        partition=partition,
        n=counts.n,
        num_experts=num_experts,
        num_states=visited.size,
        num_bytes=num_bytes,
        dense_nll=dense_nll / num_bytes,
        oracle_nll=oracle_nll / num_bytes,
        # NumPy's max of a NaN is a NaN: it cannot pass for small
        residual={gate: float(by_gate[gate].residual.max()) for gate in GATES},
        tv_mean={gate: float(visited @ by_gate[gate].tv) / num_bytes for gate in GATES},
        tv_max={gate: float(by_gate[gate].tv.max()) for gate in GATES},
        extra_nll={gate: float(by_gate[gate].extra_nll.sum()) / num_bytes for gate in GATES},
    )


def _nll(counts: np.ndarray, alpha: float) -> float:
    """−Σ n(v) log p(v), summed over the cells that occur."""
    totals = counts.sum(-1) + alpha * NUM_BYTES
    *where, _ = cells = np.nonzero(counts)
    seen = counts[cells]
    return float(-(seen * np.log((seen + alpha) / totals[tuple(where)])).sum())


def as_record(row: Row) -> dict[str, object]:
    """The row as JSON takes it."""
    return {"study": "counted", **asdict(row)}
