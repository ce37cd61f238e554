"""Independent work over 8 virtual devices: both backends, no device talking to another."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import parallel

BACKENDS = ("shard_map", "pmap")
COLLECTIVE = re.compile(
    r"\b(all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    r"|send|recv)(-start)?\("
)


def one_example(example):
    """A draw, a sort, a scan from a constant and a loop whose length depends on the data."""
    noise = jax.random.normal(example["key"], example["x"].shape)
    top, _ = jax.lax.top_k(example["x"] + noise, 2)
    total, steps = jax.lax.scan(lambda c, v: (c + v, c * v), jnp.zeros(()), example["x"])
    count = jax.lax.while_loop(lambda c: c < example["n"], lambda c: c + 1, 0)
    return {"top": top, "total": total, "steps": steps, "more": (count, example["x"][None])}


def examples(count):
    return {
        "key": jax.random.split(jax.random.key(3), count),
        "x": jnp.linspace(-1.0, 2.0, 5 * count).reshape(count, 5),
        "n": jnp.arange(count),
    }


@pytest.mark.parametrize("count", [8, 24])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_equals_vmap(backend, count):
    mapped = parallel.map_over_devices(one_example, parallel.make_mesh(), backend=backend)
    chex.assert_trees_all_close(
        mapped(examples(count)), jax.jit(jax.vmap(one_example))(examples(count)), rtol=1e-6
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_the_backends_agree_in_float64(num_devices):
    mesh = parallel.make_mesh(num_devices)
    first, second = (
        parallel.map_over_devices(one_example, mesh, backend=name)(examples(8)) for name in BACKENDS
    )
    assert first["total"].dtype == jnp.float64
    chex.assert_trees_all_equal(first, second)
    chex.assert_trees_all_close(first, jax.vmap(one_example)(examples(8)), rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_work_is_spread_over_all_devices(backend):
    mapped = parallel.map_over_devices(jnp.sin, parallel.make_mesh(), backend=backend)
    compiled = jax.jit(mapped).lower(jnp.ones((16, 3))).compile()
    (sharding,) = jax.tree.leaves(compiled.output_shardings)
    assert len(sharding.device_set) == 8


def test_the_compiled_program_holds_no_collective():
    mapped = parallel.map_over_devices(one_example, parallel.make_mesh())
    assert COLLECTIVE.findall(jax.jit(mapped).lower(examples(16)).compile().as_text()) == []


def test_a_program_that_sums_over_devices_is_seen_to_hold_one():
    """The twin of the test above: the pattern finds a collective where there is one."""
    mapped = parallel.map_over_devices(
        lambda x: x - jax.lax.psum(x, "expert"), parallel.make_mesh()
    )
    text = jax.jit(mapped).lower(jnp.ones((16, 3))).compile().as_text()
    assert "all-reduce" in {name for name, _ in COLLECTIVE.findall(text)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_arguments_and_numpy_leaves(backend):
    mapped = parallel.map_over_devices(
        lambda a, b: (a @ b["m"], b["n"]), parallel.make_mesh(2), backend=backend
    )
    a, m = np.arange(8.0).reshape(4, 2), np.ones((4, 2, 0))
    out, n = mapped(a, {"m": m, "n": np.arange(4)})
    assert out.shape == (4, 0)
    np.testing.assert_array_equal(n, np.arange(4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_once(backend):
    traced = chex.assert_max_traces(lambda x: x * 2, n=1)
    mapped = parallel.map_over_devices(traced, parallel.make_mesh(), backend=backend)
    for scale in range(3):
        np.testing.assert_array_equal(mapped(jnp.ones(8) * scale), 2 * np.ones(8) * scale)


def test_the_mesh_is_auto_and_named():
    mesh = parallel.make_mesh(4, "seed")
    assert mesh.axis_names == ("seed",)
    assert mesh.size == 4
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert parallel.make_mesh().size == 8


@pytest.mark.parametrize("count", [0, 9])
def test_a_mesh_of_devices_that_are_not_there_is_refused(count):
    with pytest.raises(ValueError, match=rf"`num_devices` must lie in \[1, 8\].*it is {count}\."):
        parallel.make_mesh(count)


def test_an_unknown_backend_is_refused_with_a_suggestion():
    message = (
        r'`backend` must be "shard_map" or "pmap"; it is \'shardmap\': did you mean "shard_map"'
    )
    with pytest.raises(ValueError, match=message):
        parallel.map_over_devices(jnp.sin, parallel.make_mesh(), backend="shardmap")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((jnp.ones(12),), r"positive multiple of the 8 devices; it is 12\."),
        ((jnp.ones(0),), r"positive multiple of the 8 devices; it is 0\."),
        (
            (jnp.ones(8), {"x": jnp.ones(16)}),
            r"`args\[1\]\['x'\]` must have the leading axis of `args\[0\]`, 8; it is 16\.",
        ),
        ((jnp.ones(8), 2.0), r"`args\[1\]` must have a leading axis to map over; it is 2\.0\."),
        ((), r"`args` must hold at least one array"),
    ],
)
def test_a_leading_axis_that_does_not_fit_is_refused(backend, args, message):
    mapped = parallel.map_over_devices(lambda *xs: xs, parallel.make_mesh(), backend=backend)
    with pytest.raises(ValueError, match=message):
        mapped(*args)
