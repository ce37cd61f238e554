#!/usr/bin/env bash
# tensorstore: what a refused conditional write returns is, as the next condition, no condition.
#
# One would guess that `write(key, value, if_equal=generation)` raises if the version is another one,
# or that the generation which it returns can be given as the next condition, as can be that of any
# other write.
# What happens: nothing is raised. The generation of a refused write is b"", and `if_equal=b""` is
# the same as no condition: the next write replaces whatever is there. It is also not the condition
# "there must be no such key", which is the generation that a read of a missing key returns.
# Who is hurt: whoever replaces a manifest or takes a lock with conditional writes in a loop, on a
# disk, in memory, on S3 or on Google Cloud Storage; tensorstore lies below orbax. What another
# process has written is lost, and both are told that they succeeded. (dfm_jax uses another library
# for its leases, which raises.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check tensorstore==0.1.86 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/store/" <<'PYTHON'
import sys
from importlib.metadata import version

import tensorstore as ts

print("tensorstore", version("tensorstore"))
for spec in ({"driver": "memory"}, {"driver": "file", "path": sys.argv[1]}):
    store = ts.KvStore.open(spec).result()
    known = store.write("manifest", b"first").result().generation
    store.write("manifest", b"of another process").result()
    refused = store.write("manifest", b"mine", if_equal=known).result().generation
    kept = store.read("manifest").result().value
    store.write("manifest", b"mine", if_equal=refused).result()
    left = store.read("manifest").result().value
    print(f"{spec['driver']}: refused, which returns {refused} and leaves {kept}")
    print(f"  the next write, on the condition {refused}, leaves {left}")
    assert (refused, kept, left) == (b"", b"of another process", b"mine"), "this has changed"
PYTHON
