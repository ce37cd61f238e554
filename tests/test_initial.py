"""Runs that start from a Hugging Face folder: every member from the same parameters."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from parity import families_fixture
from safetensors.numpy import save_file

from dfm_jax import cli
from dfm_jax.data.processors import processor_settings
from dfm_jax.models import TransformerConfig, transformer
from dfm_jax.models.pretrained import checkpoint_params, open_folder, write_folder
from dfm_jax.models.pretrained.tokenizer import read_tokenizer_json
from dfm_jax.training.batches import Batch
from dfm_jax.training.config import LogConfig, OptimizerConfig, TrainConfig, from_json, to_json
from dfm_jax.training.digests import CheckpointError, named_leaves
from dfm_jax.training.distributed import over_all_devices
from dfm_jax.training.evaluation import load_member
from dfm_jax.training.fit import make_run
from dfm_jax.training.losses import next_token_losses
from dfm_jax.training.members import check_member, identity_of, load_member_data, read_member
from dfm_jax.training.presets import PRESETS, load_config, with_freeze
from dfm_jax.training.pretrained import initial_params, network_of, tensors_digest, with_network_of
from dfm_jax.training.state import frozen, init_state, make_optimizer
from dfm_jax.training.step import make_train_step
from experiments.lib.corpora import write_texts

MODEL = TransformerConfig(
    num_tokens=264, width=8, num_layers=2, num_heads=2, num_kv_heads=1, ffn_width=8, qkv_bias=True
)
KINDS = json.loads(families_fixture.FIXTURE.read_text())["kinds"]
SET = ("--set", "num_steps=4", "num_positions=16", "batch_size=8", "ema_decay=0.5")


def byte_level(path: Path) -> Path:
    """A tokenizer.json of the 256 bytes: fewer tokens than the network has rows."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(path))
    return path


GENERATION = {"eos_token_id": [7, 9], "temperature": 0.7}


def saved(path: Path, seed: int = 0, **options) -> Path:
    params = transformer(MODEL).init(jax.random.key(seed))
    tokenizer = read_tokenizer_json(byte_level(path.with_suffix(".json")))
    return write_folder(path, MODEL, params, tokenizer=tokenizer, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = saved(tmp_path_factory.mktemp("checkpoint") / "qwen")
    (path / "generation_config.json").write_text(json.dumps(GENERATION))
    (path / "chat_template.jinja").write_text("{{ messages }}")
    settings = json.loads((path / "config.json").read_text()) | {"eos_token_id": [7, 9]}
    (path / "config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Documents, and the same assigned to two experts."""
    root = tmp_path_factory.mktemp("data")
    write_texts(root / "all")
    for number, path in enumerate(sorted((root / "all").iterdir())):
        part = root / "parts" / f"expert_{number % 2:03d}"
        part.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, part)
    return root


def config_of(folder: Path) -> TrainConfig:
    return load_config("tiny", SET[1:], init=open_folder(folder))


def assert_equal(tree, other) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), tree, other)


def train(run: Path, data: Path, *words: str) -> int:
    return cli.main(
        ["train", "--config", "tiny", "--run", str(run), "--data", str(data), *SET, *words]
    )


def test_a_preset_takes_the_network_and_keeps_how_it_is_computed(folder):
    init = open_folder(folder)
    config = load_config("medium", init=init)
    assert config.model == dataclasses.replace(MODEL, compute_dtype="bfloat16")
    changed = load_config("tiny", ["model.scan_layers=true"], init=init)
    assert changed.model == dataclasses.replace(MODEL, scan_layers=True)


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [False, True])
def test_each_run_starts_from_the_checkpoint_and_may_donate_its_state(scanned, folder, data):
    config = load_config(
        "tiny", [*SET[1:], f"model.scan_layers={str(scanned).lower()}"], init=open_folder(folder)
    )
    initial = initial_params(config, open_folder(folder))
    tokens = load_member_data(data / "all", config, folder / "tokenizer.json", padded=True)
    expected = checkpoint_params(open_folder(folder)._replace(config=config.model))
    for layout in (None, None, over_all_devices("sharded"), over_all_devices("replicated")):
        run = make_run(config, tokens, LogConfig(), layout, initial=initial)
        state = run.init()
        assert_equal(state.params, expected)
        assert_equal(state.ema, expected)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
            lambda x: (x.shape, x.dtype), run.template
        )
        moved, _ = run.update(state, 0)
        assert not np.array_equal(moved.params["norm"]["scale"], expected["norm"]["scale"])


