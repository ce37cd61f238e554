"""A data set parted among experts: rows are read, assigned by their features, and written."""

from dfm_jax.partition.read import Source
from dfm_jax.partition.write import Written, write_partition, write_routed

__all__ = ["Source", "Written", "write_partition", "write_routed"]
