"""Run folders on object stores, `gs://` and `s3://`, beside those on a disk.

`objects` are the objects of a bucket and their conditional writes, `lease` is the right of one
process to write a folder, and `folders` the paths that the rest of the package reads and writes.
"""

from dfm_jax.storage.folders import Folder, StorePath, run_folder
from dfm_jax.storage.lease import Lease, acquired
from dfm_jax.storage.objects import Objects, open_bucket

__all__ = ["Folder", "Lease", "Objects", "StorePath", "acquired", "open_bucket", "run_folder"]
