"""README's code runs, and prints what README says."""

import re
import subprocess
import sys
from pathlib import Path

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


def test_readme_example_prints_what_it_says():
    readme, (code, _) = blocks()
    exact, static = map(float, ran(code).split())
    said = re.search(r"prints `(\S+)` and `(\S+)`", readme)
    assert said is not None
    assert exact <= 1e-15
    assert float(said[1]) <= 1e-15
    assert static == float(said[2])


def test_readme_draws_what_it_says():
    readme, (_, code) = blocks()
    said = re.search(r"prints `(\(.*?\))`", readme)
    assert said is not None
    assert ran(code).strip() == said[1]


def test_readme_commands_exist():
    readme = (ROOT / "README.md").read_text("utf-8")
    targets = set(re.findall(r"^    make (\S+)", readme, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert targets == {"compare", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
