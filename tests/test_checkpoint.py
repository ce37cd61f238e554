"""Checkpoints: what was written is what is read, or nothing is; any topology into any other."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dfm_jax.durable import TemporaryError
from dfm_jax.training import checkpoint
from dfm_jax.training.checkpoint import (
    Saver,
    best_step,
    checkpoint_steps,
    read_checkpoint,
    read_record,
    resume,
    sole_writer,
    write_checkpoint,
)
from dfm_jax.training.config import differences
from dfm_jax.training.digests import CheckpointError, DamagedError, seal_folder

CONFIG = {"seed": 1, "optimizer": {"rate": 0.5}}


class State(NamedTuple):
    step: Any
    params: Any
    key: Any
    none: Any


def state_of(value: float = 1.0) -> State:
    params = {
        "matrix": jnp.arange(32.0).reshape(8, 4) + value,
        "half": (jnp.arange(3.0) / 3, jnp.asarray([0.1, 1e30], jnp.bfloat16)),
        "counts": [jnp.arange(4, dtype=jnp.int32), jnp.array(True)],
    }
    return State(jnp.int32(7), params, jax.random.split(jax.random.key(3), 2), None)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert left.dtype == right.dtype
        if jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "7"
    write_checkpoint(path, state_of(), step=7, config=CONFIG, metrics={"validation": 2.0})
    return path


def test_named_tuples_bf16_and_typed_keys_come_back(written):
    template = jax.eval_shape(state_of)
    found = read_checkpoint(written, template, config=CONFIG)
    assert_same(found, state_of())
    assert isinstance(found, State)
    assert isinstance(found.params["half"], tuple)
    assert jax.random.bits(found.key[0]) == jax.random.bits(state_of().key[0])
    record = read_record(written)
    assert (record.step, record.config, record.metrics) == (7, CONFIG, {"validation": 2.0})


def test_sha256sum_judges_it_too(written):
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(command, cwd=written, capture_output=True).returncode == 0


def test_a_part_of_it_can_be_read(written):
    template = {"params": {"matrix": jax.ShapeDtypeStruct((8, 4), jnp.float32)}}
    found = read_checkpoint(written, template)
    np.testing.assert_array_equal(found["params"]["matrix"], state_of().params["matrix"])


def on(devices, shape, names, spec) -> NamedSharding:
    axes = (AxisType.Auto,) * len(names)
    return NamedSharding(Mesh(np.array(devices).reshape(shape), names, axis_types=axes), spec)


def test_eight_devices_to_one_to_four_by_two(tmp_path):
    devices = jax.devices()
    value = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    places = [
        on(devices, (8,), ("data",), PartitionSpec("data")),
        on(devices[:1], (1,), ("data",), PartitionSpec()),
        on(devices, (4, 2), ("expert", "data"), PartitionSpec("expert", "data")),
    ]
    state = {"w": jax.device_put(value, places[0])}
    for number, place in enumerate(places[1:]):
        write_checkpoint(tmp_path / str(number), state, step=number, config={})
        template = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=place)}
        state = read_checkpoint(tmp_path / str(number), template)
        assert state["w"].sharding == place
        np.testing.assert_array_equal(np.asarray(state["w"]), value)
    assert {shard.data.shape for shard in state["w"].addressable_shards} == {(2, 2)}
    keys = jax.random.split(jax.random.key(0), 8)
    write_checkpoint(tmp_path / "keys", {"k": keys}, step=1, config={})
    template = {"k": jax.ShapeDtypeStruct((8,), keys.dtype, sharding=places[0])}
    assert read_checkpoint(tmp_path / "keys", template)["k"].sharding.spec == PartitionSpec("data")


def test_twenty_flipped_bits_are_all_refused(written, tmp_path):
    """At random places of random files, SHA256SUMS among them; each alone, the file named."""
    random = np.random.default_rng(0)
    files = sorted(path for path in written.rglob("*") if path.is_file())
    sizes = np.array([path.stat().st_size for path in files])
    for _ in range(20):
        path = files[random.choice(len(files), p=sizes / sizes.sum())]
        good = path.read_bytes()
        bad = bytearray(good)
        bad[random.integers(len(bad))] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(bad))
        with pytest.raises(DamagedError, match=str(written)):
            read_checkpoint(written, state_of(), config=CONFIG)
        path.write_bytes(good)
    for bit in range(0, 8 * 64, 37):  # of the list itself
        path = written / "SHA256SUMS"
        good = path.read_bytes()
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(bad))
        with pytest.raises(DamagedError):
            read_checkpoint(written, state_of())
        path.write_bytes(good)
    assert_same(read_checkpoint(written, state_of()), state_of())


def test_arrays_are_judged_apart_from_files(written):
    """A leaf that differs from its record is refused though every file is as it was sealed."""
    path = written / "checkpoint.json"
    record = json.loads(path.read_text())
    record["leaves"]["params/matrix"]["sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    seal_folder(written)
    with pytest.raises(DamagedError, match="the SHA-256 of the leaf `params/matrix` must be"):
        read_checkpoint(written, state_of())


def test_orbax_alone_does_not_notice(tmp_path):
    """The trap that the digests are for: one flipped bit loads as another number, silently."""
    import orbax.checkpoint as ocp

    value = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    write_checkpoint(tmp_path / "1", {"w": value}, step=1, config={})
    path = max(tmp_path.rglob("d/*"), key=lambda path: path.stat().st_size)
    good, silent = path.read_bytes(), 0
    for place in range(1, 8):  # in a compressed file one bit may change several numbers
        bad = bytearray(good)
        bad[place * len(bad) // 8] ^= 16
        path.write_bytes(bytes(bad))
        kind = ocp.args.PyTreeRestore(restore_args={"w": ocp.RestoreArgs(restore_type=np.ndarray)})
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
            try:
                found = orbax.restore(tmp_path / "1" / "state", args=kind)["w"]
                silent += bool(np.any(found != value))
            except ValueError:
                continue  # it broke what decompresses
        with pytest.raises(DamagedError, match="is damaged"):
            read_checkpoint(tmp_path / "1", {"w": jax.ShapeDtypeStruct(value.shape, value.dtype)})
    assert silent > 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), "no checkpoint is there"),
        (
            lambda path: (path / "SHA256SUMS").unlink(),
            "SHA256SUMS is missing, because the checkpoint was",
        ),
        (lambda path: (path / "checkpoint.json").unlink(), "the file checkpoint.json is missing"),
        (
            lambda path: (path / "state" / "more").touch(),
            "must be listed in SHA256SUMS; got file = 'state/more'",
        ),
        (
            lambda path: truncate(path / "checkpoint.json"),
            r"SHA-256 of the file .* bytes",
        ),
        (lambda path: truncate(path / "SHA256SUMS"), "each line of SHA256SUMS must be"),
        (lambda path: (path / "SHA256SUMS").write_bytes(b""), "The list is damaged"),
    ],
)
def test_damage_is_named(written, damage, message):
    damage(written)
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(written, state_of())
    assert str(written) in str(error.value)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("template", "config", "message"),
    [
        (state_of(), {"seed": 2}, "`seed` of the checkpoint must be 2, .*; got seed = 1"),
        (
            state_of(),
            {"seed": 1, "optimizer": {"rate": 0.25}},
            "`optimizer.rate` of the checkpoint must be 0.25, .*; got optimizer.rate = 0.5",
        ),
        ({"other": jnp.ones(2)}, CONFIG, "does not hold the leaf `other`, which the template has"),
        (
            {"step": jnp.ones(2)},
            CONFIG,
            "the dtype of the leaf `step` must be float32; got dtype = int32",
        ),
        (
            {"params": {"matrix": jnp.ones((4, 8))}},
            CONFIG,
            r"must be \[4, 8\]; got shape = \[8, 4\]",
        ),
        (
            {"key": jax.random.split(jax.random.key(0, impl="rbg"), 2)},
            CONFIG,
            "must be rbg; got impl = threefry2x32",
        ),
        ({"step": jax.random.key(0)}, CONFIG, "must be threefry2x32; got impl = None"),
    ],
)
def test_another_run_is_refused_by_field_or_leaf(written, template, config, message):
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(written, template, config=config)
    assert not isinstance(error.value, DamagedError)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [jnp.ones(0)]}, r"The leaf `a/0` must hold an element; got a/0.shape = \(0,\)"),
        ({"a": 1.0}, "The leaf `a` must be an array; got a = 1.0"),
        ({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, "got 'a/b' twice"),
    ],
)
def test_what_orbax_would_choke_on_is_refused(tmp_path, state, message):
    with pytest.raises(ValueError, match=message):
        write_checkpoint(tmp_path / "1", state, step=1, config={})
    assert checkpoint_steps(tmp_path) == []


def test_a_checkpoint_is_never_written_over(written):
    with pytest.raises(ValueError, match="a checkpoint is never overwritten"):
        write_checkpoint(written, state_of(), step=7, config=CONFIG)


# ── in a thread, and kept ───────────────────────────────────────────────────────────────────────


def test_the_last_and_the_best_are_kept(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 1.0, 6: 4.0}
    with Saver(tmp_path, config={}, keep_last=2) as saver:
        for step, loss in losses.items():
            metrics = {} if loss is None else {"validation": loss}
            saver.save(step, {"w": jnp.full(2, float(step))}, metrics)
    assert checkpoint_steps(tmp_path) == [2, 5, 6]
    assert best_step(tmp_path) == 2
    assert not [thread for thread in threading.enumerate() if "checkpoint" in thread.name]
    found = read_checkpoint(tmp_path / "2", {"w": jnp.zeros(2)})
    np.testing.assert_array_equal(found["w"], [2.0, 2.0])


def test_what_is_best_is_said_by_records_that_are_verified(tmp_path):
    """One digit of a validation loss changed: no other step is taken in its place."""
    with Saver(tmp_path, config={}, keep_last=2) as saver:
        for step, loss in {1: 1.25, 2: 3.0}.items():
            saver.save(step, {"w": jnp.ones(2)}, {"validation": loss})
    record = tmp_path / "1" / "checkpoint.json"
    record.write_text(record.read_text().replace("1.25", "4.25"))
    with pytest.raises(DamagedError, match=r"1: the SHA-256 of the file checkpoint.json must be"):
        best_step(tmp_path)
    with Saver(tmp_path, config={}, keep_last=1) as saver:
        saver.save(3, {"w": jnp.ones(2)}, {"validation": 5.0})
    assert checkpoint_steps(tmp_path) == [1, 2, 3]  # 1 may have been the best: it is kept


def test_saving_does_not_wait_and_survives_donation(tmp_path, monkeypatch):
    """The thread is held until the state was given away and written over."""
    release, begun = threading.Event(), threading.Event()
    write = checkpoint.write_leaves

    def held(*args, **kwargs):
        begun.set()
        assert release.wait(30)
        return write(*args, **kwargs)

    monkeypatch.setattr("dfm_jax.training.checkpoint.write_leaves", held)
    move = jax.jit(lambda w: w * 0 - 1, donate_argnums=0)
    w = jnp.arange(1 << 16, dtype=jnp.float32)
    with Saver(tmp_path, config={}) as saver:
        saver.save(1, {"w": w}, {})
        assert begun.wait(30)
        assert checkpoint_steps(tmp_path) == []
        w = move(w)
        w.block_until_ready()
        release.set()
    found = read_checkpoint(tmp_path / "1", {"w": jax.eval_shape(lambda: w)})
    np.testing.assert_array_equal(found["w"], np.arange(1 << 16, dtype=np.float32))


def test_an_error_in_the_thread_is_raised_by_the_next_call(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("dfm_jax.training.checkpoint.write_leaves", full)
    saver = Saver(tmp_path, config={})
    saver.save(1, {"w": jnp.ones(2)}, {})
    with pytest.raises(OSError, match="no space left"):
        saver.save(2, {"w": jnp.ones(2)}, {})
    saver.__exit__(None)


def three(tmp_path):
    for step in (1, 2, 3):
        state = {"w": jnp.full(2, float(step))}
        write_checkpoint(tmp_path / str(step), state, step=step, config=CONFIG)


def test_a_damaged_last_checkpoint_is_named_set_aside_and_the_one_before_taken(tmp_path):
    three(tmp_path)
    truncate(tmp_path / "3" / "checkpoint.json")
    found = resume(tmp_path, {"w": jnp.zeros(2)}, CONFIG)
    assert found.step == 2
    np.testing.assert_array_equal(found.state["w"], [2.0, 2.0])
    (words,) = found.damaged
    assert "the SHA-256 of the file checkpoint.json must be" in words
    assert "set aside as 3.damaged" in words
    assert checkpoint_steps(tmp_path) == [1, 2]
    assert (tmp_path / "3.damaged" / "checkpoint.json").is_file()


def test_if_all_are_damaged_the_run_does_not_begin_anew(tmp_path):
    three(tmp_path)
    for step in "123":
        truncate(tmp_path / step / "SHA256SUMS")
    with pytest.raises(CheckpointError, match=r"no good checkpoint is left\. To begin anew"):
        resume(tmp_path, {"w": jnp.zeros(2)}, CONFIG)


def test_another_config_is_refused_and_nothing_older_is_tried(tmp_path):
    three(tmp_path)
    with pytest.raises(CheckpointError, match=r"/3: `seed` of the checkpoint must be 5"):
        resume(tmp_path, {"w": jnp.zeros(2)}, {**CONFIG, "seed": 5})
    assert checkpoint_steps(tmp_path) == [1, 2, 3]


def test_nothing_saved_is_nothing_to_resume(tmp_path):
    (tmp_path / "5.writing").mkdir()
    assert resume(tmp_path, {"w": jnp.zeros(2)}, CONFIG) is None


def test_one_writer_who_sweeps_up_after_a_killed_one(tmp_path):
    (tmp_path / "5.writing" / "state").mkdir(parents=True)
    (tmp_path / "4.deleting").mkdir()
    with sole_writer(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]
        with pytest.raises(TemporaryError, match="another process is training here"):  # noqa: SIM117
            with sole_writer(tmp_path):
                pass
    with sole_writer(tmp_path):
        pass


def test_the_lock_says_who_holds_it(tmp_path):
    lock = tmp_path / ".lock"
    began = time.time()
    with sole_writer(tmp_path, num_steps=100):
        held = json.loads(lock.read_text())
        assert (held["host"], held["pid"]) == (socket.gethostname(), os.getpid())
        assert began <= held["began"] <= time.time()
        assert held["num_steps"] == 100
        with pytest.raises(TemporaryError), sole_writer(tmp_path):
            pass
        assert json.loads(lock.read_text()) == held  # who was refused has not changed it
    assert lock.read_text() == ""


def test_a_shorter_line_replaces_that_of_a_killed_process_whole(tmp_path):
    (tmp_path / ".lock").write_text('{"host": "' + "a" * 999 + '"}\n')
    with sole_writer(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_lists_in_a_config_differ_by_their_number_or_by_an_entry():
    two = {"configs": [{"seed": 0}, {"seed": 1}]}
    more = {"configs": [*two["configs"], {"seed": 2}]}
    assert list(differences(more, two)) == [("the number of configs", 3, 2)]
    other = {"configs": [{"seed": 0}, {"seed": 5}]}
    assert list(differences(other, two)) == [("configs.1.seed", 5, 1)]
    assert not list(differences(two, two))
