"""The devices of this host, in sets of equal size: one set for each process that runs at once.

A process that has opened the chips of a TPU keeps them from all others. So the launcher may not ask
jax what there is: it reads what jax reads before it opens anything. These are the environment, the
PCI devices and the device files of the host, and the names of the installed packages.

For a TPU, the variables are those of jax's own tests with several processes on a host, and the
older names of two of them, which GKE sets in a pod. They make each process a whole slice of its
own, with its own port, because experts are not joined.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from dfm_jax.checks import check_count, require

_GOOGLE = "0x1ae0"  # the vendor on the PCI bus
_TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}  # v3 to TPU7x
_SHAPES = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # of neighbors on the board of a host
_PORT = 8476  # of a set that begins with chip 0
_KINDS: dict[str, Literal["tpu", "gpu", "cpu"]] = {
    **{"tpu": "tpu", "cuda": "gpu", "gpu": "gpu", "cpu": "cpu"}
}
_ROOT = Path("/")


class DeviceSet(NamedTuple):
    """Devices that one process has for itself."""

    name: str  # for messages: TPU 0,1
    variables: dict[str, str]  # of the environment, which tell the process
    cores: tuple[int, ...] = ()  # the only ones on which the process may run; empty: on any


def gpu_sets(visible: Sequence[str]) -> list[DeviceSet]:
    """One set for each value of CUDA_VISIBLE_DEVICES, such as "0" or "0,1".

    Raises:
        ValueError: if a value is empty, with which a process would see no GPU.
    """
    named = all(value.strip(" ,") for value in visible)
    require(named, "Each of `gpus` must name a GPU", visible)
    return [DeviceSet(f"GPU {value}", {"CUDA_VISIBLE_DEVICES": value}) for value in visible]


def device_kind(
    variables: Mapping[str, str] = os.environ, root: Path = _ROOT
) -> Literal["tpu", "gpu", "cpu"]:
    """The kind of devices on which jax will compute in a process that is started here.

    As in jax, the first platform of JAX_PLATFORMS decides. If it is not set, the kind is tpu if
    there are TPUs and libtpu is installed; else gpu if there are GPUs and jax's plugin for CUDA is
    installed; else cpu.

    Args:
        variables: The environment of the process.
        root: The folder that has the folders `dev` and `sys` of the host.

    Raises:
        ValueError: if JAX_PLATFORMS names another platform; if it is not set and jax has a plugin
            for another platform.
    """
    asked = variables.get("JAX_PLATFORMS") or variables.get("JAX_PLATFORM_NAME") or ""
    first = asked.split(",")[0].strip().lower()
    if first:
        rule = "`JAX_PLATFORMS` must begin with tpu, cuda or cpu if a launch divides the devices"
        require(first in _KINDS, rule, asked)
        return _KINDS[first]
    if _has_tpu(root) and _has_libtpu(variables):
        return "tpu"
    plugins = _plugins()
    rule = "`JAX_PLATFORMS` must say which devices to divide if jax has plugins other than CUDA's"
    require(all("cuda" in name for name in plugins), rule, plugins, name="plugins")
    return "gpu" if plugins and _gpus(variables, root) else "cpu"


def device_sets(
    size: int, variables: Mapping[str, str] = os.environ, root: Path = _ROOT
) -> list[DeviceSet]:
    """The devices of this host in sets of `size`; those that are left over are in no set.

    Args:
        size: The number of TPU chips of each set, or of GPUs, or of cores of the processor,
            depending on `device_kind`.
        variables: The environment of the launcher. If it has TPU_VISIBLE_CHIPS, or
            CUDA_VISIBLE_DEVICES, there are no other chips or GPUs.
        root: The folder that has the folders `dev` and `sys` of the host.

    Raises:
        ValueError: if there are fewer devices; if a process cannot have so many chips of a TPU; if
            the operating system cannot restrict a process to some cores.
    """
    check_count("devices_per_expert", size)
    kind = device_kind(variables, root)
    if kind == "tpu":
        rule = "`devices_per_expert` must be 1, 2, 4 or 8 where the devices are chips of a TPU"
        require(size in _SHAPES, rule, size)
        return [_tpu_set(group) for group in _groups(_chips(variables, root), size, "TPU chips")]
    if kind == "gpu":
        groups = _groups(_gpus(variables, root), size, "GPUs")
        return gpu_sets([",".join(group) for group in groups])
    groups = _groups([str(number) for number in sorted(_cores())], size, "cores of the processor")
    variable = {"JAX_NUM_CPU_DEVICES": str(size)}
    return [
        DeviceSet(f"CPU {','.join(group)}", variable, tuple(map(int, group))) for group in groups
    ]


@contextlib.contextmanager
def running_on(cores: Collection[int]) -> Iterator[None]:
    """Restrict this thread to some cores; a process that it starts meanwhile stays restricted.

    Setting the cores of the process after its start would be too late for its first threads.
    """
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _groups(names: Sequence[str], size: int, kind: str) -> list[Sequence[str]]:
    rule = f"`devices_per_expert` must be at most {len(names)}, the number of {kind} here"
    require(size <= len(names), rule, size)
    return [names[first : first + size] for first in range(0, len(names) - size + 1, size)]


def _tpu_set(chips: Sequence[str]) -> DeviceSet:
    port = str(_PORT + int(chips[0]))
    variables = {
        "TPU_VISIBLE_CHIPS": ",".join(chips),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": _SHAPES[len(chips)],
        "TPU_CHIPS_PER_HOST_BOUNDS": _SHAPES[len(chips)],
        "TPU_PROCESS_BOUNDS": "1,1,1",  # the only process of its slice
        "TPU_HOST_BOUNDS": "1,1,1",
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "TPU_PROCESS_PORT": port,
        "CLOUD_TPU_TASK_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # by other processes, with other chips
    }
    return DeviceSet(f"TPU {','.join(chips)}", variables)


def _has_tpu(root: Path) -> bool:
    of_google = (
        vendor.with_name("device").read_text().strip()
        for vendor in (root / "sys/bus/pci/devices").glob("*/vendor")
        if vendor.read_text().strip() == _GOOGLE
    )
    return any(device in _TPUS for device in of_google)


def _has_libtpu(variables: Mapping[str, str]) -> bool:
    return "TPU_LIBRARY_PATH" in variables or importlib.util.find_spec("libtpu") is not None


def _plugins() -> list[str]:
    """The names of jax's plugins for platforms, such as xla_cuda12; libtpu is none of them."""
    return [plugin.name for plugin in importlib.metadata.entry_points(group="jax_plugins")]


