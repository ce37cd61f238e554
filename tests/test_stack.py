"""What was found to break on the stack, each with a test that would catch it.

A trap is shown first, so that we learn when a new version no longer has it; then that the project
does not step into it. Traps whose test stands beside the code they concern are listed in ELSEWHERE.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dfm_jax.models import Network, TransformerConfig, flops_per_token, transformer
from dfm_jax.objectives import cross_entropy_loss
from dfm_jax.parallel import independent, make_mesh
from dfm_jax.training.batches import Batch
from dfm_jax.training.config import OptimizerConfig
from dfm_jax.training.losses import next_token_losses
from dfm_jax.training.state import init_state, make_optimizer
from dfm_jax.training.step import make_train_step

ROOT = Path(__file__).parents[1]
TINY = TransformerConfig(num_tokens=5, width=4, num_layers=1, num_heads=1, ffn_width=4)

ELSEWHERE = {
    "pmap and shard_map give the same": "test_parallel::test_the_backends_agree_in_float64",
    "an isolated program holds no collective": (
        "test_parallel::test_the_compiled_program_holds_no_collective"
    ),
    "axes of a mesh are Auto": "test_parallel::test_the_mesh_is_auto_and_named",
    "there are 8 virtual devices": "test_conftest::test_there_are_eight_devices",
    "rank promotion is an error": "test_conftest::test_rank_promotion_raises",
    "strict promotion is a fixture": "test_conftest::test_strict",
    "float64 is a context": "test_conftest::test_x64",
    "contractions ask for full precision": (
        "test_precision::test_every_contraction_has_the_highest_precision"
    ),
    "a float32 draw has no tail": "test_sampling::test_the_far_tail_is_drawn",
    "16-bit logits are drawn in float32": (
        "test_sampling::test_half_precision_logits_are_drawn_in_float32"
    ),
    "matrices alone decay": (
        "test_training::test_matrices_decay_and_the_stacked_norms_of_a_scan_do_not"
    ),
    "losses are float32 where the network is bf16": (
        "test_training::test_bf16_logits_are_judged_in_float32"
    ),
    "orbax loads a flipped bit": "test_checkpoint::test_orbax_alone_does_not_notice",
    "a flipped bit is refused": "test_checkpoint::test_twenty_flipped_bits_are_all_refused",
    "without a template tuples become lists": (
        "test_checkpoint::test_named_tuples_bf16_and_typed_keys_come_back"
    ),
    "another topology needs a template": (
        "test_checkpoint::test_eight_devices_to_one_to_four_by_two"
    ),
    "orbax gives an array of another shape than its template's": (
        "test_checkpoint::test_another_run_is_refused_by_field_or_leaf"
    ),
    "what is read ahead by grain is every step once": (
        "test_batches::test_mapped_from_the_disk_they_are_the_same_batches"
    ),
    "an empty leaf may hang the process": (
        "test_checkpoint::test_what_orbax_would_choke_on_is_refused"
    ),
    "the temporary name is not unique": (
        "test_checkpoint::test_one_writer_who_sweeps_up_after_a_killed_one"
    ),
    "a kill in mid-save": "test_interruptions::test_three_kills_and_the_same_bits",
    "a buffer that is saved may be donated": (
        "test_checkpoint::test_saving_does_not_wait_and_survives_donation"
    ),
}


@pytest.mark.parametrize("where", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_trap_has_its_test(where):
    module, name = where.split("::")
    text = (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8")
    assert f"\ndef {name}(" in text


def sources() -> dict[str, str]:
    return {str(path): path.read_text("utf-8") for path in (ROOT / "dfm_jax").rglob("*.py")}


def test_what_must_not_be_called_is_not():
    """By name: dense losses of optax, its raw mask, its other norm; a draw that has no tail."""
    forbidden = re.compile(
        r"optax\.(masked|global_norm|(safe_)?softmax_cross_entropy|kl_divergence|losses)\b"
        r"|jnp\.empty\(|mp_prefetch|\.PRNGKey\("
        r"|random\.categorical\((?![^\n]*mode=\"high\")"
    )
    for bad in ("optax.masked(tx, mask)", "jax.random.categorical(key, x)", "jnp.empty((3,))"):
        assert forbidden.search(bad)
    assert not forbidden.search('jax.random.categorical(key, x, mode="high")')
    found = {path: forbidden.findall(text) for path, text in sources().items()}
    assert not any(found.values()), found


# ── devices ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_sharded_vmap_talks_where_a_mapped_one_does_not():
    """jit(vmap(top_k)) over sharded rows gathers them; the same over `independent` never."""
    mesh = make_mesh()
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32)

    def largest(row):
        return jax.lax.top_k(row, 3)[0]

    rows = NamedSharding(mesh, PartitionSpec("expert"))
    plain = jax.jit(jax.vmap(largest), in_shardings=rows, out_shardings=rows).lower(x).compile()
    assert "all-gather" in plain.as_text()
    mapped = jax.jit(independent(largest, mesh)).lower(x).compile().as_text()
    assert not re.search(r"all-(gather|reduce|to-all)|collective|reduce-scatter", mapped)


@pytest.mark.slow
def test_the_mean_belongs_inside_the_gradient():
    """pmean(grad) is 8 times too large on 8 devices while variance is checked; Adam hides it."""
    mesh = make_mesh({"data": 8})
    rows, whole = PartitionSpec("data"), PartitionSpec()
    x, w = jnp.arange(1.0, 9.0), jnp.float32(2.0)

    def loss(w, x):
        return jnp.mean((w * x) ** 2)

    def inside(w, x):
        return jax.grad(lambda w: jax.lax.pmean(loss(w, x), "data"))(w)

    def outside(w, x):
        return jax.lax.pmean(jax.grad(loss)(w, x), "data")

    def on_devices(fn, check):
        spread = jax.shard_map(
            fn, mesh=mesh, in_specs=(whole, rows), out_specs=whole, check_vma=check
        )
        return float(jax.jit(spread)(w, x))

    expected = float(jax.grad(loss)(w, x))
    assert on_devices(inside, True) == pytest.approx(expected, rel=1e-6)
    assert on_devices(outside, True) == pytest.approx(8 * expected, rel=1e-6)
    assert on_devices(outside, False) == pytest.approx(expected, rel=1e-6)
    adam = optax.scale_by_adam()
    steps = [float(adam.update(g * jnp.ones(1), adam.init(jnp.ones(1)))[0][0]) for g in (1.0, 8.0)]
    assert steps[0] == pytest.approx(steps[1], rel=1e-6)


def test_a_loop_that_begins_at_a_constant_runs_on_a_device_of_its_own():
    """With its variance checked shard_map refuses it; programs without a collective don't check."""
    mesh = make_mesh()

    def summed(x):
        return jax.lax.scan(lambda total, _: (total + x, None), 0.0, None, length=3)[0]

    rows = PartitionSpec("expert")
    checked = jax.shard_map(jax.vmap(summed), mesh=mesh, in_specs=rows, out_specs=rows)
    with pytest.raises(TypeError, match="carry"):
        jax.jit(checked).lower(jnp.ones(8))
    np.testing.assert_allclose(independent(summed, mesh)(jnp.arange(8.0)), 3 * np.arange(8.0))


