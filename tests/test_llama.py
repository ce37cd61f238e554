"""The transformer's logits against those that Hugging Face's Llama gave at the same weights."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from parity import llama_fixture

from dfm_jax.models import TransformerConfig, transformer

RECORDED = json.loads(llama_fixture.FIXTURE.read_text())["logits"]


def config_of(llama):
    return TransformerConfig(
        num_tokens=llama_fixture.NUM_TOKENS,
        width=llama["hidden_size"],
        num_layers=llama["num_hidden_layers"],
        num_heads=llama["num_attention_heads"],
        num_kv_heads=llama["num_key_value_heads"],
        ffn_width=llama["intermediate_size"],
        rope_base=llama["rope_theta"],
        norm_epsilon=llama["rms_norm_eps"],
        tied=llama["tie_word_embeddings"],
    )


def params_of(tensors):
    """`model.layers.0.mlp.up_proj.weight` [out, in] is layers_0/mlp/up_proj/kernel [in, out]."""
    params = {}
    for name, value in tensors.items():
        path = name.removeprefix("model.").replace("layers.", "layers_").split(".")[:-1]
        node = params
        for part in path:
            node = node.setdefault(part, {})
        if path == ["embed_tokens"]:
            node["embedding"] = value
        elif value.ndim == 1:
            node["scale"] = value
        else:
            node["kernel"] = value.T
    return params


def logits(llama, change=None):
    config = dataclasses.replace(config_of(llama), **change or {})
    params = params_of(llama_fixture.weights(llama))
    network = transformer(config)
    shapes = jax.tree.map(np.shape, jax.eval_shape(network.init, jax.random.key(0)))
    assert shapes == jax.tree.map(np.shape, params)
    return jax.jit(network.apply)(params, llama_fixture.tokens())


@pytest.mark.parametrize("name", RECORDED)
def test_the_logits_are_llamas(name):
    recorded = np.array(RECORDED[name])
    np.testing.assert_allclose(logits(llama_fixture.CONFIGS[name]), recorded, rtol=0, atol=1e-5)
    assert np.ptp(recorded) > 5  # far from a table of zeros


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"rope_base": 3e4}, {"norm_epsilon": 1e-3}, {"causal": False}], ids=str
)
def test_and_of_another_config_they_are_not(change):
    ours = logits(llama_fixture.CONFIGS["tied, grouped"], change)
    assert np.max(np.abs(ours - np.array(RECORDED["tied, grouped"]))) > 1e-3
