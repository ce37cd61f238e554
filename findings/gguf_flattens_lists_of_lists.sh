#!/usr/bin/env bash
# gguf: a list of lists in the metadata is written with its nesting, and read back as one flat list.
#
# One would guess that a value which GGUFWriter accepts is what GGUFReader gives back.
# What happens: the format has arrays of arrays, the writer stores [[1, 2], [3, 4]] as one, and the
# field's contents() is [1, 2, 3, 4]. Nothing is said. Where inner lists differ in length, as in
# [["a", "b"], ["c"]], no reader can tell any more which value belonged to which.
# Who is hurt: whoever stores pairs or rows with a model, such as the merges of a tokenizer, which
# tokenizer.json holds as pairs today, and decodes them by what contents() returns. (dfm_jax refuses
# merges of a file that are not strings of two tokens each, as such a flat list is.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/model.gguf" <<'PYTHON'
import sys
from importlib.metadata import version

import gguf

print("gguf", version("gguf"))
written = {"boxes": [[1, 2], [3, 4]], "merges": [["a", "b"], ["c"]]}
writer = gguf.GGUFWriter(sys.argv[1], "llama")
for name, value in written.items():
    writer.add_array(name, value)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
reader = gguf.GGUFReader(sys.argv[1])
for name, value in written.items():
    field = reader.fields[name]
    kinds = [kind.name for kind in field.types]
    print(f"{name}: written {value}, stored as {kinds}, read {field.contents()}")
    assert kinds[:2] == ["ARRAY", "ARRAY"], "this has changed"
    assert field.contents() == [one for inner in value for one in inner], "this has changed"
PYTHON