def test_flax_embeds_on_our_mesh_and_not_on_an_explicit_one():
    embed = linen.Embed(8, 4)
    ids = jnp.arange(8)

    def rows(mesh):
        with jax.set_mesh(mesh):
            sharded = jax.device_put(ids, NamedSharding(mesh, PartitionSpec("expert")))
            return jax.jit(embed.apply)({"params": {"embedding": jnp.ones((8, 4))}}, sharded)

    explicit = jax.make_mesh((8,), ("expert",), axis_types=(AxisType.Explicit,))
    with pytest.raises(Exception, match=r"[Ss]harding"):
        rows(explicit)
    assert rows(make_mesh()).shape == (8, 4)


@pytest.mark.slow
def test_threefry_keys_draw_the_same_under_vmap_and_rbg_keys_do_not():
    def draws(kind):
        keys = jax.random.split(jax.random.key(0, impl=kind), 3)
        together = jax.vmap(lambda key: jax.random.bits(key, (4,)))(keys)
        return together, jnp.stack([jax.random.bits(jax.random.clone(key), (4,)) for key in keys])

    np.testing.assert_array_equal(*draws("threefry2x32"))
    assert not np.array_equal(*draws("rbg"))
    assert str(jax.random.key_impl(jax.random.key(0))) == "threefry2x32"
    assert not any('impl="' in text for text in sources().values())


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_optax_breaks_under_strict_promotion_and_keeps_the_projects_rules():
    """Strict promotion stays a fixture while this holds; a step runs where ranks may not differ."""
    assert jax.config.jax_numpy_rank_promotion == "raise"  # pyright: ignore
    params, adam = {"w": jnp.ones(2)}, optax.adam(0.1)
    memory = adam.init(params)
    with jax.numpy_dtype_promotion("strict"), pytest.raises(Exception, match="promotion"):
        adam.update(params, memory, params)
    network = Network(
        lambda key: {"w": jnp.zeros((5, 4)), "bias": jnp.zeros(4)},
        lambda params, x_t, t=None, *, key=None: params["w"][x_t] + params["bias"][None],
    )
    optimizer = make_optimizer(OptimizerConfig(max_norm=0.1), 10)
    step = make_train_step(next_token_losses(network, start=4), optimizer, ema_decay=0.5)
    state = init_state(jax.random.key(0), network, optimizer, ema=True)
    batch = Batch(jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool))
    state, metrics = jax.jit(step, donate_argnums=0)(state, batch, jax.random.key(1))
    assert np.isfinite(metrics.loss)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}


