"""Batches: pure in (key, step), every window once an epoch, documents apart."""

from collections import Counter

import jax
import numpy as np
import pytest

from dfm_jax.training.batches import (
    document_pieces,
    document_windows,
    mapped_windows,
    permuted,
    picture_batches,
    read_ahead,
    stream_windows,
)

OFFSETS = np.array([0, 5, 5, 17, 20])  # the second document is empty
TOKENS = (np.arange(20) + 100).astype(np.uint8)


DOCUMENTS = document_windows(TOKENS, OFFSETS, 5, 3)  # compiled once for all tests


PERMUTED = jax.vmap(permuted, in_axes=(None, None, 0, None))


def images(key, epoch, count):
    order = jax.jit(PERMUTED, static_argnums=3)(key, epoch, np.arange(count), count)
    return np.asarray(order)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 16, 17, 100])
def test_the_order_of_an_epoch_is_a_permutation(count, key):
    np.testing.assert_array_equal(np.sort(images(key, 3, count)), np.arange(count))


@pytest.mark.slow
def test_another_epoch_or_key_is_another_order(key):
    first = images(key, 0, 100)
    assert not np.array_equal(first, images(key, 1, 100))
    assert not np.array_equal(first, images(jax.random.key(1), 0, 100))


@pytest.mark.slow
def test_a_window_may_come_anywhere_and_beside_any_other():
    """Images of 0 over 4,000 keys, and of (0, 1) as pairs: uniform by χ², false alarm 1e-4."""
    count = 10
    keys = jax.random.split(jax.random.key(2), 4000)
    at = jax.jit(jax.vmap(PERMUTED, in_axes=(0, None, None, None)), static_argnums=3)
    drawn = np.asarray(at(keys, 0, np.arange(2), count))
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
    seen = [
        tuple(row[valid].tolist())
        for step in range(5)
        for row, valid in zip(*jax.device_get(DOCUMENTS(key, step)), strict=True)
    ]
    for epoch in range(3):
        assert sorted(seen[5 * epoch : 5 * epoch + 5]) == sorted(set(seen))
    assert Counter(len(window) for window in seen) == {5: 9, 3: 3, 2: 3}
    assert len({tuple(seen[5 * e : 5 * e + 5]) for e in range(3)}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True])
def test_mapped_from_the_disk_they_are_the_same_batches(ahead, key, tmp_path):
    """Also when read ahead, and when a run goes on from any step, or asks for one twice."""
    (tmp_path / "tokens").write_bytes(TOKENS.tobytes())
    mapped = np.memmap(tmp_path / "tokens", np.uint8, mode="r")
    batches = mapped_windows(mapped, OFFSETS, 5, 3)
    if ahead:
        pytest.importorskip("grain")
        batches = read_ahead(batches, num_threads=2, buffer=3)
    for step in (0, 1, 2, 7, 8, 8, 3):
        for left, right in zip(batches(key, step), DOCUMENTS(key, step), strict=True):
            np.testing.assert_array_equal(left, right)
    other = jax.random.key(5)
    np.testing.assert_array_equal(batches(other, 4).tokens, DOCUMENTS(other, 4).tokens)


def test_a_mapped_batch_reads_its_own_tokens_and_no_others(key):
    """Of a stream whose length only the file system could hold: three terabytes, all of them 7."""
    sevens = np.broadcast_to(np.uint8(7), 3 * 10**12)
    offsets = np.array([0, 10**12, 3 * 10**12])
    tokens, valid = mapped_windows(sevens, offsets, 10**6, 2)(key, 5)
    assert tokens.shape == (2, 10**6)
    assert np.all(tokens[valid] == 7)
    with pytest.raises(ValueError, match="must hold fewer than 2³¹ tokens"):
        document_windows(sevens, offsets, 10**6, 2)


def test_padding_has_id_0_and_does_not_count(key):
    five = [DOCUMENTS(key, step) for step in range(5)]
    tokens, valid = (np.concatenate(p) for p in zip(*five, strict=True))
    assert int(valid.sum()) == 3 * 20  # five batches of three are three epochs
    assert not np.asarray(tokens)[~np.asarray(valid)].any()
    assert np.all(np.asarray(tokens)[np.asarray(valid)] >= 100)


@pytest.mark.parametrize("kind", ["stream", "documents"])
def test_a_batch_is_a_function_of_key_and_step(kind, key):
    def batches():
        if kind == "stream":
            return stream_windows(TOKENS, 5, 4)
        return document_windows(TOKENS, OFFSETS, 5, 3)

    one, other = (DOCUMENTS if kind == "documents" else batches()), batches()
    later = [one(key, step).tokens for step in range(4)]
    np.testing.assert_array_equal(other(key, 3).tokens, later[3])  # no iterator to have run
    assert not np.array_equal(later[2], later[3])
    assert not np.array_equal(one(jax.random.key(7), 3).tokens, later[3])


def test_windows_of_a_stream_begin_everywhere(key):
    batches = stream_windows(TOKENS, 5, 64)
    starts = np.asarray(batches(key, 0).tokens)[:, 0]
    assert set(starts.tolist()) == set(range(100, 116))


def test_steps_far_out_do_not_overflow(key):
    tokens, valid = DOCUMENTS(key, 2**31 - 1)
    assert tokens.shape == (3, 5)
    assert valid.any(axis=1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stream_windows(TOKENS, 21, 4), "`tokens` must hold at least"),
        (lambda: stream_windows(TOKENS, 5, 0), "`batch_size` must be at least 1"),
        (lambda: document_windows(TOKENS[:0], np.array([0, 0]), 5, 4), "the number of windows"),
        (lambda: document_windows(TOKENS, OFFSETS, 5, 2**30), "must be below 2³¹"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_questions_about_pictures_come_once_an_epoch_with_their_own(key):
    """Pictures are shared by questions; each row brings the features of its picture."""
    features = np.arange(3 * 2 * 4, dtype=np.float32).reshape(3, 2, 4)
    pictures = np.array([0, 0, 2, 1, 2])
    tokens = np.arange(5 * 3).reshape(5, 3)
    answers = tokens % 2 == 1
    batches = picture_batches(features, pictures, tokens, answers, 2)
    drawn = [batches(key, step) for step in range(5)]  # two epochs
    rows = np.concatenate([np.asarray(batch.tokens)[:, 0] // 3 for batch in drawn])
    for epoch in (rows[:5], rows[5:]):
        assert sorted(epoch.tolist()) == [0, 1, 2, 3, 4]
    for batch in drawn:
        row = np.asarray(batch.tokens)[:, 0] // 3
        np.testing.assert_array_equal(batch.features, features[pictures[row]])
        np.testing.assert_array_equal(batch.answers, answers[row])
    with pytest.raises(ValueError, match=r"`pictures` must hold ids in \[0, 1\]"):
        picture_batches(features[:2], pictures, tokens, answers, 2)


def test_data_of_one_shape_share_a_program_whose_arguments_they_are():
    """As constants of a program they would be compiled anew, and copied into it."""
    traced = 0

    @jax.jit
    def drawn(batches, key, step):
        nonlocal traced
        traced += 1
        return batches(key, step)

    key = jax.random.key(3)
    for tokens in (TOKENS, TOKENS[::-1].copy()):
        for batches in (stream_windows(tokens, 5, 3), document_windows(tokens, OFFSETS, 5, 3)):
            expected, found = batches(key, 2), drawn(batches, key, 2)
            np.testing.assert_array_equal(found.tokens, expected.tokens)
            np.testing.assert_array_equal(found.valid, expected.valid)
    assert traced == 2  # one for each kind of windows
