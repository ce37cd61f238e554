"""Whether the memory that a program frees stays with the process; how much it took at most.

Each step of a program on a CPU frees large buffers and asks for the same ones again. glibc returns
such buffers to the system, which then clears every page before it gives it out again. Commands
therefore keep their buffers; an import never changes the allocator of a process. Without glibc, or
with an accelerator, nothing is changed. `experiments.training_speed` measures both.
"""

import ctypes
import os
import sys
from importlib.util import find_spec
from pathlib import Path

# The names and numbers of glibc's <malloc.h>; see mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_SETTINGS = (
    (_M_MMAP_MAX, 0),  # large buffers come from the heap, like others
    (_M_TRIM_THRESHOLD, 2**31 - 1),  # the heap is not given back
    (_M_TOP_PAD, 2**26),  # it grows by 64 MB at a time
    (_M_ARENA_MAX, 1),  # all threads share it: one finds what another has freed
)


def keep_buffers() -> bool:
    """Keep freed memory in this process, for its next buffers; return whether this was done.

    Call it before jax computes anything: buffers of earlier allocations stay as they were. The
    process then keeps the most memory that it has used, and some more, because freed buffers of
    different sizes leave gaps. Nothing is done without glibc, if jax may use an accelerator, or if
    the environment says how to allocate: by variables such as `MALLOC_ARENA_MAX`, by
    `GLIBC_TUNABLES`, or by another allocator in `LD_PRELOAD`.
    """
    if not sys.platform.startswith("linux") or _is_told(os.environ) or not _on_cpu():
        return False
    process = ctypes.CDLL(None)
    if not hasattr(process, "gnu_get_libc_version"):
        return False
    taken = [process.mallopt(name, value) == 1 for name, value in _SETTINGS]
    return all(taken)


def peak_memory() -> int | None:
    """The most memory of this process that was resident at one time, in bytes; None if unknown."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 2**10
    return None


def _is_told(environ: "os._Environ[str]") -> bool:
    """Whether the user has chosen an allocator, or how glibc's works."""
    return (
        any(name.startswith("MALLOC_") for name in environ)
        or "glibc.malloc" in environ.get("GLIBC_TUNABLES", "")
        or "malloc" in environ.get("LD_PRELOAD", "")
    )


def _on_cpu() -> bool:
    """Whether jax will compute on the CPU, found out without a start of jax."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return find_spec("libtpu") is None and find_spec("jax_plugins") is None
