"""The linear map of all networks here: a product of rows, with an adapter where there is one."""

from typing import Any

import flax.linen as nn

from dfm_jax.models.lora import DOWN, KERNEL, UP
from dfm_jax.models.products import rows_times
from dfm_jax.types import Array


class Linear(nn.Module):
    """x W + b; or x W + (x A) B + b, if A and B stand beside the kernel, see `lora`.

    Parameters are of `param_dtype`, products of `dtype`.
    """

    columns: int
    dtype: Any
    param_dtype: Any
    kernel_init: Any
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map the last axis."""
        init, shape = self.kernel_init, (x.shape[-1], self.columns)
        kernel = self.param(KERNEL, init, shape, self.param_dtype).astype(self.dtype)
        x = x.astype(self.dtype)
        y = rows_times(x, kernel)
        if self.has_variable("params", DOWN):
            down: Any = self.get_variable("params", DOWN)
            up: Any = self.get_variable("params", UP)
            low = rows_times(x, down.astype(self.dtype))
            y = y + rows_times(low, up.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.columns,), self.param_dtype)
            y = y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        return y
