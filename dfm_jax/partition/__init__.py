"""A data set partitioned among experts: rows are read, assigned by their features, and written."""

from dfm_jax.partition.read import Source as Source
from dfm_jax.partition.write import Written as Written
from dfm_jax.partition.write import write_partition as write_partition
from dfm_jax.partition.write import write_routed as write_routed
