"""Our own records, one value of them changed: read, or refused by name, never a traceback."""

import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfm_jax.data.manifest import read_manifest
from dfm_jax.data.processors import PictureProcessor
from dfm_jax.json_types import as_type, from_json
from dfm_jax.launch import Row, experts_of, read_summary, write_summary
from dfm_jax.models.multimodal import VisionConfig
from dfm_jax.training import digests
from dfm_jax.training.checkpoint import read_record, write_checkpoint
from dfm_jax.training.config import (
    PicturesConfig,
    TrainConfig,
    check_objective,
    multimodal_config,
    to_json,
)
from dfm_jax.training.ensemble import make_ensemble, read_ensemble, write_ensemble
from dfm_jax.training.members import read_member, write_member
from dfm_jax.training.metrics import MetricsLog, read_metrics
from dfm_jax.training.presets import PRESETS, load_config
from dfm_jax.training.sweep import read_results

CONFIG = to_json(PRESETS["tiny"])
DATA = {
    "tokenizer": "bytes",
    **{f"{side}_{what}": 3 for side in ("train", "held_out") for what in ("documents", "tokens")},
    **{f"{side}_sha256": "0" for side in ("train", "held_out")},
}
ODD = (None, "x", [None], {"a": None}, True, -1, 0)


def changed(value: Any) -> Iterator[Any]:
    """Copies of a value of JSON with one entry changed or taken away."""
    for path in places(value):
        for odd in ODD:
            one = copy.deepcopy(value)
            *outer, last = path
            place = one
            for name in outer:
                place = place[name]
            place[last] = odd
            yield one
        if isinstance(place, dict):
            del place[last]
            yield one
    yield from ODD


def places(value: Any, before: tuple = ()) -> Iterator[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for name, entry in inner:
        yield (*before, name)
        if isinstance(entry, dict | list):
            yield from places(entry, (*before, name))


def of_member(folder: Path) -> tuple[Path, Callable]:
    folder.mkdir()
    write_member(folder, {"config": CONFIG, "data": DATA}, folder)
    return folder / "config.json", lambda: read_member(folder)


def of_checkpoint(folder: Path) -> tuple[Path, Callable]:
    config = {"config": CONFIG, "data": DATA}
    write_checkpoint(folder / "expert_000" / "5", {"w": np.ones(2)}, step=5, config=config)
    step = folder / "expert_000" / "5"

    def read() -> None:
        (step / digests.SUMS).unlink()
        digests.seal_folder(step)
        read_record(step)
        make_ensemble(folder)
        make_ensemble(folder, best=True)

    return step / "checkpoint.json", read


def of_ensemble(folder: Path) -> tuple[Path, Callable]:
    of_checkpoint(folder)
    path = folder / "ensemble.json"
    write_ensemble(path, make_ensemble(folder))
    return path, lambda: read_ensemble(path)


def of_launch(folder: Path) -> tuple[Path, Callable]:
    folder.mkdir()
    return write_summary(folder, [Row("a", "failed", 1, 2.0, 3, "")]), lambda: read_summary(folder)


def of_sweep(folder: Path) -> tuple[Path, Callable]:
    row = {"config": CONFIG, "step": 5, "finished": True, "validation": 2.0}
    row |= {"measure": "exact", "standard_error": None}
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps([row]))
    return folder / "sweep.json", lambda: read_results(folder)


def of_log(folder: Path) -> tuple[Path, Callable]:
    folder.mkdir()
    path = folder / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}')

    def read() -> None:
        log = MetricsLog(path)
        log.begin(5)
        log.close()
        read_metrics(path)

    return path, read


def of_partition(folder: Path) -> tuple[Path, Callable]:
    folder.mkdir()
    made = {"settings": {"a": 1}, "inputs": {"b": "c"}, "files": {"d": "e"}, "sizes": [2, 3]}
    (folder / "manifest.json").write_text(json.dumps(made))

    def read() -> None:
        found = read_manifest(folder)
        assert found is None or isinstance(found["files"], dict)
        experts_of(folder)

    return folder / "manifest.json", read


def of_config(folder: Path) -> tuple[Path, Callable]:
    folder.mkdir()
    (folder / "mine.json").write_text(json.dumps(CONFIG))
    return folder / "mine.json", lambda: load_config(str(folder / "mine.json"))


