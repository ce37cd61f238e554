"""Passes of k-means without balance, of which each computes only the scores that it needs.

    ⟨a_k, f⟩ ≤ ⟨c_k, f⟩ + ‖a_k − c_k‖   for ‖f‖ = 1

Groups of centroids that are near each other share a bound b_gi ≥ max_{k∈g} ⟨c_k, f_i⟩ for each row,
which grows by the largest step of a centroid of the group. A row whose bound lies below the cosine
with its own centroid needs no score of the group, and the labels are those of a pass that computes
all scores, up to rounding. Sums are changed by the rows that changed their cluster. R rows, K
clusters, G groups, D features. Source: Ding et al. (2015), "Yinyang k-means", for bounds of groups.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.clustering.directions import (
    FEW,
    Rows,
    centroid_sums,
    nearest,
    some_rows,
    unit_centroids,
)
from dfm_jax.paths import HIGHEST
from dfm_jax.types import Array, Float, Int, typed

SETTLED = 1e-5  # a pass that gains less, as a share of the objective, is the last
_GROUP = 32  # centroids
_GROUPING = 4  # passes over the centroids that put near ones in a group
_BLOCK = 2**11  # rows at a time
_DENSE = 0.4  # of all scores; if more are needed, it is faster to compute all
_ROUNDING = 32  # machine epsilons by which a computed cosine may be wrong


class Near(NamedTuple):
    """The nearest centroid of each row, and what the centroids of each group cannot exceed."""

    labels: Int[Array, " R"]
    cosines: Float[Array, " R"]  # with it
    bounds: Float[Array, "G R"]


@partial(jax.jit, static_argnames="max_passes")
@typed
def lloyd(
    rows: Rows, centroids: Float[Array, "K D"], max_passes: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Assign and average until the centroids stop: centroids, labels, sums, mean cosine, passes."""
    num_clusters = len(centroids)
    members = _groups(centroids) if num_clusters > FEW else jnp.zeros((0, _GROUP), int)

    def assigned(centroids: Array) -> Near:
        if num_clusters > FEW:
            return _every_score(rows, centroids, members)
        return Near(*nearest(rows, centroids), jnp.zeros((0, rows.inverse.size), centroids.dtype))

    def again(centroids: Array, before: Array, near: Near) -> Near:
        if num_clusters > FEW:
            return _needed_scores(rows, centroids, before, near, members)
        return assigned(centroids)

    def unsettled(state: tuple) -> Array:
        *_, cosine, previous, passes = state
        return (passes < max_passes) & (cosine > previous + SETTLED * jnp.abs(previous))

    def descend(state: tuple) -> tuple:
        before, near, sums, cosine, _, passes = state
        centroids = unit_centroids(sums, before)
        found = again(centroids, before, near)
        sums = moved_sums(rows, sums, near.labels, found.labels)
        return centroids, found, sums, found.cosines.mean(), cosine, passes + 1

    near = assigned(centroids)
    sums = centroid_sums(rows, near.labels, num_clusters)
    cosine = near.cosines.mean()
    first = (centroids, near, sums, cosine, jnp.full_like(cosine, -1), jnp.array(1))
    centroids, near, sums, cosine, _, passes = jax.lax.while_loop(unsettled, descend, first)
    return centroids, near.labels, sums, cosine, passes


