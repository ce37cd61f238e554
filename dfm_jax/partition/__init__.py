"""Partition a data set among experts: read rows, assign them by their features, write them."""

from dfm_jax.partition.read import Source as Source
from dfm_jax.partition.write import Written as Written
from dfm_jax.partition.write import write_partition as write_partition
from dfm_jax.partition.write import write_routed as write_routed