def _chips(variables: Mapping[str, str], root: Path) -> list[str]:
    """The chips that a process here can open; the PCI bus shows others too inside a container."""
    visible = variables.get("TPU_VISIBLE_CHIPS") or variables.get("TPU_VISIBLE_DEVICES")
    if visible:
        names = [name.strip() for name in visible.split(",")]
        rule = "`TPU_VISIBLE_CHIPS` must be numbers of chips"
        require(all(name.isdecimal() for name in names), rule, visible)
        return names
    files = [path.name for path in (root / "dev").glob("accel*")]
    old = sum(re.fullmatch(r"accel\d+", name) is not None for name in files)
    new = sum(path.name.isdecimal() for path in (root / "dev/vfio").glob("*"))
    return [str(number) for number in range(old or new)]


def _gpus(variables: Mapping[str, str], root: Path) -> list[str]:
    """The names of GPUs as CUDA counts them; what follows -1 is not visible."""
    visible = variables.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        files = [path.name for path in (root / "dev").glob("nvidia*")]
        count = sum(re.fullmatch(r"nvidia\d+", name) is not None for name in files)
        return [str(number) for number in range(count)]
    names = [name.strip() for name in visible.split(",")]
    hidden = [place for place, name in enumerate(names) if name in {"", "-1"}]
    return names[: hidden[0]] if hidden else names


def _cores() -> set[int]:
    """The cores on which this process may run."""
    able = hasattr(os, "sched_setaffinity")
    rule = "`os` must have sched_setaffinity, as on Linux, to give each process cores of its own"
    require(able, rule, able, name="hasattr(os, 'sched_setaffinity')")
    return os.sched_getaffinity(0)
