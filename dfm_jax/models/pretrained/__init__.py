"""Llama-type checkpoints read into our transformer, and written from it.

    checkpoint = open_gguf(path)  # or open_folder(path), or open_folder("org/name")
    network, params = transformer(checkpoint.config), checkpoint_params(checkpoint)
    tokenizer = read_tokenizer(path)

Each reader gives the same list: tensors by their Hugging Face names, each read only when it is
needed. If a file needs something that this transformer cannot do, the error names it.
"""

from dfm_jax.models.pretrained.checkpoint import Checkpoint as Checkpoint
from dfm_jax.models.pretrained.families import checkpoint_params as checkpoint_params
from dfm_jax.models.pretrained.families import checkpoint_tensors as checkpoint_tensors
from dfm_jax.models.pretrained.folder import open_folder as open_folder
from dfm_jax.models.pretrained.folder import write_folder as write_folder
from dfm_jax.models.pretrained.gguf_file import open_gguf as open_gguf
from dfm_jax.models.pretrained.tokenizer import Tokenizer as Tokenizer
from dfm_jax.models.pretrained.tokenizer import read_tokenizer as read_tokenizer
from dfm_jax.models.pretrained.tokenizer import read_tokenizer_json as read_tokenizer_json
