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
    """From source to data by the exact finite step of every row of a table.   [S2, S4]

        X_{t+1}^i ~ δ + λ_t^i [p̂_{1|t}^i(· | X_t) − δ],  λ_t^i = (κ_{t+1}^i − κ_t^i)/(1 − κ_t^i)

    The table is the order: `schedules.left_to_right`, `any_order`, `blocks`, `masked`. Joint
    distribution exact if no step moves two positions; else Q6 says what it costs. The last step of
    a table, λ = 1, draws all that is left (S4). The denoiser reads the time t/T. Context positions,
    κ = 1 in every row, keep the token of `x_0`.

    Args:
        key: of this sequence; `jax.vmap` over keys is the batch.
        params: what the denoiser takes.
        denoiser: static; keep one.
        x_0: the source, V the mask.
        table: κ[t, i], T + 1 rows; a concrete one is checked.
        source: "mask" if states hold masks, id V, else "tokens": no shape says which, and a token
            that masks never become would not move.
        start: the row that `x_0` belongs to.
        stop: the last row, T if None. What comes back is X_stop, a draw of the path there. From
            there `start=stop` goes on with the same key to what one run would have given.
        carry_over: a token that is no mask never changes; what the denoiser says of it is not read.
            True for a source of masks if None. Of one that can hold tokens too, it must be False.
        method: "clear" draws every position from its row; "sparse" draws who moves, then only
            these rows: the same distribution, from other random numbers.
        rows_at_once: of "sparse".

    Raises:
        ValueError: on a table that is none, rows out of order, an id outside [0, S), a mask that no
            step would draw, or logits that are no distribution where a token moves (under an outer
            jit by checkify).
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
    """A table that can be read, checked; its last row, 1 to rounding, is then 1.

    Without a context, that is what is 1 from the start.
    """
    if isinstance(table, Tracer) or isinstance(context, Tracer):
        return jnp.asarray(table)
    rows = np.asarray(table)  # also under an outer jit
    check_table(rows, rows[0] == 1 if context is None else np.asarray(context))
    return jnp.asarray(np.concatenate([rows[:-1], np.ones_like(rows[-1:])]))


def check_masks(x_0: Tokens, kappa: Array, mask_id: int) -> None:
    """No mask stands where the table never moves: it would come back as a token."""
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
    """Draw what is not context, given what is, wherever it stands.   [A5, S2]

        X_0 = I ⊙ x + (1 − I) ⊙ m,  κ^i = 1 where I

    Args:
        key: of this sequence.
        params: what the denoiser takes.
        denoiser: static.
        x: read where `context` only.
        context: I, True where a token is given.
        table: of the free positions; its columns at the context are not read.
        method: see `sample_on_table`.
        rows_at_once: see `sample_on_table`.

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
    """What can be read stays readable, also under an outer jit."""
    if isinstance(table, Tracer) or isinstance(context, Tracer):
        return with_context(table, context)
    return np.where(np.asarray(context), 1.0, np.asarray(table))
