"""Launch many commands that share nothing: here, or by files for SLURM and Kubernetes."""

from dfm_jax.launch.devices import DeviceSet as DeviceSet
from dfm_jax.launch.devices import device_kind as device_kind
from dfm_jax.launch.devices import device_sets as device_sets
from dfm_jax.launch.devices import gpu_sets as gpu_sets
from dfm_jax.launch.jobs import Job as Job
from dfm_jax.launch.jobs import data_loads as data_loads
from dfm_jax.launch.jobs import experts_of as experts_of
from dfm_jax.launch.jobs import logs_folder as logs_folder
from dfm_jax.launch.jobs import sweep_jobs as sweep_jobs
from dfm_jax.launch.jobs import train_jobs as train_jobs
from dfm_jax.launch.jobset import Pods as Pods
from dfm_jax.launch.jobset import jobset_text as jobset_text
from dfm_jax.launch.local import Row as Row
from dfm_jax.launch.local import planned_rows as planned_rows
from dfm_jax.launch.local import read_summary as read_summary
from dfm_jax.launch.local import run_jobs as run_jobs
from dfm_jax.launch.local import summary_text as summary_text
from dfm_jax.launch.local import write_summary as write_summary
from dfm_jax.launch.slurm import Allocation as Allocation
from dfm_jax.launch.slurm import max_array_size as max_array_size
from dfm_jax.launch.slurm import slurm_text as slurm_text
from dfm_jax.launch.slurm import slurm_texts as slurm_texts