@jax.jit
@typed
def moved_sums(
    rows: Rows, sums: Float[Array, "K D"], before: Int[Array, " R"], after: Int[Array, " R"]
) -> Float[Array, "K D"]:
    """Σ_{i∈k} f_i of the labels `after`, from those of `before`: only rows that moved are read."""
    chosen, count = _chosen(before != after)

    def from_start() -> Array:
        return centroid_sums(rows, after, len(sums))

    def changed() -> Array:
        def block(number: Array, sums: Array) -> Array:
            own, there = _block_of(chosen, count, number)
            some = some_rows(rows, own)
            units = (some.features - rows.mean[None]) * (some.inverse * there)[:, None]
            return _added(_added(sums, -units, before[own]), units, after[own])

        return jax.lax.fori_loop(0, -(-count // _block_size(chosen)), block, sums)

    return jax.lax.cond(4 * count > before.size, from_start, changed)


def _added(sums: Array, units: Array, labels: Array) -> Array:
    if len(sums) > FEW:
        return sums.at[labels].add(units)
    chosen = labels[None] == jnp.arange(len(sums))[:, None]
    return sums + jnp.matmul(chosen.astype(units.dtype), units, precision=HIGHEST)


# ── groups ──────────────────────────────────────────────────────────────────────────────────────


def _groups(centroids: Array) -> Array:
    """The members of each group, in ascending order, [G, width]; K stands for none."""
    num_clusters, num_groups = len(centroids), -(-len(centroids) // _GROUP)
    units = Rows(centroids, jnp.zeros_like(centroids[0]), jnp.ones_like(centroids[:, 0]))

    def step(_: Array, heads: Array) -> Array:
        sums = centroid_sums(units, nearest(units, heads)[0], num_groups)
        return unit_centroids(sums, heads)

    heads = jax.lax.fori_loop(0, _GROUPING, step, centroids[:num_groups])
    order = jnp.argsort(nearest(units, heads)[0], stable=True)
    none = jnp.full(num_groups * _GROUP - num_clusters, num_clusters)
    return jnp.sort(jnp.concatenate([order, none]).reshape(num_groups, _GROUP), axis=1)


class _Best(NamedTuple):
    labels: Array  # [R], the lowest of the nearest members
    cosines: Array  # [R], with it
    bounds: Array  # [R, G], the largest of each group


def _best(some: Rows, centroids: Array, members: Array) -> _Best:
    """The nearest centroid of some groups.

    1/‖x − μ‖ multiplies only what is left of the scores, and the group of the largest score is
    found first: what is done for every score counts.
    """
    chosen = centroids[members.reshape(-1)]
    shift = jnp.matmul(chosen, some.mean, precision=HIGHEST)
    shift = jnp.where(members.reshape(-1) < len(centroids), shift, jnp.inf).reshape(members.shape)
    product = jnp.matmul(some.features, chosen.T, precision=HIGHEST).reshape(-1, *members.shape)
    largest = (product - shift[None]).max(axis=2)
    best = largest.max(axis=1)
    group = _lowest(largest == best[:, None], jnp.arange(len(members))[None])
    own = jnp.take_along_axis(product, group[:, None, None], axis=1)[:, 0] - shift[group]
    labels = _lowest(own == best[:, None], members[group])
    return _Best(labels, best * some.inverse, largest * some.inverse[:, None])


def _lowest(mask: Array, numbers: Array) -> Array:
    """The smallest number where the mask is true; on a CPU `argmax` takes several times as long."""
    return jnp.where(mask, numbers, jnp.iinfo(numbers.dtype).max).min(axis=1)


def _every_score(rows: Rows, centroids: Array, members: Array) -> Near:
    num_rows, size = rows.inverse.size, _block_size(rows.inverse)

    def block(number: Array, near: Near) -> Near:
        begin = jnp.minimum(number * size, num_rows - size)  # the last begins a little earlier
        labels, best, bounds = _best(_slice_of(rows, begin, size), centroids, members)
        return Near(
            jax.lax.dynamic_update_slice_in_dim(near.labels, labels, begin, 0),
            jax.lax.dynamic_update_slice_in_dim(near.cosines, best, begin, 0),
            jax.lax.dynamic_update_slice_in_dim(near.bounds, bounds.T, begin, 1),
        )

    empty = Near(
        jnp.zeros(num_rows, members.dtype),
        jnp.zeros(num_rows, centroids.dtype),
        jnp.zeros((len(members), num_rows), centroids.dtype),
    )
    return jax.lax.fori_loop(0, -(-num_rows // size), block, empty)


def _needed_scores(rows: Rows, centroids: Array, before: Array, near: Near, members: Array) -> Near:
    """The nearest centroids after a step of the centroids from `before`."""
    num_clusters = len(centroids)
    steps = jnp.linalg.norm(centroids - before, axis=1)
    step = jnp.append(steps, 0)[members].max(axis=1)  # of each group
    rounding = _ROUNDING * jnp.finfo(centroids.dtype).eps
    group_of = jnp.zeros(num_clusters, int)
    group_of = group_of.at[members].set(jnp.arange(len(members))[:, None], mode="drop")
    own = jnp.where(steps[near.labels] > 0, _own_scores(rows, centroids, near.labels), near.cosines)
    bounds = near.bounds + jnp.where(step > 0, step + rounding, 0)[:, None]
    settled = (group_of[near.labels][None] == jnp.arange(len(members))[:, None]) & (
        step[:, None] == 0
    )
    needed = (bounds + rounding >= own[None]) & ~settled

    def some() -> Near:
        def group(number: Array, found: Near) -> Near:
            chosen, count = _chosen(needed[number] & (bounds[number] + rounding >= found.cosines))

            def block(place: Array, found: Near) -> Near:
                at, there = _block_of(chosen, count, place)
                first, best, _ = _best(some_rows(rows, at), centroids, members[number][None])
                cosines, labels = found.cosines[at], found.labels[at]
                better = (best > cosines) | ((best == cosines) & (first < labels))
                # Places beyond the count are none.
                at = jnp.where(there, at, near.labels.size)
                return Near(
                    found.labels.at[at].set(jnp.where(better, first, labels), mode="drop"),
                    found.cosines.at[at].set(jnp.where(better, best, cosines), mode="drop"),
                    found.bounds.at[number, at].set(best, mode="drop"),
                )

            return jax.lax.fori_loop(0, -(-count // _block_size(chosen)), block, found)

        return jax.lax.fori_loop(0, len(members), group, Near(near.labels, own, bounds))

    return jax.lax.cond(
        needed.mean() > _DENSE, lambda: _every_score(rows, centroids, members), some
    )


def _own_scores(rows: Rows, centroids: Array, labels: Array) -> Array:
    """⟨c_a(i), f_i⟩. [R]"""
    num_rows, size = rows.inverse.size, _block_size(rows.inverse)

    def block(number: Array, found: Array) -> Array:
        begin = jnp.minimum(number * size, num_rows - size)
        some = _slice_of(rows, begin, size)
        own = centroids[jax.lax.dynamic_slice_in_dim(labels, begin, size)]
        scores = jnp.sum((some.features - rows.mean[None]) * own, axis=1) * some.inverse
        return jax.lax.dynamic_update_slice_in_dim(found, scores, begin, 0)

    return jax.lax.fori_loop(0, -(-num_rows // size), block, jnp.zeros(num_rows, centroids.dtype))


# ── some of the rows ────────────────────────────────────────────────────────────────────────────


def _block_size(rows: Array) -> int:
    return min(_BLOCK, rows.size)


def _slice_of(rows: Rows, begin: Array, size: int) -> Rows:
    features = jax.lax.dynamic_slice_in_dim(rows.features, begin, size)
    return Rows(features, rows.mean, jax.lax.dynamic_slice_in_dim(rows.inverse, begin, size))


def _chosen(mask: Array) -> tuple[Array, Array]:
    """The places where the mask is true, first, and their number."""
    place = jnp.cumsum(mask)
    at = jnp.where(mask, place - 1, mask.size)
    none = jnp.zeros(mask.shape, place.dtype)
    return none.at[at].set(jnp.arange(mask.size), mode="drop"), place[-1]


def _block_of(chosen: Array, count: Array, number: Array) -> tuple[Array, Array]:
    """A block of the chosen rows; false at places that lie beyond the count or in two blocks."""
    size = _block_size(chosen)
    begin = jnp.minimum(number * size, chosen.size - size)
    place = begin + jnp.arange(size)
    own = jax.lax.dynamic_slice_in_dim(chosen, begin, size)
    return own, (place < count) & (place >= number * size)