KINDS = (of_member, of_ensemble, of_launch, of_sweep, of_log, of_partition, of_config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_record_with_one_value_changed_is_read_or_refused(kind, tmp_path):
    path, read = kind(tmp_path / "folder")
    good, refused = json.loads(path.read_text()), 0
    read()
    for value in changed(good):
        path.write_text(json.dumps(value) + "\n")
        try:
            read()
        except ValueError:
            refused += 1
    assert refused > 0


def test_a_checkpoint_record_with_one_value_changed_is_read_or_refused(tmp_path):
    """Sealed anew each time; a value of the config may be another run's."""
    path, read = of_checkpoint(tmp_path)
    read_only = json.loads(path.read_text())
    read_only["metrics"] = {"validation": 1.0}
    path.write_text(json.dumps(read_only))
    read()
    read_only["config"] = {"config": {"num_steps": 5}, "data": {"train_tokens": 3}}
    for value in changed(read_only):
        path.write_text(json.dumps(value))
        with contextlib.suppress(ValueError):
            read()


def test_types_are_exact_and_named():
    assert as_type(dict[str, float], {"a": 1}, "x") == {"a": 1.0}
    for hint, value in ((int, True), (int, 1.0), (float, "1"), (list[int], "ab"), (bool, 1)):
        with pytest.raises(ValueError, match="`x` must be"):
            as_type(hint, value, "x")
    with pytest.raises(ValueError, match=r"`config\.seed` must be of type int"):
        from_json(TrainConfig, {"seed": None})
    with pytest.raises(ValueError, match="`x` must be a number that a float can hold"):
        as_type(float, 10**400, "x")


def test_a_record_names_later_fields_of_a_model_only_where_they_are_set():
    """So a run that was begun before there were such fields goes on."""
    config = PRESETS["tiny"]
    later = {"head_width": 24, "qkv_bias": True, "qk_norm": True}
    later |= {"rope_scaling": (8.0, 1.0, 4.0, 8192.0)}
    assert not to_json(config)["model"].keys() & later.keys()
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, **later))
    values = json.loads(json.dumps(to_json(changed)))
    assert values == to_json(changed)
    assert from_json(TrainConfig, values) == changed


PICTURES = PicturesConfig(
    vision=VisionConfig(
        image_size=8, patch_size=4, width=8, num_layers=2, num_heads=2, ffn_width=8, drop_path=0.1
    ),
    processor=PictureProcessor(size=8, fit="pad", mean=(0.5, 0.4, 0.3)),
    image_token=3,
    reduction="square",
)


def test_a_config_with_pictures_goes_to_json_and_back(tmp_path):
    config = PRESETS["tiny"]
    assert "pictures" not in to_json(config)
    seen = dataclasses.replace(config, pictures=PICTURES)
    values = json.loads(json.dumps(to_json(seen)))
    assert values == to_json(seen)
    assert from_json(TrainConfig, values) == seen
    assert values["pictures"]["processor"]["mean"] == [0.5, 0.4, 0.3]
    network = multimodal_config(seen)
    assert (network.text, network.vision) == (seen.model, PICTURES.vision)
    path = tmp_path / "seen.json"
    path.write_text(json.dumps(values))
    changed = load_config(str(path), ["pictures.max_pictures=4", "pictures.vision.drop_path=0"])
    assert changed.pictures is not None
    assert (changed.pictures.max_pictures, changed.pictures.vision.drop_path) == (4, 0.0)


def test_pictures_that_no_network_can_read_are_refused():
    config = PRESETS["tiny"]
    with pytest.raises(ValueError, match=r"`processor\.size` must be `vision\.image_size`"):
        dataclasses.replace(PICTURES, processor=PictureProcessor(size=9))
    with pytest.raises(ValueError, match="`template` must be one of llava"):
        dataclasses.replace(PICTURES, template="llava")
    with pytest.raises(ValueError, match="`reduction` must be one of token, square"):
        dataclasses.replace(PICTURES, reduction="mean")
    with pytest.raises(ValueError, match="`max_pictures` must lie in"):
        dataclasses.replace(PICTURES, max_pictures=0)
    far = dataclasses.replace(config, pictures=dataclasses.replace(PICTURES, image_token=300))
    with pytest.raises(ValueError, match="`image_token`"):
        check_objective(far)
    masked = dataclasses.replace(config, pictures=PICTURES, objective="masked")
    with pytest.raises(ValueError, match="`objective` must be autoregressive if `pictures`"):
        check_objective(masked)
    with pytest.raises(ValueError, match="`pictures` must be given"):
        multimodal_config(config)
