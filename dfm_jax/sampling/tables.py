"""Drawing by a schedule table: any order, blocks, masked diffusion, infilling.   [S2, S4, A1]"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dfm_jax.checks import check_count, check_tokens, require
from dfm_jax.interfaces import Denoiser
from dfm_jax.paths import mask_source
from dfm_jax.sampling.denoisers import logits_shape
from dfm_jax.sampling.jumps import VALID, Method, Source, checked_run, run_steps
from dfm_jax.schedules import check_table, with_context
from dfm_jax.steps import step_size
from dfm_jax.types import Array, Context, Key, Table, Tokens, typed


@typed
def sample_on_table(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    x_0: Tokens,
    table: Table,
    *,
    source: Source,
    start: int = 0,
    stop: int | None = None,
    carry_over: bool | None = None,
    method: Method = "clear",
    rows_at_once: int | None = None,
) -> Tokens:
    """Draw from source to data with the exact finite step of every row of a table.   [S2, S4]

        X_{t+1}^i ~ δ + λ_t^i [p̂_{1|t}^i(· | X_t) − δ],  λ_t^i = (κ_{t+1}^i − κ_t^i)/(1 − κ_t^i)

    The table gives the order: `schedules.left_to_right`, `any_order`, `blocks`, `masked`. The joint
    distribution is exact if no step moves two positions; otherwise Q6 gives the cost. The last step
    of a table, λ = 1, draws all pending positions (S4). The denoiser reads the time t/T. Context
    positions, with κ = 1 in every row, keep the token of `x_0`.

    Args:
        key: The key of this sequence; `jax.vmap` over keys makes the batch.
        params: The parameters of the denoiser.
        denoiser: A static function; keep one and do not make one per call.
        x_0: The source, in which the id V is the mask.
        table: κ[t, i], in T + 1 rows; a concrete table is checked.
        source: "mask" if states hold masks (id V), else "tokens". The shapes do not tell which of
            the two it is.
        start: The row of the table to which `x_0` belongs.
        stop: The last row; None means T. The result is X_stop, a draw of the path at that row. A
            second call with `start=stop` and the same key goes on to the result of a single run.
        carry_over: If True, a token that is not a mask never changes, and the denoiser's row for it
            is not read. None means True for a source of masks. It must be False for a source that
            holds both masks and tokens.
        method: "clear" draws every position from its row. "sparse" first draws which positions
            move, and then computes only their rows: the same distribution, from other random
            numbers.
        rows_at_once: The number of rows that "sparse" computes at the same time.

    Raises:
        ValueError: if the table breaks a rule of `check_table`; if `start` and `stop` are not in
            order; if an id lies outside [0, S); if no step would draw some mask; if the logits
            where a token moves are not a distribution (under an outer jit only with checkify).
    """
    run = checked_run(
        params,
        denoiser,
        x_0,
        source=source,
        carry_over=carry_over,
        method=method,
        rows_at_once=rows_at_once,
    )
    table = whole_table(table)
    num_steps = table.shape[0] - 1
    last = num_steps if stop is None else stop
    check_count("stop", last, at_least=0, at_most=num_steps)
    check_count("start", start, at_least=0, at_most=last)
    if run.carry_over:
        check_masks(x_0, table[start], run.num_states - 1)
    if start == last:
        return jnp.asarray(x_0)
    steps = jnp.arange(start, last)
    jump_probs = jax.vmap(step_size, (None, 0))(table, steps)
    found = run_steps(key, params, x_0, jump_probs, steps / num_steps, start, run=run)
    require(found.valid, VALID, found.valid, name="valid")
    return found.x_t


def whole_table(table: Table, context: Context | None = None) -> Array:
    """A checked table, if it can be read; its last row, 1 up to rounding, becomes exactly 1.

    If no context is given, the context is every position that is 1 from the start.
    """
    if isinstance(table, Tracer) or isinstance(context, Tracer):
        return jnp.asarray(table)
    rows = np.asarray(table)  # also under an outer jit
    check_table(rows, rows[0] == 1 if context is None else np.asarray(context))
    return jnp.asarray(np.concatenate([rows[:-1], np.ones_like(rows[-1:])]))


def check_masks(x_0: Tokens, kappa: Array, mask_id: int) -> None:
    """Check that no mask stands where the table never moves: it would be returned as a token."""
    rule = "`x_0` must hold no mask where κ = 1 in the first row, because it would never be drawn"
    require((jnp.asarray(x_0) != mask_id) | (kappa < 1), rule, x_0)


@typed
def sample_infilling(
    key: Key,
    params: Any,
    denoiser: Denoiser,
    x: Tokens,
    context: Context,
    table: Table,
    *,
    method: Method = "clear",
    rows_at_once: int | None = None,
) -> Tokens:
    """Draw the free positions, given the context, which may be anywhere.   [A5, S2]

        X_0 = I ⊙ x + (1 − I) ⊙ m,  κ^i = 1 where I

    Args:
        key: The key of this sequence.
        params: The parameters of the denoiser.
        denoiser: A static function.
        x: The given tokens; it is read only where `context` is True.
        context: I, True where a token is given.
        table: The table of the free positions; its columns at the context are not read.
        method: See `sample_on_table`.
        rows_at_once: See `sample_on_table`.

    Raises:
        ValueError: as `sample_on_table`; if a given token is a mask or −1.
    """
    x = jnp.where(context, x, 0)
    mask_id = logits_shape(params, denoiser, x)[-1]
    check_tokens("x", x, mask_id)
    return sample_on_table(
        key,
        params,
        denoiser,
        mask_source(x, context, mask_id=mask_id),
        whole_table(_with_context(table, context), context),
        source="mask",
        method=method,
        rows_at_once=rows_at_once,
    )


def _with_context(table: Table, context: Context) -> Table:
    """Set the table to 1 at the context; NumPy is used so that it stays readable under a jit."""
    if isinstance(table, Tracer) or isinstance(context, Tracer):
        return with_context(table, context)
    return np.where(np.asarray(context), 1.0, np.asarray(table))
