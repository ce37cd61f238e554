"""TPUs by name, for which libtpu compiles on a CPU without them."""

import os
from dataclasses import dataclass
from typing import Any

from jax.experimental import topologies


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Chips by name, without which they would be described by the machine that compiles."""

    name: str
    num_slices: int = 1
    chip: str = "default"  # v4 and v5p join two cores of a chip to one device

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self.name + (f" × {self.num_slices}" if self.num_slices > 1 else "")


TOPOLOGIES = (
    Topology(name="v5e:2x4"),
    Topology(name="v4:2x2x2", chip="megacore"),
    Topology(name="v5p:2x2x2", chip="megacore"),
    Topology(name="v5e:2x2", num_slices=2),
    Topology(name="v4:2x2x1", num_slices=2, chip="megacore"),
)
LARGE = Topology(name="v5p:2x2x2", chip="megacore")
LANGUAGE = {"tpu": TOPOLOGIES[0], "tpu-1b": LARGE}
# Bytes of a chip: of v5e what the compiler leaves of its 16 GiB, of v5p what its maker names.
MEMORY = {"v5e": int(15.75 * 2**30), "v5p": 95 * 10**9}


def devices_of(topology: Topology) -> list[Any]:
    """The chips of a topology, to compile for."""
    # Nobody answers on this machine, and libtpu would wait for it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    found = topologies.get_topology_desc(
        platform="tpu",
        topology_name=topology.name,
        num_slices=topology.num_slices,
        chip_config_name=topology.chip,
    )
    return list(found.devices)
