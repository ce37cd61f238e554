"""What may stand in a script or a YAML file: one line of printable characters, or it is refused.

A folder's name may hold anything but "/" and NUL. A line break in the header of a SLURM script
would begin a line of its own, which bash executes; what some readers of YAML take for a line break
(CR, U+0085, U+2028) would change a name or break the file. Nobody means such a name, so it is
refused here, once, before any writer sees it.
"""

from collections.abc import Sequence

from dfm_jax.checks import require
from dfm_jax.launch.jobs import Job


def check_line(name: str, text: str) -> None:
    """`text` is one line of printable characters, in Python's sense of the word."""
    require(text.isprintable(), f"`{name}` must be one line of printable characters", text)


def check_job_lines(jobs: Sequence[Job]) -> None:
    """So are every word, name and folder of every job."""
    for job in jobs:
        check_line("name", job.name)
        check_line("run", str(job.folder))
        for word in job.arguments:
            check_line("arguments", word)
