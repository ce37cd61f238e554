"""Rows times a matrix: as `jnp.matmul`, in every transformation, and with one axis of sums."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from dfm_jax.models.products import rows_times

pytestmark = pytest.mark.usefixtures("x64")


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


def energy(product):
    return lambda rows, matrix: jnp.sum(jnp.sin(product(rows, matrix)))


def loss_of_a_batch(product):
    return lambda rows, matrix: jnp.sum(jax.vmap(energy(product), (0, None))(rows, matrix))


TRANSFORMED = {
    "itself": lambda p: p,
    "rows are mapped": lambda p: jax.vmap(p, (1, None)),
    "both are mapped": lambda p: jax.vmap(p, (0, 2)),
    "matrices are mapped": lambda p: jax.vmap(p, (None, 2)),
    "mapped twice": lambda p: jax.vmap(jax.vmap(p, (0, None)), (0, 2)),
    "gradients": lambda p: jax.grad(energy(p), (0, 1)),
    "a gradient of a batch": lambda p: jax.grad(loss_of_a_batch(p), (0, 1)),
    "gradients, mapped": lambda p: jax.vmap(jax.grad(energy(p), (0, 1)), (0, None)),
    "an ensemble's": lambda p: jax.vmap(jax.grad(loss_of_a_batch(p), (0, 1)), (0, 2)),
    "forward mode": lambda p: lambda r, m: jax.jvp(p, (r, m), (jnp.cos(r), jnp.cos(m))),
    "second derivatives": lambda p: jax.hessian(energy(p), (0, 1)),
    "of a batch": lambda p: jax.jacfwd(jax.grad(loss_of_a_batch(p), 1), 1),
    "recomputed": lambda p: jax.grad(jax.checkpoint(energy(p)), (0, 1)),
}
ROWS = {
    **dict.fromkeys(("rows are mapped", "both are mapped"), (3, 4, 5)),
    **dict.fromkeys(("mapped twice", "an ensemble's"), (2, 3, 4, 5)),
    **dict.fromkeys(("a gradient of a batch", "gradients, mapped", "of a batch"), (3, 4, 5)),
}
MATRIX = {
    **dict.fromkeys(("both are mapped", "matrices are mapped"), (5, 2, 3)),
    **dict.fromkeys(("mapped twice", "an ensemble's"), (5, 6, 2)),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_it_is_matmul_however_it_is_transformed(name):
    rows, matrix = normal(*ROWS.get(name, (4, 5))), normal(*MATRIX.get(name, (5, 6)))
    ours, right = (jax.jit(TRANSFORMED[name](p))(rows, matrix) for p in (rows_times, jnp.matmul))
    assert jax.tree.structure(ours) == jax.tree.structure(right)
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(right), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 0, 5), (2, 3, 4, 5)])
def test_rows_of_any_shape(shape):
    rows, matrix = normal(*shape), normal(5, 6)
    np.testing.assert_allclose(rows_times(rows, matrix), rows @ matrix, atol=1e-13)


def test_half_precision_is_summed_and_given_back_in_the_type_that_is_asked_for():
    rows, matrix = normal(4, 64).astype(jnp.bfloat16), normal(64, 3).astype(jnp.bfloat16)
    wide = partial(rows_times, dtype=jnp.float32)
    right = partial(jnp.matmul, preferred_element_type=jnp.float32)
    np.testing.assert_array_equal(wide(rows, matrix), right(rows, matrix))
    assert rows_times(rows, matrix).dtype == jnp.bfloat16
    ours, theirs = (jax.grad(energy(p), (0, 1))(rows, matrix) for p in (wide, right))
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            found.astype(float), expected.astype(float), rtol=0.02, atol=0.02
        )


def test_the_default_precision_is_that_of_the_place_where_it_is_written():
    def product(rows, matrix):
        with jax.default_matmul_precision("highest"):
            return rows_times(rows, matrix)

    text = jax.jit(jax.grad(energy(product), (0, 1))).lower(normal(4, 5), normal(5, 6)).as_text()
    assert text.count("stablehlo.dot_general") == text.count("precision = [HIGHEST, HIGHEST]") == 3


def test_the_gradient_of_a_batch_sums_over_one_axis():
    args = normal(3, 4, 5), normal(5, 6)
    ours, plain = (
        jax.jit(jax.grad(loss_of_a_batch(p), 1)).lower(*args).as_text()
        for p in (rows_times, jnp.matmul)
    )
    assert "contracting_dims = [0, 1] x [0, 1]" in plain
    assert "contracting_dims = [0, 1]" not in ours
    assert "contracting_dims = [0] x [0]" in ours


@pytest.mark.parametrize("checked", [True, False])
def test_devices_that_share_the_matrix(checked):
    """Each of them has its rows; the gradient in the matrix is summed over them."""
    mesh = Mesh(np.array(jax.devices("cpu")[:1]), ("data",))
    parts, whole = PartitionSpec("data"), PartitionSpec()
    rows, matrix = normal(2, 4, 5), normal(5, 6)
    split = jax.shard_map(
        jax.vmap(rows_times, (0, None)),
        mesh=mesh,
        in_specs=(parts, whole),
        out_specs=parts,
        check_vma=checked,
    )
    ours = jax.jit(jax.grad(lambda m: jnp.sum(jnp.sin(split(rows, m)))))(matrix)
    right = jax.grad(lambda m: jnp.sum(jnp.sin(rows @ m)))(matrix)
    np.testing.assert_allclose(ours, right, atol=1e-12)
