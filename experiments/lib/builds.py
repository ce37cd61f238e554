"""An earlier build of the package as a further side: a commit, with its own programs."""

import contextlib
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dfm_jax.checks import require

CHECKOUT = Path(__file__).parents[2]
PROGRAMS = {  # of our side: the module, in today's builds and before studies were packages
    "benchmarks": ("experiments.benchmarks.ours", "experiments.benchmarks_ours"),
    "training_speed": ("experiments.training_speed.jax_side", "experiments.training_speed_jax"),
    "clustering": ("experiments.clustering.methods", "experiments.clustering_methods"),
}


class Build(NamedTuple):
    """A commit, and the folder that holds its `dfm_jax` and its `experiments`."""

    commit: str  # all 40 digits
    folder: Path

    def command(self, study: str, *arguments: str) -> list[str]:
        """The command of our side of a study, to be run in the build's folder.

        Each build is timed by its own program, which knows its names; the connection is the same.
        `-m` puts the folder first, before an installed package.
        """
        today, earlier = PROGRAMS[study]
        whole = self.folder.joinpath(*earlier.split(".")).with_suffix(".py").is_file()
        return [sys.executable, "-m", earlier if whole else today, *arguments]


def commit_of(name: str) -> str:
    """The 40 digits of a commit of this checkout.

    Raises:
        ValueError: if there is no such commit here.
    """
    command = ["git", "rev-parse", "--quiet", "--verify", "--end-of-options", f"{name}^{{commit}}"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    then = "A shallow clone lacks older commits: `git fetch --unshallow`."
    require(done.returncode == 0, "`before` must be a commit of this checkout", name, then=then)
    return done.stdout.strip()


@contextlib.contextmanager
def unpacked(name: str) -> Iterator[Build | None]:
    """The build of a commit in a folder that is removed afterwards; None for an empty name.

    Raises:
        ValueError: if there is no such commit here, or if `dfm_jax` is imported from elsewhere.
    """
    if not name:
        yield None
        return
    commit = commit_of(name)
    command = ["git", "archive", "--format=tar", commit, "dfm_jax", "experiments"]
    archive = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="before-") as place:
        folder = Path(place).resolve()
        with tarfile.open(fileobj=io.BytesIO(archive)) as members:
            members.extractall(folder, filter="data")
        where = _imported([sys.executable, "-c", "import dfm_jax; print(dfm_jax.__file__)"], folder)
        rule = "`before` must be imported from where it was unpacked"
        require(folder in Path(where).resolve().parents, rule, where, name="dfm_jax")
        yield Build(commit, folder)


def _imported(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or [""])[-1]