@pytest.fixture(scope="module")
def run(folder, data, tmp_path_factory) -> Path:
    """A dense model and two experts from one folder; the average of their parameters is kept."""
    run = tmp_path_factory.mktemp("runs") / "run"
    words = ("--init", str(folder))
    assert train(run, data / "all", *words) == 0
    for expert in "01":
        assert train(run, data / "parts", "--expert", expert, *words) == 0
    return run


@pytest.mark.slow
def test_the_command_trains_all_variants_from_one_folder(run, folder, data, tmp_path, capsys):
    words = ("--init", str(folder))
    digest = tensors_digest(open_folder(folder))
    members = [read_member(run / name) for name in ("dense", "expert_000", "expert_001")]
    assert [member["init"] for member in members] == [digest] * 3
    assert members[0]["init_source"] == str(folder)
    assert members[0]["config"]["model"]["num_tokens"] == MODEL.num_tokens
    assert train(run, data / "all", *words) == 0
    assert "finished already" in capsys.readouterr().out
    where = ("--tokenizer", str(folder / "tokenizer.json"))
    assert cli.main(["make-ensemble", "--run", str(run)]) == 0
    assert cli.main(["evaluate", "--run", str(run), *where]) == 0
    assert capsys.readouterr().out.count("exact") == 4
    asked = ["--prompt", "In", "--max-new", "4", "--ids", *where]
    assert cli.main(["sample", "--run", str(run), *asked]) == 0
    assert cli.main(["sample", "--run", str(run), "--expert", "dense", *asked]) == 0
    capsys.readouterr()
    # Another checkpoint of the same sizes, and none.
    other = saved(tmp_path / "other", seed=1)
    assert train(run, data / "all", "--init", str(other)) == 2
    assert f"`init` must be {digest!r}, as in the run of this folder; got init = 'sha256:" in (
        said := capsys.readouterr().err
    )
    assert len(said.splitlines()) == 1
    drawn = identity_of(members[0])
    del drawn["init"]
    with pytest.raises(
        CheckpointError, match=f"`init` must be '{digest}', .*; got init = 'absent'"
    ):
        check_member(run / "dense", drawn)
    config = str(run / "dense" / "config.json")
    given = ["--config", config, "--run", str(run), "--data", str(data / "all")]
    assert cli.main(["train", *given, "--init", str(folder)]) == 0
    assert cli.main(["train", *given]) == 2
    assert "`model.num_tokens` must be 256, as in the tokenizer" in capsys.readouterr().err


