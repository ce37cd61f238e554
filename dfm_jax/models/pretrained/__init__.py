"""Llama-type checkpoints read into our transformer, and written from it.

    checkpoint = open_gguf(path)  # or open_folder(path)
    network, params = transformer(checkpoint.config), llama_params(checkpoint)
    tokenizer = read_tokenizer(path)

A reader turns its file into the same list: tensors by their Hugging Face names, each read when it
is asked for. What a file asks for and this transformer cannot do is refused by name.
"""

from dfm_jax.models.pretrained.checkpoint import Checkpoint
from dfm_jax.models.pretrained.folder import open_folder, write_folder
from dfm_jax.models.pretrained.gguf_file import open_gguf
from dfm_jax.models.pretrained.llama import llama_params, llama_tensors
from dfm_jax.models.pretrained.tokenizer import Tokenizer, read_tokenizer, read_tokenizer_json

__all__ = [
    "Checkpoint",
    "Tokenizer",
    "llama_params",
    "llama_tensors",
    "open_folder",
    "open_gguf",
    "read_tokenizer",
    "read_tokenizer_json",
    "write_folder",
]
