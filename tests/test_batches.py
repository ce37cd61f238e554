"""Batches: pure in (key, step), every window once an epoch, documents apart."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax.training.batches import document_pieces, document_windows, permuted, stream_windows

OFFSETS = np.array([0, 5, 5, 17, 20])  # the second document is empty
TOKENS = (np.arange(20) + 100).astype(np.uint8)


def images(key, epoch, count):
    order = jax.vmap(permuted, in_axes=(None, None, 0, None))(key, epoch, jnp.arange(count), count)
    return np.asarray(order)


@pytest.mark.parametrize("count", [1, 2, 16, 17, 100])
def test_the_order_of_an_epoch_is_a_permutation(count, key):
    np.testing.assert_array_equal(np.sort(images(key, 3, count)), np.arange(count))


def test_another_epoch_or_key_is_another_order(key):
    first = images(key, 0, 100)
    assert not np.array_equal(first, images(key, 1, 100))
    assert not np.array_equal(first, images(jax.random.key(1), 0, 100))


def test_a_window_may_come_anywhere_and_beside_any_other():
    """Images of 0 over 4,000 keys, and of (0, 1) as pairs: uniform by χ², false alarm 1e-4."""
    count = 10
    keys = jax.random.split(jax.random.key(2), 4000)
    pair = jnp.arange(2)
    at = jax.vmap(jax.vmap(permuted, in_axes=(None, None, 0, None)), in_axes=(0, None, None, None))
    drawn = np.asarray(at(keys, 0, pair, count))
    single = np.bincount(drawn[:, 0], minlength=count)
    assert np.sum((single - 400) ** 2 / 400) < 33.7  # 9 degrees of freedom
    pairs = np.bincount(drawn[:, 0] * count + drawn[:, 1], minlength=100).reshape(10, 10)
    off = pairs[~np.eye(count, dtype=bool)]
    assert np.trace(pairs) == 0
    assert np.sum((off - 4000 / 90) ** 2 / (4000 / 90)) < 145  # 89 degrees of freedom


def test_pieces_cut_every_document_from_its_beginning():
    pieces = document_pieces(OFFSETS, 5)
    assert pieces.tolist() == [[0, 5], [5, 5], [10, 5], [15, 2], [17, 3]]


def test_every_window_comes_once_an_epoch_also_across_batches(key):
    """Five windows, batches of three: five batches are three epochs."""
    batches = document_windows(TOKENS, OFFSETS, 5, 3)
    seen = [
        tuple(row[valid].tolist())
        for step in range(5)
        for row, valid in zip(*jax.device_get(batches(key, step)), strict=True)
    ]
    for epoch in range(3):
        assert sorted(seen[5 * epoch : 5 * epoch + 5]) == sorted(set(seen))
    assert Counter(len(window) for window in seen) == {5: 9, 3: 3, 2: 3}
    assert len({tuple(seen[5 * e : 5 * e + 5]) for e in range(3)}) > 1


def test_padding_has_id_0_and_does_not_count(key):
    tokens, valid = document_windows(TOKENS, OFFSETS, 5, 5)(key, 0)
    assert int(valid.sum()) == 20
    assert not np.asarray(tokens)[~np.asarray(valid)].any()
    assert np.all(np.asarray(tokens)[np.asarray(valid)] >= 100)


@pytest.mark.parametrize("kind", ["stream", "documents"])
def test_a_batch_is_a_function_of_key_and_step(kind, key):
    def batches():
        if kind == "stream":
            return stream_windows(TOKENS, 5, 4)
        return document_windows(TOKENS, OFFSETS, 5, 4)

    one, other = batches(), batches()
    later = [one(key, step).tokens for step in range(4)]
    np.testing.assert_array_equal(other(key, 3).tokens, later[3])  # no iterator to have run
    np.testing.assert_array_equal(jax.jit(one)(key, 3).tokens, later[3])
    assert not np.array_equal(later[2], later[3])
    assert not np.array_equal(one(jax.random.key(7), 3).tokens, later[3])


def test_windows_of_a_stream_begin_everywhere(key):
    batches = stream_windows(TOKENS, 5, 64)
    starts = np.asarray(batches(key, 0).tokens)[:, 0]
    assert set(starts.tolist()) == set(range(100, 116))


def test_steps_far_out_do_not_overflow(key):
    batches = document_windows(TOKENS, OFFSETS, 5, 3)
    tokens, valid = batches(key, 2**31 - 1)
    assert tokens.shape == (3, 5)
    assert valid.any(axis=1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stream_windows(TOKENS, 21, 4), "`tokens` must number at least `num_positions`"),
        (lambda: stream_windows(TOKENS, 5, 0), "`batch_size` must be at least 1"),
        (lambda: document_windows(TOKENS[:0], np.array([0, 0]), 5, 4), "the number of windows"),
        (lambda: document_windows(TOKENS, OFFSETS, 5, 2**30), "must be below 2³¹"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
