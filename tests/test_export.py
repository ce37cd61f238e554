"""A trained network of pictures, written as a folder and read again: the same logits."""

import json

import jax
import numpy as np
import pytest
from tiny_systems import CHANGES, SYSTEMS, exported, prompt

from dfm_jax.models.multimodal import multimodal
from dfm_jax.models.pretrained import checkpoint_params, open_folder
from dfm_jax.training.digests import named_leaves
from dfm_jax.training.evaluation import load_member
from dfm_jax.training.members import read_member
from dfm_jax.training.pretrained import tensors_digest

pytestmark = pytest.mark.slow  # whole runs


@pytest.mark.parametrize(
    ("kind", "trained"),
    [("llava", "a frozen tower"), ("llava", "adapters"), ("internvl", "all")],
)
def test_a_member_that_reads_pictures_comes_back_with_its_logits(kind, trained, tmp_path):
    run, out = exported(tmp_path, kind, trained)
    start, written = open_folder(tmp_path / kind), open_folder(out)
    assert read_member(run / "dense")["init"] == tensors_digest(start)
    assert written.config == start.config == SYSTEMS[kind]
    assert written.shapes == start.shapes
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (out / name).read_bytes() == (start.path / name).read_bytes()
    tokens, pictures = prompt(kind)
    apply = jax.jit(multimodal(SYSTEMS[kind]).apply)
    state = load_member(run / "dense").state
    params, first = checkpoint_params(written), checkpoint_params(start)
    found = apply(params, tokens, pictures)
    np.testing.assert_array_equal(found, apply(state.params, tokens, pictures))
    assert np.abs(found - apply(first, tokens, pictures)).max() > 0.1
    assert np.abs(found - apply(params, tokens, pictures[::-1])).max() > 1e-3
    before = dict(named_leaves(first))
    moved = {n.split("/")[0] for n, leaf in named_leaves(params) if (leaf != before[n]).any()}
    parts = {"vision_tower", "multi_modal_projector", "language_model"}
    assert moved == parts - ({"vision_tower"} if CHANGES[trained] else set())
    said = json.loads((out / "config.json").read_text())
    assert said == json.loads((start.path / "config.json").read_text())
