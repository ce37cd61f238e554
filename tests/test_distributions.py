"""The wheel alone, in an environment with nothing else; and the source distribution."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from experiments.lib.corpora import write_texts

ROOT = Path(__file__).parents[1]
PIP = ("-m", "pip", "--disable-pip-version-check", "-q")
PINS = ROOT / ("constraints-newest.txt" if sys.version_info >= (3, 12) else "constraints.txt")
SMALL = [
    *("--config", "tiny", "--set", "num_steps=4", "batch_size=2", "num_positions=16"),
    *("model.width=8", "model.num_heads=2", "model.num_layers=1", "model.ffn_width=8"),
]

pytestmark = [pytest.mark.slow, pytest.mark.wheel]


def done(*command: str | Path, **options) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build leaves folders where it works."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("dfm_jax", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        done("cp", "-r", ROOT / name, copy)
    done(sys.executable, *PIP, "wheel", "--no-deps", "-w", out, copy)
    (path,) = out.glob("*.whl")
    return path


class Command:
    """`dfm_jax` of an environment that has the wheel and what it requires, in a folder of texts."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.work = folder / "work"
        self.bin = folder / "env" / "bin"
        venv.create(folder / "env", with_pip=True)
        done(self.bin / "python", *PIP, "install", "-c", PINS, wheel)
        write_texts(self.work / "texts")
        for number, path in enumerate(sorted((self.work / "texts").iterdir())):
            part = self.work / "parts" / f"expert_{number % 2:03d}"
            part.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, part)

    def __call__(self, *args: str, status: int = 0) -> str:
        here = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ran = subprocess.run(
            [self.bin / "dfm_jax", *args],
            cwd=self.work,
            env=here | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == status, ran.stderr
        return ran.stderr if status else ran.stdout


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory) -> Command:
    return Command(wheel, tmp_path_factory.mktemp("alone"))


def test_the_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    there = {p.relative_to(ROOT).as_posix() for p in (ROOT / "dfm_jax").rglob("*.py")}
    assert {n for n in names if n.endswith(".py")} == there
    assert "dfm_jax/py.typed" in names
    assert {n.partition("/")[0].partition("-")[0] for n in names} == {"dfm_jax"}


def test_a_wheel_alone_verifies_trains_mixes_judges_and_draws(command):
    doctor = command("doctor")
    assert "make " not in doctor
    assert "`pip install 'dfm_jax[data,hf,hub,stores]'`" in doctor
    verified = command("verify", "--labels", "D7", "--instances", "16")
    assert "1 statement, 1 of them proved in Coq, float64" in verified
    for expert in ("0", "1"):
        where = ["--data", "parts", "--run", "run", "--expert", expert]
        assert "finished at step 4" in command("train", *where, *SMALL)
    command("make-ensemble", "--run", "run")
    assert len(command("evaluate", "--run", "run").splitlines()) == 4  # a head, experts, ensemble
    drawn = command("sample", "--run", "run", "--prompt", "the word", "--max-new", "3")
    assert drawn.startswith("the word")
    assert (
        "--array=0-1"
        in command(
            "launch",
            "slurm",
            "--data",
            "parts",
            "--run",
            "run",
            "--config",
            "tiny",
            "--out",
            "jobs.sh",
        )
        + (command.work / "jobs.sh").read_text()
    )


def test_what_needs_an_extra_names_it(command):
    options = ["--input", "texts", "--encoder", "tfidf", "--num-experts", "2", "--out", "made"]
    line = command("partition", *options, status=2)
    assert "is needed, but it is not installed: `pip install 'dfm_jax[data]'`." in line


RENDERED = """
import sys
from email import message_from_file
from readme_renderer import markdown

about = message_from_file(sys.stdin)
assert about["Description-Content-Type"] == "text/markdown"
html = markdown.render(about.get_payload())
assert html is not None, "a package index would refuse it"
print(html)
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> dict[str, str]:
    """An environment with what builds a source distribution, and what an index renders with."""
    folder = tmp_path_factory.mktemp("tools")
    needed = ["setuptools>=77", "readme_renderer[md]"]
    done(sys.executable, *PIP, "install", "-c", PINS, "--target", folder, *needed)
    return os.environ | {"PYTHONPATH": str(folder)}


def check_description(about: str, tools: dict[str, str]) -> None:
    """What an index shows: it is rendered, and each link leads to a page of the web."""
    page = done(sys.executable, "-c", RENDERED, input=about, env=tools)
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "<code>docs/guides/pods.md</code>" in page
    assert "![" not in page
    assert "](" not in page


def test_the_description_has_no_link_to_a_file(wheel, tools):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        check_description(archive.read(name).decode(), tools)


def test_the_source_distribution_is_the_checkout(tmp_path, tools):
    if not (ROOT / ".git").exists():
        pytest.skip("the files of a checkout are not listed outside of one")
    listed = done("git", "-C", ROOT, "ls-files").splitlines()
    for name in listed:
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "copy" / name)
    build = "from setuptools import build_meta; build_meta.build_sdist('..')"
    done(sys.executable, "-c", build, cwd=tmp_path / "copy", env=tools)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2]: name for name in archive.getnames()}
        about = archive.extractfile(inside["PKG-INFO"])
        assert about is not None
        check_description(about.read().decode(), tools)
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert set(listed) - inside.keys() == set()
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    # Without git, too, the guards know the files; all tests pass there, but take minutes.
    done(sys.executable, "-m", "pytest", "-q", "tests/test_architecture.py", cwd=unpacked)
