"""The configs of the paper's systems: every number that the paper and the public files give."""

import json
import subprocess
import sys

import pytest

from dfm_jax.models.multimodal import SYSTEMS
from dfm_jax.training.config import TrainConfig, from_json, multimodal_config, to_json
from dfm_jax.training.presets import PRESETS, UNKNOWN, load_config


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_preset_trains_the_network_of_its_system(name):
    config = load_config(name)
    assert multimodal_config(config) == SYSTEMS[name]
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config
    assert set(UNKNOWN) == {key for key in PRESETS if PRESETS[key].pictures is not None}


def test_llava_is_trained_as_its_public_second_stage_says():
    config, optimizer = PRESETS["llava-1.5-7b"], PRESETS["llava-1.5-7b"].optimizer
    rows = 665_298
    assert config.num_steps == -(-rows // config.batch_size)
    assert (config.batch_size, config.num_positions) == (128, 2048)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (2e-5, 0.0)
    assert optimizer.warmup_steps == -(-config.num_steps * 3 // 100)
    assert optimizer.freeze == ("vision_tower",)
    assert (config.pictures.processor.fit, config.pictures.reduction) == ("pad", "token")


def test_internvl_is_trained_as_the_paper_says():
    config, optimizer = PRESETS["internvl2.5-1b"], PRESETS["internvl2.5-1b"].optimizer
    pictures = config.pictures
    assert (config.num_steps, config.batch_size, config.num_positions) == (858, 2 * 1 * 6, 8192)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (4e-5, 0.05)
    assert (optimizer.final_fraction, optimizer.warmup_steps) == (0.0, -(-858 * 3 // 100))
    assert (pictures.max_pictures, pictures.packed, pictures.reduction) == (24, True, "square")
    assert pictures.vision.drop_path == 0.1
    assert (pictures.processor.size, pictures.processor.fit) == (448, "stretch")


def test_a_tokenizer_does_not_take_rows_from_a_checkpoint_that_reads_pictures(tmp_path):
    config = load_config("internvl2.5-1b", tokenizer=tmp_path / "not_read.json")
    assert config.model.num_tokens == 151_674


@pytest.mark.slow
def test_what_a_command_imports_leaves_the_devices_alone():
    """Else several processes could not become one run, which must be said before any device."""
    code = (
        "import dfm_jax.training.presets, dfm_jax.training.fit, dfm_jax.cli; "
        "from jax._src import xla_bridge; print(len(xla_bridge._backends))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
