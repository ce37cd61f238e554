"""README's code runs, and prints what README says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def ran(*codes):
    """What each of the blocks of code prints, a line, one after the other in one process."""
    program = f"for code in {codes!r}:\n    exec(code, {{'__name__': '__main__'}})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ
        | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""},  # what a reader will see
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


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
    assert code.count("mix(r,") == 1
    right, static = ran(code, code.replace("mix(r,", "mix(w,"))
    assert float(right) <= 1e-15
    assert float(said[1]) <= 1e-15
    assert float(static) == float(said[2])


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
