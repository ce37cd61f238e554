"""README's code runs, and prints what README says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def ran(code):
    """What a block of README's code prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocks():
    readme = (ROOT / "README.md").read_text("utf-8")
    return readme, re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)


@pytest.mark.slow
def test_readme_example_prints_what_it_says():
    readme, (code,) = blocks()
    said = re.search(
        r"prints `(\S+)`; with the static gate `w` in the place of `r`, `(\S+)`", readme
    )
    assert said is not None
    assert float(ran(code)) <= 1e-15
    assert float(said[1]) <= 1e-15
    assert code.count("mix(r,") == 1
    assert float(ran(code.replace("mix(r,", "mix(w,"))) == float(said[2])


def test_readme_commands_exist():
    readme = (ROOT / "README.md").read_text("utf-8")
    targets = set(re.findall(r"^    make (\S+)", readme, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert targets == {"compare", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "experiments/README.md"])
def test_links_to_files_lead_somewhere_and_nothing_is_left_to_fill_in(page):
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("https://"):
            assert ((ROOT / page).parent / target).exists(), target
    assert not re.findall(r"^[A-Z_]{4,}$", text, flags=re.MULTILINE)
