"""Runs with adapters of low rank, by the commands: from a folder, stopped, judged, written back."""

import json

import jax
import numpy as np
import pytest
from test_initial import MODEL, assert_equal, data, saved  # noqa: F401  `data` is a fixture
from test_lora import without

from dfm_jax import cli
from dfm_jax.models import transformer
from dfm_jax.models.lora import merged, scaled
from dfm_jax.models.pretrained import checkpoint_params, open_folder
from dfm_jax.training.checkpoint import read_checkpoint
from dfm_jax.training.config import TrainConfig, from_json
from dfm_jax.training.evaluation import load_member
from dfm_jax.training.members import identity_of, read_member, state_template
from dfm_jax.training.pretrained import tensors_digest

pytestmark = pytest.mark.slow  # whole runs

LORA = ("lora.rank=2", "lora.alpha=4", 'lora.targets=["layers_*"]', 'lora.train=["norm"]')
SET = ("num_positions=16", "batch_size=8", "ema_decay=0.5", "optimizer.warmup_steps=0")
SET += ("optimizer.learning_rate=0.01", *LORA)
STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("checkpoint") / "qwen")


def train(run, texts, folder, *changes, steps=STEPS):
    words = ["train", "--config", "tiny", "--run", str(run), "--data", str(texts)]
    words += ["--init", str(folder), "--set", *SET, f"num_steps={steps}", *changes]
    return cli.main(words)


@pytest.fixture(scope="module")
def run(folder, data, tmp_path_factory):  # noqa: F811
    run = tmp_path_factory.mktemp("runs") / "run"
    assert train(run, data / "all", folder) == 0
    return run


def raw(run, step=STEPS):
    """The config and the state of a member as they are on the disk."""
    record = read_member(run / "dense")
    config = from_json(TrainConfig, record["config"])
    at = run / "dense" / str(step)
    return config, read_checkpoint(at, state_template(config), config=identity_of(record))


def digests(run) -> dict:
    record = json.loads((run / "dense" / str(STEPS) / "checkpoint.json").read_text())
    return {name: leaf["sha256"] for name, leaf in record["leaves"].items()}


def test_a_member_keeps_its_folder_and_is_read_as_an_ordinary_network(run, folder):
    config, state = raw(run)
    assert config.lora.rank == 2
    assert read_member(run / "dense")["init"] == tensors_digest(open_folder(folder))
    base, kept = checkpoint_params(open_folder(folder)), without(state.params)
    assert np.abs(kept.pop("norm")["scale"] - base.pop("norm")["scale"]).max() > 1e-3
    assert_equal(kept, base)
    trained = load_member(run / "dense")
    assert not trained.config.lora.adapts
    assert_equal(trained.state.params, merged(state.params, config.lora))
    assert_equal(trained.state.ema, merged(state.ema, config.lora))
    network, tokens = transformer(MODEL), np.arange(9)
    beside = network.apply(scaled(state.ema, config.lora), tokens)
    found = network.apply(trained.state.ema, tokens)
    np.testing.assert_allclose(found, beside, rtol=1e-4, atol=1e-5)
    assert np.abs(found - network.apply(checkpoint_params(open_folder(folder)), tokens)).max() > 0.1


def test_it_is_written_as_an_ordinary_folder(run, folder, tmp_path):
    out = tmp_path / "out"
    words = ["export", "--run", str(run), "--expert", "dense", "--out", str(out)]
    assert cli.main(words) == 0
    written, first = open_folder(out), open_folder(folder)
    assert written.shapes == first.shapes
    assert written.config == first.config
    assert_equal(checkpoint_params(written), load_member(run / "dense").state.ema)


def test_it_is_judged_draws_and_is_told_of(run, folder, capsys):
    where = ("--tokenizer", str(folder / "tokenizer.json"))
    assert cli.main(["evaluate", "--run", str(run), *where]) == 0
    assert capsys.readouterr().out.count("exact") == 1
    asked = ["--prompt", "In", "--max-new", "4", "--ids", *where]
    assert cli.main(["sample", "--run", str(run), "--expert", "dense", *asked]) == 0
    assert len(capsys.readouterr().out.split()) == 6
    assert cli.main(["status", "--run", str(run)]) == 0
    assert "dense" in capsys.readouterr().out


def test_it_goes_on_to_the_same_bits(run, folder, data, tmp_path, capsys):  # noqa: F811
    """Stopped after two updates; and with another rank it is another run."""
    end = f"optimizer.decay_steps={STEPS}"
    assert train(tmp_path, data / "all", folder, end, steps=2) == 0
    assert train(tmp_path, data / "all", folder, end) == 0
    whole = tmp_path / "whole"
    assert train(whole, data / "all", folder, end) == 0
    assert digests(tmp_path) == digests(whole)
    capsys.readouterr()
    others = [one.replace("rank=2", "rank=1") for one in (*SET, f"num_steps={STEPS}")]
    words = ["train", "--config", "tiny", "--run", str(run), "--data", str(data / "all")]
    assert cli.main([*words, "--init", str(folder), "--set", *others]) == 2
    assert "`config.lora.rank` must be 2, as in the run of this" in capsys.readouterr().err


def test_adapters_are_those_of_the_seed_however_the_network_begins(run, data, tmp_path):  # noqa: F811
    """Of a drawn network and of a folder's, at step 0: B is 0, and A the same."""
    from dfm_jax.training.config import LogConfig
    from dfm_jax.training.fit import make_run
    from dfm_jax.training.members import load_member_data
    from dfm_jax.training.pretrained import initial_params

    config, _ = raw(run)
    source = open_folder(read_member(run / "dense")["init_source"])
    tokens = load_member_data(data / "all", config, source.path / "tokenizer.json", padded=True)
    begun = [
        make_run(config, tokens, LogConfig(), initial=initial).init().params
        for initial in (None, initial_params(config, source))
    ]
    named = [dict(jax.tree_util.tree_leaves_with_path(params)) for params in begun]
    kinds = {path[-1].key for path in named[0]}
    assert {"lora_a", "lora_b", "kernel"} <= kinds
    for path, leaf in named[0].items():
        same = np.array_equal(leaf, named[1][path])
        assert same == (path[-1].key not in ("kernel", "embedding")), path
