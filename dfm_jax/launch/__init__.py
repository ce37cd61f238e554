"""Many commands that share nothing: on this machine, or as files for SLURM and Kubernetes."""

from dfm_jax.launch.jobs import Job, experts_of, sweep_jobs, train_jobs
from dfm_jax.launch.jobset import Pods, jobset_text
from dfm_jax.launch.local import Row, read_summary, run_jobs, summary_text, write_summary
from dfm_jax.launch.slurm import Allocation, slurm_text

__all__ = [
    "Allocation",
    "Job",
    "Pods",
    "Row",
    "experts_of",
    "jobset_text",
    "read_summary",
    "run_jobs",
    "slurm_text",
    "summary_text",
    "sweep_jobs",
    "train_jobs",
    "write_summary",
]
