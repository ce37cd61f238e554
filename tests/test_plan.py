"""What a run will take: counts by hand, FLOPs of the parts, and what is missing by name."""

import json

import pytest

from dfm_jax import cli
from dfm_jax.models.multimodal import SYSTEMS, flops_per_row
from dfm_jax.models.sizes import flops_per_token, num_parameters
from dfm_jax.training.plan import missing, num_data_rows, plan_of
from dfm_jax.training.presets import UNKNOWN, load_config


def test_a_plan_of_texts_counts_what_an_update_does():
    config = load_config("tiny", ["num_micro_batches=2", "ema_decay=0.9"])
    plan, count = plan_of(config, chips=2), num_parameters(config.model)
    assert plan.parameters == plan.trained == count
    assert (plan.rows, plan.tokens, plan.pictures, plan.steps) == (8, 512, 0, 100)
    assert plan.flops == 3 * 512 * flops_per_token(config.model, 64)
    assert plan.state == 4 * 4 * count / 2
    assert plan.gradients == 2 * 4 * count / 2
    assert plan.memory > plan.state + plan.gradients


@pytest.mark.parametrize("name", SYSTEMS)
def test_flops_of_a_system_are_those_of_its_passes(name):
    """All trained: the projector alone is not recomputed. A frozen tower has one pass of four."""
    config = load_config(name)
    system, pictures = SYSTEMS[name], config.pictures.max_pictures
    forward = config.batch_size * flops_per_row(system, config.num_positions, pictures)
    whole, part = plan_of(config).flops, plan_of(config, frozen=["vision_tower"]).flops
    text = config.batch_size * config.num_positions
    text *= flops_per_token(system.text, config.num_positions)
    inputs, width = system.vision.width * system.shuffle**2, system.text.width
    projected = 2 * system.features_per_picture * (inputs + width) * width
    projected *= config.batch_size * pictures
    assert whole == pytest.approx(4 * forward - projected, rel=1e-12)
    assert whole - part == pytest.approx(3 * (forward - text - projected), rel=1e-9)


def test_a_frozen_tower_has_no_moments_and_keeps_no_inputs():
    config = load_config("internvl2.5-1b")
    whole, part = plan_of(config, chips=4), plan_of(config, chips=4, frozen=["vision_tower"])
    tower = whole.trained - part.trained
    assert tower == 304_012_288
    assert whole.state - part.state == 8 * tower / 4
    assert part.activations < whole.activations


def test_the_average_of_what_is_frozen_is_kept_too():
    """Parameters and average of all, and moments of what is trained, as `init_state` makes them."""
    config = load_config("internvl2.5-1b", ["ema_decay=0.9"])
    plan = plan_of(config, frozen=["vision_tower"])
    assert plan.state == 4 * (2 * plan.parameters + 2 * plan.trained)


LORA = ["lora.rank=4", "lora.alpha=8"]


def test_a_plan_of_adapters_of_a_text():
    """Kernels have one backward pass, attention two, and adapters three passes of their own."""
    targets = 'lora.targets=["layers_*/self_attn"]'
    plain, config = load_config("tiny"), load_config("tiny", [*LORA, targets])
    plan, model = plan_of(config), config.model
    adapters = model.num_layers * 4 * 4 * 2 * model.width
    assert plan.adapters == plan.trained == adapters
    assert plan.parameters == num_parameters(model) + adapters
    assert plan.state == 4 * (num_parameters(model) + 3 * adapters)
    assert plan.gradients == 4 * adapters
    forward, length = 64 * flops_per_token(model, 64), 64
    attention = 4 * length**2 * model.width * model.num_layers
    row = 2 * forward + attention + 3 * 2 * adapters * length
    assert plan.flops == pytest.approx(config.batch_size * row, rel=1e-12)
    assert plan.flops < 0.85 * plan_of(plain).flops
    assert plan_of(plain).adapters == 0


