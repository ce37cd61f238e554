"""Packs: every row in one of them, none too large, little of them empty."""

import numpy as np
import pytest

from dfm_jax.training.packs import pack_rows

SIZES = {"num_positions": 64, "max_pictures": 4}


def drawn(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(1, 41, count), random.integers(0, 3, count)


def test_every_row_is_in_one_pack_that_is_not_too_large():
    lengths, pictures = drawn()
    packs = pack_rows(lengths, pictures, seed=0, **SIZES)
    np.testing.assert_array_equal(np.sort(np.concatenate(packs)), np.arange(200))
    assert max(lengths[pack].sum() for pack in packs) <= 64
    assert max(pictures[pack].sum() for pack in packs) == 4
    assert lengths.sum() / (64 * len(packs)) > 0.85


def test_the_seed_draws_the_packs():
    lengths, pictures = drawn()
    one, again, other = (pack_rows(lengths, pictures, seed=seed, **SIZES) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=False))


def test_a_row_goes_into_the_first_open_pack_with_room():
    """Of one open pack, a row that does not fit closes it; of two, a later row still fills it."""
    lengths, pictures = np.array([40, 40, 20, 20]), np.zeros(4, int)
    assert len(pack_rows(lengths, pictures, seed=0, **SIZES)) == 2
    found = {len(pack_rows(lengths, pictures, seed=s, open_packs=1, **SIZES)) for s in range(20)}
    assert found == {2, 3}
    assert pack_rows(lengths[:0], pictures[:0], seed=0, **SIZES) == []


def test_rows_that_fit_nowhere_are_refused():
    with pytest.raises(ValueError, match="`lengths` must be at most 64; got lengths = 65"):
        pack_rows(np.array([65]), np.array([0]), seed=0, **SIZES)
    with pytest.raises(ValueError, match="`pictures` must be at most 4; got pictures = 5"):
        pack_rows(np.array([6]), np.array([5]), seed=0, **SIZES)