@pytest.mark.slow
def test_a_member_is_written_with_what_stands_beside_the_weights(run, folder, tmp_path, capsys):
    words = ["export", "--run", str(run)]
    assert cli.main([*words, "--expert", "1", "--out", str(tmp_path / "one")]) == 0
    assert cli.main([*words, "--expert", "dense", "--out", str(tmp_path / "dense")]) == 0
    for name, member in (("one", "expert_001"), ("dense", "dense")):
        checkpoint = open_folder(tmp_path / name)
        assert_equal(checkpoint_params(checkpoint), load_member(run / member).state.ema)
        assert checkpoint.config == open_folder(folder).config
        assert checkpoint.generation == GENERATION
        assert checkpoint.token_ids["eos_token_id"] == [7, 9]
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert (tmp_path / name / file).read_bytes() == (folder / file).read_bytes()
    assert tensors_digest(open_folder(tmp_path / "one")) != tensors_digest(
        open_folder(tmp_path / "dense")
    )
    assert cli.main([*words, "--expert", "1", "--out", str(tmp_path / "one")]) == 2
    assert "must not exist yet" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_drawn_parameters_is_recorded_as_before(data, tmp_path, capsys):
    assert train(tmp_path, data / "all") == 0
    record = read_member(tmp_path / "dense")
    assert set(record) == {"config", "data", "source", "versions"}
    with pytest.raises(CheckpointError, match=r"`init` must be 'absent', .* = 'sha256:0'"):
        check_member(tmp_path / "dense", identity_of(record) | {"init": "sha256:0"})
    assert set(json.loads((tmp_path / "dense" / "config.json").read_text())) == {
        *("config", "data", "source", "versions")
    }
    words = ["export", "--run", str(tmp_path), "--expert", "dense", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2  # a mask stands before its texts
    assert "`num_states` must be V = 256, because Llama has no mask" in capsys.readouterr().err


def test_the_digest_is_of_the_numbers_and_not_of_the_files(folder, tmp_path):
    digest = tensors_digest(open_folder(folder))
    parts = saved(tmp_path / "parts", max_part_bytes=1000)
    assert len(list(parts.glob("*.safetensors"))) > 1
    assert tensors_digest(open_folder(parts)) == digest
    assert tensors_digest(open_folder(saved(tmp_path / "other", seed=1))) != digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 16}, r"`model.width` must be 8, as in .*; got model.width = 16"),
        ({"num_kv_heads": None}, r"`model.num_kv_heads` must be 1, as in .*; got .* = 2"),
        ({"qkv_bias": False}, r"`model.qkv_bias` must be True, as in .*; got .* = False"),
        ({"num_states": 265}, r"`model.num_states` must be 264, as in .*; got .* = 265"),
        ({"rope_base": 5.0}, r"`model.rope_base` must be 10000.0, as in .*; got .* = 5.0"),
    ],
)
def test_another_network_is_refused_by_its_field(change, message, folder):
    config = config_of(folder)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **change))
    with pytest.raises(ValueError, match=message):
        initial_params(config, open_folder(folder))


def test_a_task_of_ones_own_takes_a_checkpoint_of_its_leaves(folder):
    config = dataclasses.replace(config_of(folder), task="test_initial:same")
    initial = initial_params(config, open_folder(folder))
    assert_equal(initial.read(None), checkpoint_params(open_folder(folder)))
    with pytest.raises(ValueError, match=r"The network of .* must hold the tensors .*missing"):
        initial_params(
            dataclasses.replace(config, task="test_initial:another"), open_folder(folder)
        )


def same(config):
    from dfm_jax.training.tasks import next_token_task

    return next_token_task(transformer(MODEL), num_tokens=MODEL.num_tokens)


def another(config):
    from dfm_jax.training.tasks import next_token_task

    network = transformer(dataclasses.replace(MODEL, num_layers=3))
    return next_token_task(network, num_tokens=MODEL.num_tokens)


def test_a_folder_without_a_shard_is_refused(data, tmp_path, capsys):
    parts = saved(tmp_path / "parts", max_part_bytes=1000)
    sorted(parts.glob("*.safetensors"))[-1].unlink()
    assert train(tmp_path / "run", data / "all", "--init", str(parts)) == 2
    captured = capsys.readouterr().err
    assert "that holds model-0" in captured
    assert len(captured.splitlines()) == 1
    assert not (tmp_path / "run").exists()


# ── parts that are not trained ──────────────────────────────────────────────────────────────────

FREEZE = ("layers_*/mlp", "embed_tokens")


def after_three_steps(freeze, ema_decay=0.5):
    """(the state before, the state after, the metrics of each update)"""
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0, max_norm=0.01), 3)
    network = transformer(MODEL)
    options = {"num_micro_batches": 2, "ema_decay": ema_decay, "freeze": freeze}
    step = jax.jit(make_train_step(next_token_losses(network, start=None), optimizer, **options))
    first = state = init_state(jax.random.key(0), network, optimizer, ema=True, freeze=freeze)
    rows = []
    for s in range(3):
        tokens = jax.random.randint(jax.random.key(s), (4, 6), 0, MODEL.num_tokens)
        batch = Batch(np.asarray(tokens, np.int32), np.ones((4, 6), bool))
        state, metrics = step(state, batch, jax.random.key(s))
        rows.append(metrics)
    return first, state, rows


