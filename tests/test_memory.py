"""What no machine can hold is refused by name before the compiler is asked; nothing else is."""

from dataclasses import replace

import pytest

from dfm_jax import cli
from dfm_jax.models.sizes import SIZES, num_parameters
from dfm_jax.theory import Shape, verify
from dfm_jax.training import memory
from dfm_jax.training.memory import check_fits, check_parameters_fit, check_sample_fits
from dfm_jax.training.presets import PRESETS, load_config

TERA = 10**12


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["model.width=1000000000"], "`model.width` must be small enough for the memory"),
        (["model.num_layers=1000000000"], "`model.num_layers` must"),
        (["model.ffn_width=1000000000000"], "`model.ffn_width` must"),
        ([f"model.num_tokens={TERA}", f"model.num_states={TERA}"], "`model.num_tokens` must"),
        (["batch_size=1000000000"], "`batch_size` must"),
        (["num_positions=1000000000"], "`num_positions` must"),
        (["objective=masked", "model.causal=false", "num_grid_steps=2147483647"], "num_grid_steps"),
    ],
)
def test_a_count_beyond_the_memory_is_refused_by_name(changes, named, monkeypatch):
    monkeypatch.setattr(memory, "_host_memory", lambda: 2**32)
    with pytest.raises(ValueError, match=named):
        check_fits(load_config("tiny", changes))


def test_more_runs_or_longer_texts_than_fit(monkeypatch):
    monkeypatch.setattr(memory, "_host_memory", lambda: 2**32)
    check_fits(PRESETS["small"], num_runs=10)
    with pytest.raises(ValueError, match=r"needs at least .* GiB for .* copies of them"):
        check_fits(PRESETS["small"], num_runs=10_000)
    with pytest.raises(ValueError, match="`num_samples` must be small enough"):
        check_sample_fits(TERA, 128, 256)
    with pytest.raises(ValueError, match="`max_new` must be small enough"):
        check_sample_fits(1, TERA, 256)


def test_what_just_fits_is_not_refused(monkeypatch):
    """The parameters alone, to the byte: no guess is added."""
    count = num_parameters(SIZES["1b"])
    monkeypatch.setattr(memory, "_host_memory", lambda: 4 * count)
    check_parameters_fit(SIZES["1b"])
    monkeypatch.setattr(memory, "_host_memory", lambda: 4 * count - 1)
    with pytest.raises(ValueError, match=r"`model\.num_tokens`"):
        check_parameters_fit(SIZES["1b"])


def test_every_preset_of_texts_fits_this_machine():
    texts = [config for config in PRESETS.values() if config.pictures is None]
    assert len(texts) == 4
    for config in texts:
        check_fits(replace(config, ema_decay=0.9))


TRAINED = ["optimizer.freeze=[]"]


def test_the_tower_and_the_projector_need_memory_too(monkeypatch):
    """Three copies of 7,063,427,072 parameters, to the byte."""
    count = 3 * 4 * 7_063_427_072
    monkeypatch.setattr(memory, "_host_memory", lambda: count)
    check_fits(load_config("llava-1.5-7b", TRAINED))
    monkeypatch.setattr(memory, "_host_memory", lambda: count - 1)
    with pytest.raises(ValueError, match=r"`model\.num_tokens` .* 7\.06e\+09 parameters"):
        check_fits(load_config("llava-1.5-7b", TRAINED))


TOWER = 303_507_456  # parameters of CLIP ViT-L/14 at 336 pixels
TARGETS = 'lora.targets=["language_model/layers/self_attn"]'


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        # The average of all, and the moments of what is trained.
        (["ema_decay=0.9"], 4 * 7_063_427_072 - 2 * TOWER),
        # Of 32 layers the four square kernels, 4096 a side.
        (["lora.rank=8", TARGETS], 7_063_427_072 + 3 * 32 * 4 * 2 * 8 * 4096),
    ],
)
def test_moments_are_those_of_what_is_trained(changes, count, monkeypatch):
    """Of a frozen tower there are none, to the byte; of adapters there are two each."""
    monkeypatch.setattr(memory, "_host_memory", lambda: 4 * count)
    check_fits(load_config("llava-1.5-7b", changes))
    monkeypatch.setattr(memory, "_host_memory", lambda: 4 * count - 1)
    with pytest.raises(ValueError, match=r"two moments of what is trained, .* bytes"):
        check_fits(load_config("llava-1.5-7b", changes))


def test_cases_of_statements_beyond_the_memory(capsys):
    with pytest.raises(ValueError, match="`instances` must be small enough for the memory"):
        verify(["D4"], instances=10**15)
    with pytest.raises(ValueError, match="`num_experts` must be small enough for the memory"):
        verify(["D4"], shape=Shape(2, 2, TERA))
    assert cli.main(["verify", "--labels", "D4", "--devices", "1000000000"]) == 2
    assert "`devices` must lie in [1, 1024]" in capsys.readouterr().err
