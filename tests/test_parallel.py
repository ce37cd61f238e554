"""Independent work over 8 virtual devices: both backends, no device talking to another."""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import mixture, parallel
from dfm_jax.mixture import expert_posterior, mix, mix_log_probs
from dfm_jax.training.distributed import sharded_evaluation

BACKENDS = ("shard_map", "pmap")


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
        "x": np.linspace(-1.0, 2.0, 5 * count).reshape(count, 5).astype(jnp.result_type(float)),
        "n": np.arange(count, dtype=jnp.result_type(int)),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "count"), [("shard_map", 24), ("pmap", 24)])
def test_a_backend_equals_vmap(backend, count):
    mapped = parallel.independent(one_example, parallel.make_mesh(), backend=backend)
    chex.assert_trees_all_close(
        mapped(examples(count)), jax.jit(jax.vmap(one_example))(examples(count)), rtol=1e-6
    )


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_backends_agree_in_float64(num_devices):
    mesh = parallel.make_mesh(num_devices)
    first, second = (
        parallel.independent(one_example, mesh, backend=name)(examples(8)) for name in BACKENDS
    )
    assert first["total"].dtype == jnp.float64
    chex.assert_trees_all_equal(first, second)
    expected = jax.jit(jax.vmap(one_example))(examples(8))
    chex.assert_trees_all_close(first, expected, rtol=1e-14)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("backend", "count"), [("shard_map", 9), ("pmap", 9), ("shard_map", 1)])
def test_runs_in_turn_equal_runs_together(backend, count):
    """Also where the devices do not divide them, and a device has one run only."""
    mesh = parallel.make_mesh(4)
    in_turn, together = (
        parallel.independent(one_example, mesh, backend=backend, pad=True, in_turn=each)
        for each in (True, False)
    )
    chex.assert_trees_all_close(in_turn(examples(count)), together(examples(count)), rtol=1e-14)


@pytest.mark.parametrize("in_turn", [True, False])
def test_shared_arguments_have_no_axis_of_runs(in_turn):
    """A bound that runs share stays one number: no run waits for another."""

    def power(times, table, x):
        return jax.lax.fori_loop(0, times, lambda _, y: y * x, table[0])

    mapped = parallel.independent(
        power, parallel.make_mesh(2), pad=True, in_turn=in_turn, shared_args=(0, 1)
    )
    x = np.array([1.0, 2.0, 3.0], np.float32)
    np.testing.assert_allclose(mapped(2, np.full(5, 10.0, np.float32), x), 10 * x**2)
    text = str(jax.make_jaxpr(mapped)(2, np.full(5, 10.0, np.float32), x))
    assert "reduce_or" not in text  # which a loop whose runs differ in length needs


def test_only_shard_map_shares_arguments():
    with pytest.raises(ValueError, match=r'unless `backend` is "shard_map"; got shared_args = '):
        parallel.independent(jnp.add, parallel.make_mesh(1), backend="pmap", shared_args=(0,))


