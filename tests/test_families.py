"""Checkpoints of Llama, Qwen, CLIP, LLaVA and InternVL, as Hugging Face writes them: its logits,
gradients and greedy answers in float64; round trips; what is refused.
"""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import families_fixture as fixture
from parity.recorded import differences
from safetensors.numpy import load_file, save_file

from dfm_jax.models import TransformerConfig, num_parameters, transformer, transformer_decoder
from dfm_jax.models.multimodal import (
    SYSTEMS,
    MultimodalConfig,
    VisionConfig,
    flops_per_row,
    multimodal,
    multimodal_decoder,
    num_multimodal_parameters,
    num_vision_parameters,
    vision_tower,
)
from dfm_jax.models.pretrained import (
    checkpoint_params,
    checkpoint_tensors,
    open_folder,
    write_folder,
)
from dfm_jax.sampling import sample_autoregressive

KINDS = json.loads(fixture.FIXTURE.read_text())["kinds"]
READERS = [name for name in KINDS if name != "clip"]
NO_PICTURES = jnp.zeros((0, 1, 1, 3))


def saved(path, name, *, change=None, tensors=None):
    """A folder as transformers writes it, with the weights of the fixture."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(KINDS[name]["config"] | (change or {})))
    save_file(tensors or fixture.weights(KINDS[name]["shapes"]), path / "model.safetensors")
    return path


def in_float64(config, **options):
    options = {"compute_dtype": "float64"} | options
    if isinstance(config, MultimodalConfig):
        return replace(
            config, text=replace(config.text, **options), vision=replace(config.vision, **options)
        )
    return replace(config, **options)


def opened(path, **options):
    checkpoint = open_folder(path)
    config = in_float64(checkpoint.config, **options)
    return config, checkpoint_params(checkpoint._replace(config=config), dtype=jnp.float64)


def applied(config):
    """(params, tokens, pictures) → logits, for either kind of network."""
    if isinstance(config, MultimodalConfig):
        return multimodal(config).apply
    network = transformer(config)
    return lambda params, tokens, pictures: network.apply(params, tokens)


def prompts_of(name, config):
    """Prompts, what Hugging Face gave for them, and their pictures."""
    multi = isinstance(config, MultimodalConfig)
    each = config.features_per_picture if multi else 0
    for prompt, tokens in fixture.prompts(each).items():
        seen = fixture.pictures(config.vision.image_size) if multi else NO_PICTURES
        seen = seen if prompt == "two pictures" else seen[:0]
        yield np.array(tokens), jnp.asarray(seen), KINDS[name]["prompts"][prompt]


@pytest.mark.parametrize("name", READERS)
def test_logits_and_loss_are_those_that_hugging_face_gave(name, tmp_path, x64):
    config, params = opened(saved(tmp_path / "folder", name))
    apply = jax.jit(applied(config))
    for tokens, pictures, given in prompts_of(name, config):
        logits = apply(params, tokens, pictures)
        rows = np.array(given["logits"])
        np.testing.assert_allclose(logits[-len(rows) :, : rows.shape[1]], rows, rtol=0, atol=1e-6)
        nats = -jax.nn.log_softmax(logits)[np.arange(len(tokens) - 1), tokens[1:]].sum()
        np.testing.assert_allclose(nats, given["loss"], rtol=1e-6)
        assert np.ptp(rows) > 1  # far from a table of zeros
        assert given["padded"] < 1e-6  # there, padding on the left changes nothing either
        if len(pictures):
            others = apply(params, tokens, pictures[::-1])
            assert abs(others[-1] - logits[-1]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_gradients_are_those_that_hugging_face_gave(name, tmp_path, x64):
    config, params = opened(saved(tmp_path / "folder", name))
    apply = applied(config)
    tokens, pictures, given = next(prompts_of(name, config))

    @jax.jit
    @jax.grad
    def gradient(params):
        log_probs = jax.nn.log_softmax(apply(params, tokens, pictures))
        return -log_probs[np.arange(len(tokens) - 1), tokens[1:]].sum()

    found = dict(checkpoint_tensors(config, gradient(params)))
    assert found.keys() == given["gradients"].keys()
    for tensor, number in given["gradients"].items():
        along = (found[tensor] * fixture.direction(tensor, found[tensor].shape)).sum()
        np.testing.assert_allclose(along, number, rtol=1e-5, atol=1e-5, err_msg=tensor)


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", READERS)
def test_greedy_answers_are_those_that_hugging_face_gave(name, tmp_path, x64):
    config, params = opened(saved(tmp_path / "folder", name))
    multi = isinstance(config, MultimodalConfig)
    decoder = multimodal_decoder(config) if multi else transformer_decoder(config)
    for tokens, pictures, given in prompts_of(name, config):
        cache = decoder.init_cache(len(tokens) + fixture.NEW_TOKENS)
        if multi:
            cache = decoder.read_prefix(params, cache, pictures)

        @jax.jit
        def step(cache, tokens):
            logits, cache = decoder.extend(params, cache, tokens)
            return jnp.argmax(logits[-1].at[fixture.IMAGE_TOKEN].set(-jnp.inf)), cache

        answer = []
        for _ in range(fixture.NEW_TOKENS):
            token, cache = step(cache, tokens)
            answer.append(int(token))
            tokens = token[None]
        assert answer == given["greedy"]


@pytest.mark.slow
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["qwen3", "llava", "internvl"])
def test_a_batch_draws_what_each_row_draws(name, tmp_path, x64):
    """Rows with other pictures, of other lengths; the loop is written for the batch at once."""
    config, params = opened(saved(tmp_path / "folder", name))
    multi = isinstance(config, MultimodalConfig)
    decoder = multimodal_decoder(config) if multi else transformer_decoder(config)
    (tokens, pictures, _), *_ = prompts_of(name, config)
    prompts = np.stack([tokens, np.where(tokens == 5, 9, tokens)])
    lengths = np.array([len(tokens), len(tokens) - 1])
    prefixes = jnp.stack([pictures, pictures[::-1]]) if multi else None

    def drawn(decoder):
        return sample_autoregressive(
            jax.random.key(0),
            params,
            decoder,
            prompts,
            lengths,
            max_new=20,
            temperature=0.0,
            **({} if prefixes is None else {"prefixes": prefixes}),
        )

    one_by_one = drawn(decoder._replace(batched=None))
    np.testing.assert_array_equal(drawn(decoder).tokens, one_by_one.tokens)


@pytest.mark.parametrize("scanned", [False, True])
def test_clips_image_features_are_those_that_hugging_face_gave(scanned, tmp_path, x64):
    given = KINDS["clip"]
    config, params = opened(saved(tmp_path / "folder", "clip"), scan_layers=scanned)
    assert isinstance(config, VisionConfig)
    tower, pictures = vision_tower(config), fixture.pictures(config.image_size)
    pooled = jax.jit(jax.vmap(tower.pooled, (None, 0)))(params, pictures)
    np.testing.assert_allclose(pooled, given["pooled"], rtol=0, atol=1e-6)
    features = jax.jit(tower.features, static_argnums=2)(params, pictures[0], -2)
    features = features[:, : fixture.COLUMNS]
    np.testing.assert_allclose(features, given["features"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["qwen2", "llava", "internvl, norms"])
def test_scanned_and_recomputed_layers_hold_the_same_numbers(name, tmp_path, x64):
    path = saved(tmp_path / "folder", name)
    plain, params = opened(path)
    scanned, stacked = opened(path, scan_layers=True, remat=True)
    tokens, pictures, _ = next(prompts_of(name, plain))
    expected = jax.jit(applied(plain))(params, tokens, pictures)
    found = jax.jit(applied(scanned))(stacked, tokens, pictures)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_is_what_was_read(name, tmp_path):
    checkpoint = open_folder(saved(tmp_path / "folder", name))
    params = checkpoint_params(checkpoint)
    path = write_folder(tmp_path / "new", checkpoint.config, params, like=checkpoint)
    again = open_folder(path)
    assert again.config == checkpoint.config
    tensors = load_file(path / "model.safetensors")
    assert {name: list(x.shape) for name, x in tensors.items()} == KINDS[name]["shapes"]
    jax.tree.map(np.testing.assert_array_equal, checkpoint_params(again), params)


@pytest.mark.parametrize("name", KINDS)
def test_a_drawn_network_has_the_leaves_of_a_read_one(name, tmp_path):
    checkpoint = open_folder(saved(tmp_path / "folder", name))
    config = checkpoint.config
    if isinstance(config, VisionConfig):
        network = vision_tower(config)
    else:
        multi = isinstance(config, MultimodalConfig)
        network = multimodal(config) if multi else transformer(config)
    drawn = jax.eval_shape(network.init, jax.random.key(0))
    read = checkpoint_params(checkpoint)
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, read)
    counts = {
        VisionConfig: num_vision_parameters,
        MultimodalConfig: num_multimodal_parameters,
        TransformerConfig: num_parameters,
    }
    assert counts[type(config)](config) == sum(leaf.size for leaf in jax.tree.leaves(read))


@pytest.mark.parametrize(
    ("name", "count", "features"),
    [("llava-1.5-7b", 7_063_427_072, 576), ("internvl2.5-1b", 938_193_024, 256)],
)
def test_the_systems_have_the_sizes_of_their_public_checkpoints(name, count, features):
    """Half the bytes of their half-precision files, and the image tokens that a picture takes."""
    config = SYSTEMS[name]
    drawn = jax.eval_shape(multimodal(config).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(drawn)) == count
    assert num_multimodal_parameters(config) == count
    assert config.features_per_picture == features


def test_the_flops_of_a_row_are_those_of_its_products():
    """XLA counts a few more, of norms and softmax."""
    text = TransformerConfig(
        num_tokens=512, width=256, num_layers=2, num_heads=4, ffn_width=512, tied=False
    )
    vision = VisionConfig(
        image_size=64, patch_size=8, width=256, num_layers=3, num_heads=4, ffn_width=512
    )
    config = MultimodalConfig(text=text, vision=vision, image_token=7)
    network = multimodal(config)
    params = jax.eval_shape(network.init, jax.random.key(0))
    pictures = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    shapes = (jax.ShapeDtypeStruct((192,), jnp.int32), pictures)
    cost = jax.jit(network.apply).lower(params, *shapes).compile().cost_analysis()
    # Blocks of causal attention meet fewer keys than the full square, which the formula counts.
    assert 0.95 < cost["flops"] / flops_per_row(config, 192, 2) < 1.1


def test_a_head_that_is_said_to_be_tied_must_be(tmp_path):
    tensors = fixture.weights(KINDS["internvl"]["shapes"])
    embedding = "language_model.model.embed_tokens.weight"
    same = tensors | {"language_model.lm_head.weight": tensors[embedding].copy()}
    assert open_folder(saved(tmp_path / "same", "internvl", tensors=same)).config.text.tied
    other = tensors | {"lm_head.weight": tensors[embedding] + 1}
    with pytest.raises(ValueError, match=r"`language_model\.lm_head\.weight` .* must equal the"):
        open_folder(saved(tmp_path / "other", "internvl", tensors=other))


def test_names_of_other_writers_are_known(tmp_path):
    """Public files of LLaVA have the tower one level deeper; others the names of the classes."""
    tensors = fixture.weights(KINDS["llava"]["shapes"])
    plain = checkpoint_params(open_folder(saved(tmp_path / "plain", "llava")))
    deeper = {
        name.replace("vision_tower.", "vision_tower.vision_model."): x
        for name, x in tensors.items()
    }
    deeper["vision_tower.vision_model.embeddings.position_ids"] = np.arange(10)[None]
    classes = {
        f"model.{name}".replace("model.language_model.model.", "model.language_model.").replace(
            "model.language_model.lm_head", "lm_head"
        ): x
        for name, x in tensors.items()
    }
    for name, found in (("deeper", deeper), ("classes", classes)):
        params = checkpoint_params(open_folder(saved(tmp_path / name, "llava", tensors=found)))
        jax.tree.map(np.testing.assert_array_equal, params, plain)


def natively_saved(path, name):
    """The weights of the fixture as the authors of InternVL keep them."""
    given = KINDS[name]["config"]
    text, vision = given["text_config"], given["vision_config"]
    tensors = fixture.weights(KINDS[name]["shapes"])
    width = vision["hidden_size"]
    ours = {
        "vision_model.embeddings.class_embedding": "vision_tower.embeddings.cls_token",
        "vision_model.embeddings.position_embedding": "vision_tower.embeddings.position_embeddings",
    }
    for part in ("weight", "bias"):
        there = f"vision_model.embeddings.patch_embedding.{part}"
        ours[there] = f"vision_tower.embeddings.patch_embeddings.projection.{part}"
        for number, layer in ((0, "layer_norm"), (1, "linear_1"), (3, "linear_2")):
            ours[f"mlp1.{number}.{part}"] = f"multi_modal_projector.{layer}.{part}"
    native = {}
    for i in range(vision["num_hidden_layers"]):
        there, here = f"vision_model.encoder.layers.{i}", f"vision_tower.encoder.layer.{i}"
        ours |= {f"{there}.ls{j}": f"{here}.lambda_{j}" for j in (1, 2)}
        for part in ("weight", "bias"):
            pairs = (("norm1", "layernorm_before"), ("norm2", "layernorm_after"))
            pairs += (("attn.proj", "attention.projection_layer"), ("mlp.fc1", "mlp.fc1"))
            for a, b in (*pairs, ("mlp.fc2", "mlp.fc2")):
                ours[f"{there}.{a}.{part}"] = f"{here}.{b}.{part}"
            parts = [tensors.get(f"{here}.attention.{x}_proj.{part}") for x in "qkv"]
            if parts[0] is not None:
                native[f"{there}.attn.qkv.{part}"] = np.concatenate(parts)
        for norm in ("q_norm", "k_norm"):
            ours[f"{there}.attn.{norm}.weight"] = f"{here}.attention.{norm}.weight"
    native |= {there: tensors[here] for there, here in ours.items() if here in tensors}
    native |= {n: x for n, x in tensors.items() if n.startswith("language_model.")}
    head, embedding = (f"language_model.{at}.weight" for at in ("lm_head", "model.embed_tokens"))
    native.setdefault(head, tensors[embedding].copy())
    settings = {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 32,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "torch_dtype": "bfloat16",
        "transformers_version": None,
        "llm_config": text | {"tie_word_embeddings": True, "num_beams": 1, "pruned_heads": {}},
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "image_size": 32,
            "patch_size": 8,
            "num_channels": 3,
            "hidden_size": width,
            "intermediate_size": vision["intermediate_size"],
            "num_hidden_layers": vision["num_hidden_layers"],
            "num_attention_heads": vision["num_attention_heads"],
            "hidden_act": "gelu",
            "norm_type": vision["norm_type"],
            "qkv_bias": vision["attention_bias"],
            "qk_normalization": vision["use_qk_norm"],
            "layer_norm_eps": 1e-6,
            "drop_path_rate": 0.1,
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "initializer_factor": 1.0,
            "use_flash_attn": True,
            "use_bfloat16": True,
        },
    }
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    (path / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": fixture.IMAGE_TOKEN}))
    save_file(native, path / "model.safetensors")
    return path


@pytest.mark.parametrize("name", ["internvl", "internvl, norms"])
def test_the_authors_own_form_of_internvl_is_the_same_network(name, tmp_path):
    plain = open_folder(saved(tmp_path / "folder", name))
    native = open_folder(natively_saved(tmp_path / "native", name))
    vision = replace(native.config.vision, drop_path=0.0)
    text = replace(native.config.text, tied=plain.config.text.tied)
    assert replace(native.config, vision=vision, text=text) == plain.config
    assert native.config.vision.drop_path == 0.1
    params = checkpoint_params(native)
    head = params["language_model"]["lm_head"]["kernel"]
    embedding = params["language_model"]["embed_tokens"]["embedding"]
    if plain.config.text.tied:  # the authors' classes know no tied head
        np.testing.assert_array_equal(head, embedding.T)
        del params["language_model"]["lm_head"]
    jax.tree.map(np.testing.assert_array_equal, params, checkpoint_params(plain))


def test_an_internvl_without_its_image_token_or_of_the_first_version_is_refused(tmp_path):
    path = natively_saved(tmp_path / "native", "internvl")
    said = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(said | {"ps_version": "v1"}))
    with pytest.raises(ValueError, match=r"`ps_version` of .* must be 'v2', because 'v1' turns"):
        open_folder(path)
    (path / "config.json").write_text(json.dumps(said))
    (path / "added_tokens.json").unlink()
    with pytest.raises(ValueError, match="must hold a value of `image_token_id`"):
        open_folder(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llava", {"image_token_index": None}, "`image_token_index` of .* must be given"),
        ("llava", {"vision_feature_layer": [-2, -1]}, "`vision_feature_layer` .* one number"),
        ("llava", {"projector_hidden_act": "relu"}, "`projector_hidden_act` of .* must be 'gelu'"),
        ("internvl", {"downsample_ratio": 0.4}, "`downsample_ratio` of .* 1 over a whole number"),
        ("internvl", {"text_config": {"model_type": "gpt2"}}, "`model_type` of `text_config` of"),
        ("clip", {"hidden_act": "relu"}, "`hidden_act` of .* must be one of quick_gelu, gelu"),
        ("qwen2", {"use_sliding_window": True}, "`use_sliding_window` of .* must be False"),
        ("qwen2", {"num_key_value_heads": None}, "must hold a value of `num_key_value_heads`"),
        ("qwen3", {"attention_bias": True}, "`attention_bias` of .* must be False"),
    ],
)
def test_what_asks_for_another_network_is_refused_by_name(name, change, message, tmp_path):
    path = saved(tmp_path / "folder", name, change=change)
    with pytest.raises(ValueError, match=message):
        open_folder(path)


@pytest.mark.slow
def test_more_image_tokens_than_pictures_have_features_are_refused(tmp_path):
    checkpoint = open_folder(saved(tmp_path / "folder", "llava"))
    config, params = checkpoint.config, checkpoint_params(checkpoint)
    tokens = np.array([5, *[fixture.IMAGE_TOKEN] * 10, 6])
    message = "image tokens must be at most 9 for each picture, which is 9; got .* = 10"
    with pytest.raises(ValueError, match=message):
        multimodal(config).apply(params, tokens, jnp.zeros((1, 24, 24, 3)))


@pytest.mark.slow
def test_rows_of_a_packed_sequence_do_not_see_each_other(tmp_path):
    checkpoint = open_folder(saved(tmp_path / "folder", "llava"))
    config, params = checkpoint.config, checkpoint_params(checkpoint)
    apply, pictures = jax.jit(multimodal(config).apply), fixture.pictures(24).astype(np.float32)
    first, second = [5, *[fixture.IMAGE_TOKEN] * 9, 7, 8], [9, *[fixture.IMAGE_TOKEN] * 9, 3]
    segments = np.array([0] * len(first) + [1] * len(second))
    packed = apply(params, np.array(first + second), pictures, segments=segments)
    alone = [
        apply(params, np.array(row), picture[None])
        for row, picture in zip((first, second), pictures, strict=True)
    ]
    np.testing.assert_allclose(packed, np.concatenate(alone), rtol=0, atol=2e-6)
    mixed = apply(params, np.array(first + second), pictures)
    assert abs(mixed[-1] - packed[-1]).max() > 1e-2


def test_what_a_peer_gives_otherwise_is_seen():
    kept = {"versions": {"a": "1"}, "rows": [{"x": 1.0, "y": [1, 2]}]}
    same = {"versions": {"a": "2"}, "rows": [{"x": 1.0 + 1e-9, "y": [1, 2]}]}
    assert not list(differences(kept, same, 1e-6))
    for other in ({"x": 1.1, "y": [1, 2]}, {"x": 1.0, "y": [1, 3]}, {"x": 1.0, "y": [1]}, {}):
        assert list(differences(kept, {"versions": {}, "rows": [other]}, 1e-6))


@pytest.mark.slow
def test_drop_path_leaves_out_branches_of_late_layers_more_often():
    """The rate grows to the last layer, whose branches a third of all draws leave out."""
    vision = VisionConfig(
        image_size=16,
        patch_size=8,
        width=8,
        num_layers=3,
        num_heads=2,
        ffn_width=8,
        drop_path=1 / 3,
    )
    tower = vision_tower(vision)
    params = tower.init(jax.random.key(0))
    picture = jnp.asarray(fixture.pictures(16, 1)[0], jnp.float32)
    plain = tower.features(params, picture)

    def with_drops(layer):
        keys = jax.random.split(jax.random.key(1), 4000)
        return jax.jit(jax.vmap(lambda key: tower.features(params, picture, layer, key=key)))(keys)

    drawn, kept = with_drops(-1), with_drops(-2)
    before = tower.features(params, picture, -2)  # what the last layer adds to
    same = np.asarray(jnp.all(drawn == kept, axis=(1, 2)))  # both branches of the last layer
    assert abs(same.mean() - 1 / 9) < 4 * (8 / 81 / 4000) ** 0.5
    assert abs(drawn - plain[None]).max() > 1e-2
    assert abs(kept - before[None]).max() > 1e-2
    scanned = vision_tower(replace(vision, scan_layers=True))
    stacked = stack_encoder(params)
    first = jax.random.split(jax.random.key(1), 4000)[0]
    found = scanned.features(stacked, picture, key=first)
    np.testing.assert_allclose(found, drawn[0], rtol=0, atol=1e-5)


def stack_encoder(params):
    layers = [params["encoder"][f"layers_{i}"] for i in range(len(params["encoder"]))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return params | {"encoder": {"layers": stacked}}
