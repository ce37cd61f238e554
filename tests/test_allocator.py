"""Buffers that are kept: fewer page faults, nothing by an import, left alone where told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfm_jax import allocator

on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="keeps buffers on Linux alone"
)

# The faults of twenty buffers of 8 MB, each freed before the next one, after a first one.
PROGRAM = """
import ctypes, resource
{first}
process = ctypes.CDLL(None)
process.malloc.restype, process.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
process.free.argtypes, process.memset.argtypes = [ctypes.c_void_p], [
    ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def touch():
    buffer = process.malloc(2**23)
    process.memset(buffer, 1, 2**23)
    process.free(buffer)
process.mallopt(-3, 2**17)  # glibc's first threshold for large buffers, no longer adapted
{then}
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEP = "from dfm_jax.allocator import keep_buffers; assert keep_buffers()"
PAGES = 20 * 2**23 // os.sysconf("SC_PAGE_SIZE")


def faults(then: str, first: str = "") -> int:
    environ = {name: x for name, x in os.environ.items() if not name.startswith("MALLOC_")}
    environ |= {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.pthread.rseq=1"}
    program = PROGRAM.format(first=first, then=then)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@on_linux
def test_kept_buffers_are_not_faulted_in_again() -> None:
    assert faults(KEEP) < PAGES / 100


@on_linux
def test_an_import_changes_nothing() -> None:
    assert faults("", first="import dfm_jax, dfm_jax.allocator, dfm_jax.cli") > PAGES / 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_ARENA_MAX", "2"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
        ("LD_PRELOAD", "/usr/lib/libtcmalloc.so.4"),
        ("JAX_PLATFORMS", "tpu,cpu"),
        ("JAX_PLATFORMS", "cuda"),
    ],
)
def test_what_the_environment_says_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("it asked for mallopt"))
    for one in [one for one in os.environ if one.startswith("MALLOC_")]:
        monkeypatch.delenv(one)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv(name, value)
    assert not allocator.keep_buffers()


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_is_told", lambda _: False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_buffers()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_buffers()


@on_linux
def test_the_peak_is_of_the_most_that_was_resident() -> None:
    before = resident()
    block = bytearray(2**28)
    block[:: 2**12] = b"x" * len(block[:: 2**12])
    peak = allocator.peak_memory()
    assert peak is not None
    assert peak >= before + 2**28 - SLACK
    del block
    later = allocator.peak_memory()
    assert later is not None
    assert abs(later - peak) < SLACK
    assert resident() <= peak + SLACK


SLACK = 2**23  # the kernel counts pages for each processor, and adds them up late


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize(("option", "kept"), [((), True), (("--no-keep-buffers",), False)])
def test_a_command_keeps_its_buffers_and_says_its_peak(option: tuple[str, ...], kept: bool) -> None:
    environ = {name: x for name, x in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-m", "dfm_jax", "verify", "--labels", "Q1", "--instances", "16"]
    done = subprocess.run(
        [*command, *option],
        env=environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("GiB of memory, freed buffers included." in done.stderr) == kept
