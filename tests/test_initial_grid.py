"""Grids whose runs all start from one Hugging Face folder, with frozen parts and with adapters."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_initial import assert_equal, config_of, data, saved  # noqa: F401  `data` is a fixture

from dfm_jax import cli
from dfm_jax.models.pretrained import checkpoint_params, open_folder
from dfm_jax.parallel import make_mesh
from dfm_jax.training.config import LogConfig, OptimizerConfig
from dfm_jax.training.digests import CheckpointError
from dfm_jax.training.fit import make_run
from dfm_jax.training.members import load_member_data
from dfm_jax.training.pretrained import initial_params, tensors_digest
from dfm_jax.training.sweep import grid, make_sweep, train_sweep

FREEZE = ("embed_tokens", "layers_*/mlp")
AXES = {"seed": (0, 1), "optimizer.learning_rate": (1e-2, 3e-2)}
SET = ("num_steps=3", "num_positions=16", "batch_size=8", "optimizer.warmup_steps=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("checkpoint") / "qwen")


@pytest.fixture(scope="module")
def cells(folder, data):  # noqa: F811
    """The configs of a grid, their data, and the parameters from which all of them start."""
    optimizer = OptimizerConfig(warmup_steps=0, freeze=FREEZE)
    config = dataclasses.replace(config_of(folder), optimizer=optimizer, ema_decay=None)
    tokens = load_member_data(data / "all", config, folder / "tokenizer.json", padded=True)
    return grid(config, AXES), tokens, initial_params(config, open_folder(folder))


@pytest.mark.slow
def test_every_cell_starts_from_the_folder_and_is_the_run_by_itself(cells, folder):
    configs, tokens, initial = cells
    base = checkpoint_params(open_folder(folder))
    run, _ = make_sweep(configs, tokens, LogConfig(), make_mesh(3), initial=initial)
    state = run.init()
    for number in range(len(configs)):
        assert_equal(jax.tree.map(lambda leaf, n=number: leaf[n], state.params), base)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), run.template
    )
    state, _ = run.update(state, 0)
    state, _ = run.update(state, 1)
    found = jax.device_get(state.params)
    for number, config in enumerate(configs):
        alone = make_run(config, tokens, LogConfig(), initial=initial)
        one, _ = alone.update(alone.init(), 0)
        one, _ = alone.update(one, 1)
        for path, leaf in jax.tree_util.tree_leaves_with_path(one.params):
            cell = found
            for part in path:
                cell = cell[part.key]
            np.testing.assert_allclose(cell[number], leaf, rtol=1e-4, atol=1e-5)
            first = base
            for part in path:
                first = first[part.key]
            still = path[0].key == "embed_tokens" or path[1].key == "mlp"
            assert np.array_equal(cell[number], first) == still, path
    q = found["layers_0"]["self_attn"]["q_proj"]["kernel"]
    assert len({cell.tobytes() for cell in q}) == len(configs)


@pytest.mark.slow
def test_a_grid_goes_on_from_its_own_folder_alone(cells, folder, tmp_path):
    configs, tokens, initial = cells
    mesh, told = make_mesh(1), LogConfig(save_every=2)
    assert train_sweep(configs, tokens, tmp_path, mesh, log_config=told, initial=initial).finished
    kept = json.loads((tmp_path / "4" / "checkpoint.json").read_text())
    assert kept["config"]["init"] == tensors_digest(open_folder(folder))
    again = train_sweep(configs, tokens, tmp_path, mesh, log_config=told, initial=initial)
    assert (again.began_at, again.finished) == (4, True)
    for other in (None, initial._replace(digest="sha256:0")):
        with pytest.raises(CheckpointError, match=f"; got init = '{initial.digest}'"):
            train_sweep(configs, tokens, tmp_path, mesh, log_config=told, initial=other)


@pytest.mark.slow
def test_the_commands(folder, data, tmp_path, capsys):  # noqa: F811
    """`sweep` by itself, and as `launch` starts it; groups differ in the rank of adapters."""
    words = ["--config", "tiny", "--data", str(data / "all")]
    words += ["--grid", "seed=0:2", "lora.rank=1,2", "--freeze", "layers_*/mlp"]
    words += ["--set", *SET, 'lora.targets=["layers_*/self_attn"]']
    run, init = tmp_path / "sweep", ["--init", str(folder)]
    assert cli.main(["sweep", *words, *init, "--devices", "1", "--run", str(run)]) == 0
    assert capsys.readouterr().out.count("2 runs, one program") == 2
    launched = tmp_path / "launched"
    assert cli.main(["launch", "local", *words, *init, "--run", str(launched)]) == 0
    digest = tensors_digest(open_folder(folder))
    for group in ("group_000", "group_001"):
        found = [
            json.loads((at / group / "3" / "checkpoint.json").read_text()) for at in (run, launched)
        ]
        assert found[0]["config"] == found[1]["config"]
        assert found[0]["config"]["init"] == digest
        still = [
            {name: leaf["sha256"] for name, leaf in one["leaves"].items() if "mlp" in name}
            for one in found
        ]
        assert still[0] == still[1]
        assert still[0]
        config = found[0]["config"]["configs"][1]
        assert config["lora"]["rank"] == 1 + int(group[-1])
        assert config["optimizer"]["freeze"] == ["layers_*/mlp"]
    init = ["--init", str(saved(tmp_path / "other", seed=1))]
    assert cli.main(["sweep", *words, *init, "--devices", "1", "--run", str(run)]) == 2
    assert f"as in the config of this run; got init = {digest!r}" in capsys.readouterr().err


def test_a_grid_of_another_network_is_refused_before_it_begins(folder, data, tmp_path, capsys):  # noqa: F811
    words = ["sweep", "--config", "tiny", "--data", str(data / "all"), "--init", str(folder)]
    words += ["--run", str(tmp_path / "run"), "--grid", "model.num_layers=2,3"]
    assert cli.main(words) == 2
    assert "`model.num_layers` must be 2, as in" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