@pytest.mark.slow
def test_what_is_frozen_stays_to_the_bit_and_has_no_moments():
    first, last, metrics = after_three_steps(FREEZE)
    stays = frozen(first.params, FREEZE)
    assert {name for name, still in named_leaves(stays) if still} == {
        "embed_tokens/embedding",
        *(f"layers_{i}/mlp/{name}_proj/kernel" for i in (0, 1) for name in ("up", "gate", "down")),
    }
    for now in (last.params, last.ema):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), first.params, now)
        assert same == stays
    moments = [name for name, _ in named_leaves(last.optimizer)]
    assert not [name for name in moments if "mlp" in name or "embed" in name]
    assert len([name for name in moments if "q_proj/kernel" in name]) == 4  # 2 layers, 2 moments
    # The norm that clips is that of what is trained.
    whole = after_three_steps(())[2]
    assert metrics[0].loss == whole[0].loss
    assert 0 < metrics[0].gradient_norm < 0.9 * whole[0].gradient_norm


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("vision_tower",), r"which has embed_tokens, layers_0, layers_1, norm; got freeze = 'vi"),
        (("layers_0", "mlp"), r"`freeze` must name parts of the network, .* got freeze = 'mlp'"),
        (("layers",), r"`freeze` must name parts of the network, .* got freeze = 'layers'"),
        (("layers_*", "embed_tokens", "norm"), "`freeze` must leave a part of the network that is"),
    ],
)
def test_what_cannot_be_frozen_is_refused(freeze, message, folder, data):
    config = config_of(folder)
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, freeze=freeze)
    )
    tokens = load_member_data(data / "all", config, folder / "tokenizer.json", padded=True)
    with pytest.raises(ValueError, match=message):
        make_run(config, tokens, LogConfig())


def test_a_config_names_what_is_frozen_only_if_something_is():
    plain = load_config("tiny")
    assert "freeze" not in to_json(plain)["optimizer"]
    frozen_too = load_config("tiny", with_freeze((), FREEZE))
    assert frozen_too.optimizer.freeze == FREEZE
    assert to_json(frozen_too)["optimizer"]["freeze"] == list(FREEZE)
    assert from_json(TrainConfig, to_json(frozen_too)) == frozen_too


# ── networks that read pictures ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_a_preset_of_pictures_takes_tower_and_projector_too(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(KINDS[name]["config"]))
    save_file(families_fixture.weights(KINDS[name]["shapes"]), folder / "model.safetensors")
    preset = PRESETS[{"llava": "llava-1.5-7b", "internvl": "internvl2.5-1b"}[name]]
    size = open_folder(folder).config.vision.image_size
    with pytest.raises(ValueError, match=rf"`processor.size` must be .*, which is {size}"):
        with_network_of(preset, open_folder(folder))
    settings = processor_settings(dataclasses.replace(preset.pictures.processor, size=size))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    checkpoint = open_folder(folder)
    config = with_network_of(preset, checkpoint)
    assert config.pictures.template == preset.pictures.template
    assert config.model.remat == preset.model.remat
    read = initial_params(config, checkpoint).read(None)
    like = checkpoint._replace(config=network_of(config))
    assert_equal(read, checkpoint_params(like))
    layer = -1 - (config.pictures.feature_layer == -1)
    other = dataclasses.replace(config.pictures, feature_layer=layer)
    with pytest.raises(ValueError, match=r"`pictures.feature_layer` must be -\d, as in"):
        initial_params(dataclasses.replace(config, pictures=other), checkpoint)
    with pytest.raises(ValueError, match=r"must hold a text model, .* got model_type = "):
        load_config("tiny", init=checkpoint)