def test_a_plan_of_llava_with_adapters():
    """The recipe of LLaVA's authors: adapters in the text, and the projector whole."""
    changes = [*LORA, 'lora.targets=["language_model/layers"]']
    config = load_config("llava-1.5-7b", changes)
    frozen = config.optimizer.freeze
    text_alone = plan_of(config, frozen=frozen)
    changes.append('lora.train=["multi_modal_projector"]')
    plan = plan_of(load_config("llava-1.5-7b", changes), frozen=frozen)
    projector = 1024 * 4096 + 4096**2 + 2 * 4096
    sides = 4 * 2 * 4096 + 3 * (4096 + 11_008)
    assert plan.adapters == 32 * 4 * sides
    assert plan.trained == plan.adapters + projector
    assert text_alone.trained == text_alone.adapters == plan.adapters
    # A projector that is trained, as what lies before nothing else, has two passes more.
    passes = 128 * 576 * 2 * (1024 + 4096) * 4096
    assert plan.flops - text_alone.flops == pytest.approx(2 * passes, rel=1e-6)
    whole = plan_of(load_config("llava-1.5-7b"), frozen=frozen)
    assert plan.flops < 0.8 * whole.flops
    assert plan.memory < 0.5 * whole.memory
    tower = 'lora.targets=["language_model/layers", "vision_tower"]'
    with pytest.raises(ValueError, match="`freeze` must not name what `lora` trains"):
        plan_of(load_config("llava-1.5-7b", [*LORA, tower]), frozen=frozen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chips": 3}, "`chips` must divide the rows of a micro-batch, of which there are 4"),
        ({"frozen": ["language_model"]}, "`frozen` must be the first of vision_tower"),
        ({"frozen": ["multi_modal_projector"]}, "`frozen` must be the first of vision_tower"),
        ({"frozen": ["head"]}, "`frozen` must be the first of vision_tower"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_name(options, message):
    config = load_config("internvl2.5-1b")
    with pytest.raises(ValueError, match=message):
        plan_of(config, **options)


def test_what_is_missing_is_named(tmp_path):
    config = load_config("llava-1.5-7b")
    assert len(list(missing(config, None, None))) == 2
    folder, data = tmp_path / "folder", tmp_path / "rows.json"
    assert "does not exist" in next(missing(config, data, folder))
    folder.mkdir()
    data.write_text("[{}, {}]")
    assert num_data_rows(data) == 2
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    (found,) = (one for one in missing(config, data, folder) if "how a picture becomes" in one)
    assert found.startswith(str(folder / "preprocessor_config.json"))
    (folder / "preprocessor_config.json").touch()
    for name in ("config.json", "tokenizer.json", "model-1.safetensors"):
        (folder / name).touch()
    assert list(missing(config, data, folder)) == [f"{folder / 'model-2.safetensors'}: a shard"]
    index.unlink()
    (folder / "model-1.safetensors").unlink()
    assert list(missing(config, data, folder)) == [
        f"{folder}: no file of weights ends in .safetensors"
    ]


def test_the_command_prints_it_without_weights_or_data(tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n\n{}\n{}\n")
    words = ["plan", "--config", "llava-1.5-7b", "--chips", "8", "--data", str(data)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "7,063,427,072, of which 6,759,919,616 are trained" in said
    assert "3 in the data, 128 sequences in an update" in said
    assert "262,144 in an update, 1,362,624,512 in all" in said
    assert f"{data}, 10 bytes" in said
    assert "missing       the checkpoint from which all members start (--init)" in said
    assert all(line in said for line in UNKNOWN["llava-1.5-7b"])
    assert "adapters" not in said
    assert cli.main(["plan", "--config", "llava-1.5-7b", "--chips", "3"]) == 2
    targets = 'lora.targets=["layers_*/mlp"]'
    assert cli.main(["plan", "--config", "tiny", "--set", *LORA, targets]) == 0
    assert "adapters      2,688 parameters, of rank 4" in capsys.readouterr().out
