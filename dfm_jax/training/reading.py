"""Batches read ahead by grain: for data on the disk, while a step is being computed.

grain only decides when: a batch stays a pure function of (key, step), so a restart has no iterator
to restore, and what is read ahead, or by how many threads, changes no bit.
"""

from collections.abc import Iterator
from typing import Any

from dfm_jax.checks import check_count
from dfm_jax.training.batches import Batch, Batches
from dfm_jax.types import ArrayLike, Key

_LAST = 2**31 - 1


def read_ahead(batches: Batches, *, num_threads: int = 2, buffer: int = 8) -> Batches:
    """The same batches; those of the next steps are made in threads before they are asked for.

    Any step may be asked for: one that is not the next begins a new series there.

    Raises:
        ValueError: if grain is missing (extra `data`).
    """
    check_count("num_threads", num_threads)
    check_count("buffer", buffer)
    try:
        import grain
    except ImportError as error:
        raise ValueError(
            "to read ahead needs the package grain: pip install 'dfm_jax[data]'."
        ) from error
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer)
    series: Any = (None, None, iter(()))  # key, the step that comes next, the batches from it on

    def begun(key: Key, step: int) -> Iterator[Batch]:
        steps = grain.MapDataset.range(step, _LAST)
        return iter(steps.map(lambda s: batches(key, s)).to_iter_dataset(options))

    def batch(key: Key, step: ArrayLike) -> Batch:
        nonlocal series
        step = int(step)
        known, following, rest = series
        if key is not known or step != following:
            rest = begun(key, step)
        found = next(rest)
        series = (key, step + 1, rest)
        return found

    return batch
