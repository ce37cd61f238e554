"""The transformer: its contracts, and its equation against a plain NumPy float64 network."""

import jax
import pytest

from dfm_jax.models import TransformerConfig, transformer

SMALL = {"num_tokens": 11, "width": 32, "num_layers": 2, "num_heads": 4, "ffn_width": 48}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_tokens": 0}, "`num_tokens` must be at least 1; it is 0"),
        ({"num_states": 13}, "`num_states` must be V = 11, or 12 with a mask; it is 13"),
        ({"num_heads": 5}, "`width` must be a multiple of `num_heads` = 5; it is 32"),
        ({"num_kv_heads": 3}, "`num_heads` must be a multiple of `num_kv_heads` = 3; it is 4"),
        ({"num_heads": 32}, "`width / num_heads` must be even.*; it is 1"),
        ({"max_positions": 0}, "`max_positions` must be at least 1; it is 0"),
        ({"rope_base": 0.0}, "`rope_base` must lie in"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\); it is 1.0"),
        ({"compute_dtype": "half"}, "`compute_dtype` must be one of float32, .*; it is 'half'"),
        ({"attention": "flash"}, "`attention` must be one of einsum, xla, cudnn; it is 'flash'"),
        ({"compute_dtype": "float64", "attention": "xla"}, '`attention` must be "einsum"'),
    ],
)
def test_a_bad_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**SMALL | change)


@pytest.mark.parametrize(
    ("change", "x_t", "t", "message"),
    [
        ({}, [3, 11], None, r"`x_t` must hold ids in \[0, 10\]"),
        ({}, [-1], None, r"`x_t` must hold ids in \[0, 10\]"),
        ({}, [3], 0.5, "`t` must be None: the network is not conditioned on time; it is '0.5'"),
        ({"time_conditioned": True}, [3], None, "`t` must be given"),
        ({"max_positions": 2}, [3, 3, 3], None, "at most `max_positions` = 2 tokens.*; it is 3"),
        ({}, [[3]], None, r"`x_t` must be one sequence \[N\]; its axes; it is 2"),
    ],
)
def test_a_bad_input_is_refused(change, x_t, t, message):
    network = transformer(TransformerConfig(**SMALL | change))
    with pytest.raises(ValueError, match=message):
        network.apply({}, jax.numpy.array(x_t), t)