def test_a_mask_of_optax_lets_raw_gradients_through_and_our_decay_does_not():
    raw = {"scale": jnp.full(3, 1e6), "w": jnp.full((3, 3), 1e6)}
    params = jax.tree.map(jnp.ones_like, raw)
    masked = optax.masked(optax.scale(0.0), {"scale": False, "w": True})
    updates, _ = masked.update(raw, masked.init(params), params)
    assert float(updates["scale"][0]) == 1e6  # the trap
    ours = make_optimizer(OptimizerConfig(warmup_steps=0, max_norm=None, weight_decay=0.5), 10)
    first = jax.jit(lambda raw, params: ours.update(raw, ours.init(params), params)[0])
    updates = first(raw, params)
    np.testing.assert_allclose(updates["scale"], -1e-3, rtol=1e-5)  # Adam's first step: the rate
    np.testing.assert_allclose(updates["w"], -1.5e-3, rtol=1e-5)  # and half the parameter besides


def test_a_token_that_cannot_come_costs_nothing_where_it_does_not():
    """Dense cross-entropy is NaN at a logit of −∞, its gradient too; ours is by the label."""
    logits = jnp.array([[0.0, -jnp.inf, 1.0]])
    dense = optax.softmax_cross_entropy(logits, jnp.array([[1.0, 0.0, 0.0]]))
    assert np.isnan(dense).all()
    nats, slope = jax.value_and_grad(lambda z: cross_entropy_loss(z, jnp.array([0])).sum())(logits)
    assert float(nats) == pytest.approx(np.log1p(np.e), rel=1e-6)
    assert np.all(np.isfinite(slope))


@pytest.mark.slow
def test_the_parameters_are_the_same_numbers_where_float64_is_on():
    """A stream is another in float64: the networks give their type."""
    init = transformer(TINY).init
    here = init(jax.random.key(0))
    with jax.enable_x64(True):
        there = init(jax.random.key(0))
        assert not np.allclose(
            jax.random.normal(jax.random.key(0), (2,)),
            jax.random.normal(jax.random.key(0), (2,), np.float32),
        )
    for left, right in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        assert right.dtype == np.float32
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_fused_attention_is_float32_and_refused_in_float64(x64):
    q = jnp.asarray(np.random.default_rng(0).normal(size=(4, 1, 2)))
    weights = jnp.einsum("ihd,jhd->hij", q, q) / np.sqrt(2)
    exact = jnp.einsum("hij,jhd->ihd", jax.nn.softmax(weights), q)
    assert np.abs(jax.nn.dot_product_attention(q, q, q) - exact).max() > 1e-12
    with pytest.raises(ValueError, match="the others compute in float32"):
        TransformerConfig(
            num_tokens=5,
            width=4,
            num_layers=1,
            num_heads=1,
            ffn_width=4,
            compute_dtype="float64",
            attention="xla",
        )


@pytest.mark.slow
def test_the_compilers_count_of_flops_does_not_see_a_loop():
    """A scan of 8 layers is counted as one; the formula counts eight."""

    def counted(layers):
        config = TransformerConfig(
            num_tokens=5,
            width=32,
            num_layers=layers,
            num_heads=1,
            ffn_width=32,
            scan_layers=True,
        )
        network = transformer(config)
        params = jax.eval_shape(network.init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((16,), jnp.int32)
        cost = jax.jit(network.apply).lower(params, x).compile().cost_analysis()
        return cost["flops"], flops_per_token(config, 16)

    (two, by_formula), (eight, more_by_formula) = counted(2), counted(8)
    assert eight < 1.1 * two
    assert more_by_formula > 3 * by_formula


def test_the_init_is_one_program():
    """Eager, it takes seconds: each layer's draws are dispatched one by one."""
    program = jax.make_jaxpr(transformer(TINY).init)(jax.random.key(0))
    assert [equation.primitive.name for equation in program.eqns] in (["pjit"], ["jit"])
