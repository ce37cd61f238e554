"""Scenes of a shape and two letters: reproducible, evenly drawn, prominence seen in pixels."""

import numpy as np
import pytest

from experiments.lib.lettered import LETTERS, SHAPES, lettered_question, lettered_scenes


@pytest.fixture(scope="module")
def drawn():
    return lettered_scenes(range(300))


def test_a_scene_is_a_function_of_seed_and_index(drawn):
    again = lettered_scenes([7, 3])
    np.testing.assert_array_equal(again.images, drawn.images[[7, 3]])
    assert again.scenes == (drawn.scenes[7], drawn.scenes[3])
    other = lettered_scenes([7, 3], seed=1)
    assert (other.images != again.images).any(axis=(1, 2, 3)).all()
    with pytest.raises(ValueError, match="`indices` must be at least 0"):
        lettered_scenes([-1])


def test_everything_is_drawn(drawn):
    assert {scene.shape for scene in drawn.scenes} == set(SHAPES)
    assert {letter for scene in drawn.scenes for letter in scene.letters} == set(LETTERS)
    prominence = np.array([scene.prominence for scene in drawn.scenes])
    assert 0 <= prominence.min() < 0.02
    assert 0.98 < prominence.max() <= 1
    assert 0.3 < np.mean([scene.above for scene in drawn.scenes]) < 0.7


def test_letters_may_be_few():
    drawn = lettered_scenes(range(40), letters="KH")
    assert {x.letters for x in drawn.scenes} == {"KK", "KH", "HK", "HH"}
    for letters in ("", "k", "A1"):
        with pytest.raises(ValueError, match="`letters` must be one or more capital letters"):
            lettered_scenes([0], letters=letters)


def test_prominence_is_seen(drawn):
    """Ink in the band of the letters, over that of the whole, rises with their prominence."""
    shares = []
    for image, scene in zip(drawn.images.astype(int), drawn.scenes, strict=True):
        ink = np.abs(image - np.median(image.reshape(-1, 3), axis=0)).sum(-1) > 60
        # The background is what most pixels are; where ink covers more than half, it is not.
        height = round(18 + 28 * scene.prominence)
        band = slice(0, height) if scene.above else slice(64 - height, 64)
        if 0.05 < ink.mean() < 0.5:
            shares.append((scene.prominence, ink[band].sum() / ink.sum()))
    prominence, share = np.array(shares).T
    assert len(shares) > 200
    assert np.corrcoef(prominence, share)[0, 1] > 0.8
    assert share[prominence < 0.2].mean() < 0.3 < 0.6 < share[prominence > 0.8].mean()


@pytest.mark.slow
def test_shape_and_letters_stay_in_their_bands(drawn):
    """Each band has its own ink: what stands in both is near the background's color."""
    for image, scene in zip(drawn.images.astype(int), drawn.scenes, strict=True):
        height = round(18 + 28 * scene.prominence)
        edge = height if scene.above else 64 - height
        above, below = (
            {tuple(pixel) for pixel in part.reshape(-1, 3).tolist()}
            for part in (image[:edge], image[edge:])
        )
        background = max(above & below, key=sum)
        far = [
            {pixel for pixel in part if sum(background) - sum(pixel) > 150}
            for part in (above, below)
        ]
        assert not far[0] & far[1]
        assert all(far)  # and something is drawn in each


def test_what_is_asked_has_nothing_to_do_with_what_is_seen(drawn):
    asked = [lettered_question(scene, index=i) for i, scene in enumerate(drawn.scenes)]
    for question, scene in zip(asked, drawn.scenes, strict=True):
        told = {"shape": scene.shape, "letters": scene.letters}
        assert question.answer == told[question.family]
    letters = np.array([question.family == "letters" for question in asked])
    prominence = np.array([scene.prominence for scene in drawn.scenes])
    assert abs(letters.mean() - 0.5) < 5 * 0.5 / 300**0.5
    assert abs(np.corrcoef(letters, prominence)[0, 1]) < 5 / 300**0.5
    again = [lettered_question(scene, index=i) for i, scene in enumerate(drawn.scenes)]
    assert again == asked
    with pytest.raises(ValueError, match="`seed` must be at least 0"):
        lettered_question(drawn.scenes[0], index=0, seed=-1)
