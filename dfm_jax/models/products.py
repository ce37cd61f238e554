"""The product of rows with a matrix, for which a batch of sequences is only more rows.

`jax.vmap` of a product [N, D] × [D, E] is one with three axes, and the gradient in the matrix then
sums over two of them. XLA's compiler for CPUs copies operands into another order for that sum. Here
the rows of all sequences are put below one another first, so each product and each gradient is one
of two matrices, in every derivative.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dfm_jax.types import Array


def rows_times(rows: Array, matrix: Array, *, dtype: Any = None) -> Array:
    """rows · matrix, [..., D] × [D, E] → [..., E]; `dtype` is that of the sums and of the result.

    It equals `jnp.matmul`, and can be transformed in all the same ways.
    """
    precision: str | None = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    how = _How(np.dtype(dtype or rows.dtype), precision)
    flat = rows.reshape(-1, rows.shape[-1])
    if _varying(rows) == _varying(matrix):
        product = _rows_times_p.bind(flat, matrix, how=how)
    else:
        product = _product(flat, matrix, how=how)
    return product.reshape(*rows.shape[:-1], matrix.shape[1])


class _How(NamedTuple):
    dtype: np.dtype  # of the result
    precision: str | None  # jax's default where the product was written


def _dot(a: Array, b: Array, axes: tuple[int, int], how: _How) -> Array:
    sums = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, sums, how.precision, how.dtype)


def _product(rows: Array, matrix: Array, *, how: _How) -> Array:
    return _dot(rows, matrix, (1, 0), how)


def _varying(array: Array) -> frozenset:
    """Inside `shard_map`: the axes of the mesh along which devices see different values."""
    manual = getattr(jax.typeof(array), "manual_axis_type", None)
    return getattr(manual, "varying", frozenset())


def _abstract(rows: ShapedArray, matrix: ShapedArray, *, how: _How) -> ShapedArray:
    found, _ = jax.lax.dot_general_p.abstract_eval(
        rows,
        matrix,
        dimension_numbers=(((1,), (0,)), ((), ())),
        precision=None,
        preferred_element_type=how.dtype,
        out_sharding=None,
    )
    return found


def _batched(operands: Any, axes: Any, *, how: _How) -> tuple[Array, int]:
    rows, matrix = operands
    if axes[1] is not None:
        return jax.vmap(lambda a, b: _product(a, b, how=how), axes)(rows, matrix), 0
    rows = jnp.moveaxis(rows, axes[0], 0)
    size, count, width = rows.shape
    product = _rows_times_p.bind(rows.reshape(size * count, width), matrix, how=how)
    return product.reshape(size, count, product.shape[-1]), 0


def _to_rows(cotangent: Array, rows: Any, matrix: Array, *, how: _How) -> Array:
    return _rows_times_p.bind(cotangent, matrix.T, how=how._replace(dtype=rows.aval.dtype))


def _to_matrix(cotangent: Array, rows: Array, matrix: Any, *, how: _How) -> Array:
    return _dot(rows, cotangent, (0, 0), how._replace(dtype=matrix.aval.dtype))


_rows_times_p = Primitive("rows_times")
_rows_times_p.def_impl(jax.jit(_product, static_argnames="how"))
_rows_times_p.def_abstract_eval(_abstract)
mlir.register_lowering(_rows_times_p, mlir.lower_fun(_product, multiple_results=False))
batching.primitive_batchers[_rows_times_p] = _batched
ad.defbilinear(_rows_times_p, _to_rows, _to_matrix)