def test_runs_in_turn_are_a_loop_and_a_cpu_has_them_so():
    mesh = parallel.make_mesh(1)
    assert parallel.faster_in_turn(mesh)
    texts = [
        str(jax.make_jaxpr(parallel.independent(jnp.sin, mesh, in_turn=each))(jnp.ones(3)))
        for each in (True, False)
    ]
    assert ["scan[" in text for text in texts] == [True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_work_is_spread_over_all_devices(backend):
    mapped = parallel.independent(jnp.sin, parallel.make_mesh(), backend=backend)
    compiled = jax.jit(mapped).lower(jnp.ones((16, 3))).compile()
    (sharding,) = jax.tree.leaves(compiled.output_shardings)
    assert len(sharding.device_set) == 8


def test_the_compiled_program_holds_no_collective():
    mapped = parallel.independent(one_example, parallel.make_mesh())
    assert parallel.collectives(jax.jit(mapped).lower(examples(16)).compile()) == ()


def test_a_program_that_sums_over_devices_is_seen_to_hold_one():
    """The twin of the test above: the pattern finds a collective where there is one."""
    mapped = parallel.independent(lambda x: x - jax.lax.psum(x, "expert"), parallel.make_mesh())
    found = parallel.collectives(jax.jit(mapped).lower(jnp.ones((16, 3))).compile())
    assert parallel.count_by_kind(found) == {"all-reduce": 1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_arguments_and_numpy_leaves(backend):
    mapped = parallel.independent(
        lambda a, b: (a @ b["m"], b["n"]), parallel.make_mesh(2), backend=backend
    )
    a, m = np.arange(8.0).reshape(4, 2), np.ones((4, 2, 0))
    out, n = mapped(a, {"m": m, "n": np.arange(4)})
    assert out.shape == (4, 0)
    np.testing.assert_array_equal(n, np.arange(4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_once(backend):
    traced = chex.assert_max_traces(lambda x: x * 2, n=1)
    mapped = parallel.independent(traced, parallel.make_mesh(), backend=backend)
    for scale in range(3):
        np.testing.assert_array_equal(mapped(jnp.ones(8) * scale), 2 * np.ones(8) * scale)


def test_the_mesh_is_auto_and_named():
    mesh = parallel.make_mesh({"seed": 2, "data": 3})
    assert dict(mesh.shape) == {"seed": 2, "data": 3}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert dict(parallel.make_mesh().shape) == {"expert": 8}
    assert list(parallel.make_mesh(2, devices=jax.devices()[3:]).devices) == jax.devices()[3:5]


@dataclass(frozen=True)
class Chip:
    """What a mesh over slices is made of."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "chip"
    process_index: int = 0


def test_the_first_axis_runs_over_slices_so_that_an_expert_stays_inside_one():
    chips = [Chip(number, number % 2) for number in range(8)]  # in no helpful order
    grid = parallel.make_mesh({"expert": 4, "data": 2}, devices=chips).devices
    assert [{chip.slice_index for chip in row} for row in grid] == [{0}, {0}, {1}, {1}]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (0, r"The number of devices must lie in \[1, 8\].*; got number of devices = 0\."),
        (9, r"The number of devices must lie in \[1, 8\].*; got number of devices = 9\."),
        (True, r"The number of devices must lie in \[1, 8\].*; got number of devices = True\."),
        ({"expert": 8, "data": 2}, r"`shape` must ask for 1 to 8 devices.*'data': 2"),
        ({"expert": 8, "data": 0}, r"`shape` must ask for 1 to 8 devices.*'data': 0"),
    ],
)
def test_a_mesh_of_devices_that_are_not_there_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        parallel.make_mesh(shape)


def test_a_mesh_of_as_many_devices_as_numpy_counts():
    assert dict(parallel.make_mesh(np.int64(2)).shape) == {"expert": 2}


def test_a_mesh_without_an_axis_is_refused():
    with pytest.raises(ValueError, match=r"`shape` must name an axis; got shape = \{\}\."):
        parallel.make_mesh({})


def test_an_unknown_backend_is_refused_with_a_suggestion():
    message = (
        r'`backend` must be "shard_map" or "pmap"; got backend = \'shardmap\'. Did you '
        r'mean "shard_map"'
    )
    with pytest.raises(ValueError, match=message):
        parallel.independent(jnp.sin, parallel.make_mesh(), backend="shardmap")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            (jnp.ones(12),),
            r"must be a multiple of 8, the devices, unless `pad` is set; got length = 12\.",
        ),
        ((jnp.ones(0),), r"The leading axis must hold a run; got length = 0\."),
        (
            (jnp.ones(8), {"x": jnp.ones(16)}),
            (
                r"`args\[1\]\['x'\]` must have a leading axis of 8, as `args\[0\]` has; got "
                r"args\[1\]\['x'\].shape = \(16"
            ),
        ),
        (
            (jnp.ones(8), 2.0),
            r"`args\[1\]` must have a leading axis to map over; got args\[1\].shape = \(\)\.",
        ),
        ((), r"`args` must hold at least one array"),
    ],
)
def test_a_leading_axis_that_does_not_fit_is_refused(backend, args, message):
    mapped = parallel.independent(lambda *xs: xs, parallel.make_mesh(), backend=backend)
    with pytest.raises(ValueError, match=message):
        mapped(*args)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "count"), [("shard_map", 1), ("shard_map", 11), ("pmap", 5)])
def test_devices_left_over_compute_the_last_run_again(backend, count):
    mapped = parallel.independent(one_example, parallel.make_mesh(4), backend=backend, pad=True)
    out = mapped(examples(count))
    expected = jax.jit(jax.vmap(one_example))(examples(count))
    chex.assert_trees_all_equal_shapes(out, expected)
    chex.assert_trees_all_close(out, expected, rtol=1e-6)


def test_batches_are_cut_over_the_devices_of_their_run():
    mesh = parallel.make_mesh({"expert": 4, "data": 2})
    mapped = parallel.independent(lambda w, x: jnp.sum(w * x), mesh, data_args=(1,))
    w, x = jnp.arange(8.0), jnp.arange(48.0).reshape(8, 6)
    np.testing.assert_allclose(mapped(w, x), w * x.sum(1))
    found = parallel.collectives(jax.jit(mapped).lower(w, x).compile())
    assert parallel.count_by_kind(found) == {"all-reduce": 1}
    assert found[0].groups == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert found[0].num_bytes == 2 * 4  # two runs on a row, a number each


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            jnp.ones((8, 5)),
            r"The batch of `args\[1\]` must be a multiple of 2, .*; got args\[1\].shape\[1\] = 5\.",
        ),
        (jnp.ones(8), r"`args\[1\]` must have a second axis, which is the batch"),
        (
            jnp.ones((6, 4)),
            (
                r"`args\[1\]` must have a leading axis of 8, as `args\[0\]` has; got "
                r"args\[1\].shape = \(6"
            ),
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(x, message):
    mesh = parallel.make_mesh({"expert": 4, "data": 2})
    mapped = parallel.independent(lambda w, x: jnp.sum(w * x), mesh, data_args=(1,))
    with pytest.raises(ValueError, match=message):
        mapped(jnp.ones(8), x)


def test_a_batch_of_the_dense_model_that_its_devices_do_not_divide_is_refused():
    mesh = parallel.make_mesh({"data": 2})
    step = parallel.sharded_step(
        lambda state, batch: (state, batch["x"].sum()), mesh, jnp.zeros(())
    )
    _, total = step(jnp.zeros(()), {"x": jnp.ones(4)})
    assert total == 4
    for rows in (jnp.ones(3), jnp.ones(())):
        with pytest.raises(
            ValueError, match=r"The number of rows of `batch\['x'\]` must be a multiple of 2"
        ):
            step(jnp.zeros(()), {"x": rows})


def _slow_sum(x):
    """The sum of x, after some tenths of a second."""
    busy = jax.lax.fori_loop(0, 10, lambda _, m: m @ m / 600, jnp.ones((600, 600)))
    return x.sum() + 0 * busy[0, 0]


@pytest.mark.slow
def test_programs_that_exchange_data_run_one_at_a_time_on_a_cpu():
    """Two at the same time can wait for each other's threads, which ended whole processes."""
    w, x = jnp.ones(4), jnp.ones((4, 8))
    rows, line = parallel.make_mesh({"expert": 4, "data": 2}), parallel.make_mesh({"data": 8})
    wide = parallel.independent(lambda w, x: w * _slow_sum(x), rows, data_args=(1,))
    step = parallel.sharded_step(lambda w, x: (w, _slow_sum(x)), line, w, donate=False)
    over_rows = sharded_evaluation(lambda w, x: w.sum() + _slow_sum(x), line)
    alone = jax.jit(lambda w, x: w * _slow_sum(x))
    for fn, args in ((wide, (w, x)), (step, (w, jnp.ones(8))), (over_rows, (w, jnp.ones(8)))):
        for _ in range(2):  # the first call compiles
            out = fn(*args)
            assert all(leaf.is_ready() for leaf in jax.tree.leaves(out))
    alone(w, x)
    assert not alone(w, x).is_ready()  # what jax does of itself, and the sum is slow enough to see


def test_pmap_has_one_axis():
    mesh = parallel.make_mesh({"expert": 4, "data": 2})
    with pytest.raises(ValueError, match=r'`mesh` must have one axis, or two if .*"shard_map"'):
        parallel.independent(jnp.sin, mesh, backend="pmap")


# ── what a compiled program says ────────────────────────────────────────────────────────────────

HLO = """
  %a = f32[2,3]{1,0} all-reduce(%x), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add
  %b = (f32[4]{0}, bf16[2]{0}) all-reduce(%x, %y), replica_groups={{0,2},{1,3}}, to_apply=%add
  %c = f32[8]{0} all-gather(%x), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %d = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %e = f32[8]{0} all-gather-done(%d)
  %i = (f32[2]{0}, f32[3]{0}) all-reduce-start(%x, %y), replica_groups={{0,1}}, to_apply=%add
  %j = ((f32[2], f32[1]), (f32[8], f32[4])) all-gather-start(%x, %y), replica_groups={{0,1,2,3}}
  %k = (f32[2], f32[2], u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}
  %f = u8[5]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %g = f32[8]{0} reduce-scatter(%x), replica_groups={}, to_apply=%add
  %h = f32[8]{0} add(%all-reduce.3, %all-gather.1), metadata={op_name="psum all-reduce(x)"}
"""


def test_collectives_are_read_with_their_groups_and_bytes():
    found = parallel.collectives(HLO)
    assert parallel.count_by_kind(found) == {
        "all-gather": 3,
        "all-reduce": 3,
        "collective-permute": 2,
        "reduce-scatter": 1,
    }
    assert found[0] == ("all-reduce", ((0, 1), (2, 3), (4, 5), (6, 7)), 24)
    assert found[1] == ("all-reduce", ((0, 2), (1, 3)), 20)
    assert found[2] == ("all-gather", ((0, 2, 4, 6), (1, 3, 5, 7)), 32)
    assert found[3] == ("all-gather", ((0, 1, 2, 3),), 32)
    assert [one.num_bytes for one in found[4:7]] == [20, 48, 8]
    assert found[7] == ("collective-permute", ((0, 1), (1, 0)), 5)
    assert found[8] == ("reduce-scatter", (), 32)


# ── experts on different devices, mixed ─────────────────────────────────────────────────────────


def mixing(bound=None, num_devices=8):
    """`mix_over_devices` of arrays that lie over devices."""
    mesh, axis = parallel.make_mesh(num_devices), jax.sharding.PartitionSpec("expert")

    def inside(log_p_t, log_prior, values):
        return mixture.mix_over_devices(log_prior, log_p_t, values, bound=bound)

    return jax.jit(
        jax.shard_map(inside, mesh=mesh, in_specs=axis, out_specs=jax.sharding.PartitionSpec())
    )


def mixed(*arrays, bound=None, num_devices=8):
    """What comes out, and the collectives of its compiled program."""
    compiled = mixing(bound, num_devices).lower(*arrays).compile()
    return *compiled(*arrays), parallel.collectives(compiled)


@pytest.fixture
def experts():
    """16 of them, some of weight 0 and saying NaN, with probabilities that float64 has not."""
    rng = np.random.default_rng(0)
    log_prior, log_p_t = np.log(rng.dirichlet(np.ones(16))), rng.normal(-2000, 300, 16)
    log_prior[[3, 8, 9]] = -np.inf
    log_prior -= np.logaddexp.reduce(log_prior)
    log_p_t[8] = np.nan
    values = rng.normal(size=(16, 5, 7))
    values[[3, 9]] = np.nan
    return log_p_t, log_prior, values


@pytest.mark.slow
@pytest.mark.statement("D3", "D4", "D5")
@pytest.mark.parametrize("num_devices", [1, 4, 8])
def test_experts_over_devices_mix_as_on_one(experts, num_devices, x64):
    log_p_t, log_prior, values = experts
    found, log_prob, said = mixed(*experts, num_devices=num_devices)
    weights = expert_posterior(jnp.asarray(log_prior), jnp.asarray(log_p_t))
    np.testing.assert_allclose(found, mix(weights, values), atol=1e-12)
    expected = mix_log_probs(jnp.asarray(log_prior), jnp.asarray(np.nan_to_num(log_p_t)))
    assert float(log_prob) == pytest.approx(float(expected), abs=1e-9)
    assert np.isfinite(found).all()
    if num_devices > 1:
        assert [one.kind for one in said] == ["all-reduce", "all-reduce"]
        assert sorted(one.num_bytes for one in said) == [8, 8 * (35 + 1)]


@pytest.mark.statement("D4")
def test_with_a_bound_there_is_one_reduction(experts, x64):
    log_p_t, log_prior, values = experts
    free, log_prob, _ = mixed(log_p_t, log_prior, values)
    bounded, same, said = mixed(log_p_t, log_prior, values, bound=log_prob + 3.0)
    np.testing.assert_allclose(bounded, free, atol=1e-12)
    assert float(same) == pytest.approx(float(log_prob), abs=1e-9)
    assert [one.kind for one in said] == ["all-reduce"]


@pytest.mark.slow
@pytest.mark.statement("D3")
@pytest.mark.parametrize("bounded", [False, True])
def test_the_posterior_is_the_gradient_of_the_log_distribution(bounded, x64):
    """∂ log p_t / ∂ log p_t^k = r_k, whatever m."""
    rng = np.random.default_rng(1)
    log_prior, log_p_t = np.log(rng.dirichlet(np.ones(8))), jnp.asarray(rng.normal(-2, 1, 8))
    bound = jnp.zeros(()) if bounded else None
    values = np.zeros((8, 1))
    mix_of = mixing(bound, num_devices=4)
    found = jax.jit(jax.grad(lambda x: mix_of(x, log_prior, values)[1]))(log_p_t)
    np.testing.assert_allclose(found, expert_posterior(log_prior, log_p_t), atol=1e-12)


@pytest.mark.statement("D4")
def test_a_prior_that_is_dropped_is_seen(experts, x64):
    log_p_t, log_prior, values = experts
    weights = expert_posterior(jnp.asarray(log_prior), jnp.asarray(log_p_t))
    flat = np.where(np.isfinite(log_prior), 0.0, log_prior)
    near = np.where(np.isnan(log_p_t), log_p_t, log_p_t / 500)  # so that several experts count
    expected = mix(expert_posterior(log_prior, near), values)
    assert np.abs(mixed(near, flat, values)[0] - expected).max() > 1e-2
    assert float(weights.sum()) == pytest.approx(1)


@pytest.mark.statement("D4")
def test_where_no_expert_can_be_there_is_nothing_to_mix(x64):
    zero = np.full(8, -np.inf)
    found, log_prob, _ = mixed(zero, np.log(np.full(8, 1 / 8)), np.ones((8, 3)))
    assert np.isnan(found).all()
    assert log_prob == -np.inf
