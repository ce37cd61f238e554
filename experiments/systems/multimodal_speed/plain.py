"""A plain first version of the work, against which the package's forms are timed.

It is LLaVA for one row, as its equations say, for the parameters of `multimodal(config)`. The batch
is `jax.vmap`, answers are a `jax.lax.scan` over a cache of keys and values, and nothing else is
done for speed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfm_jax.interfaces import Params
from dfm_jax.models.multimodal import MultimodalConfig
from dfm_jax.types import Array
from experiments.systems.multimodal_speed.work import OPTIMIZER

Memory = list[tuple[Array, Array]]  # of each layer, keys and values [T, heads, H]


class TrainingRow(NamedTuple):
    """A conversation: [N] tokens, which of them are learnt, and its picture [H, W, 3]."""

    tokens: Array
    learnt: Array
    picture: Array


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────


def linear(params: Params, x: Array) -> Array:
    """x W + b, or without b."""
    y = x @ params["kernel"]
    return y + params["bias"][None] if "bias" in params else y


def layer_norm(params: Params, x: Array, epsilon: float) -> Array:
    """(x − mean) / √(variance + ε) · g + b."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + epsilon)
    return x * params["scale"][None] + params["bias"][None]


def rms_norm(params: Params, x: Array, epsilon: float) -> Array:
    """x / √(mean x² + ε) · g."""
    x = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + epsilon)
    return x * params["scale"][None]


def attention(q: Array, k: Array, v: Array, visible: Array | None = None) -> Array:
    """softmax(q kᵀ/√H) v for [N, heads, H] and [T, heads, H], as [N, heads · H]."""
    scores = jnp.einsum("nhd,thd->hnt", q, k) / q.shape[-1] ** 0.5
    if visible is not None:
        scores = jnp.where(visible[None], scores, -jnp.inf)
    mixed = jnp.einsum("hnt,thd->nhd", jax.nn.softmax(scores), v)
    return mixed.reshape(q.shape[0], -1)


def rotated(x: Array, positions: Array, base: float) -> Array:
    """Rotary positions of [N, heads, H]."""
    size = x.shape[-1]
    angles = positions[:, None] * base ** -(jnp.arange(0, size, 2) / size)[None]
    angles = jnp.concatenate([angles, angles], axis=-1)[:, None]
    first, second = jnp.split(x, 2, axis=-1)
    return x * jnp.cos(angles) + jnp.concatenate([-second, first], axis=-1) * jnp.sin(angles)


# ── picture → rows in the place of image tokens ───────────────────────────────────────────────────


def picture_rows(params: Params, picture: Array, config: MultimodalConfig) -> Array:
    """The rows [P, width] of a picture: CLIP's features before its last layer, projected."""
    vision, tower = config.vision, params["vision_tower"]
    grid, size = vision.grid, vision.patch_size
    patches = picture.reshape(grid, size, grid, size, 3).swapaxes(1, 2)
    parts = tower["embeddings"]
    h = linear(parts["patch_embedding"], patches.reshape(grid * grid, -1))
    h = jnp.concatenate([parts["class_embedding"][None], h]) + parts["position_embedding"]
    h = layer_norm(tower["pre_layrnorm"], h, vision.norm_epsilon)
    for i in range(vision.num_layers + 1 + config.feature_layer):
        h = tower_layer(tower["encoder"][f"layers_{i}"], h, config)
    projector = params["multi_modal_projector"]
    h = jax.nn.gelu(linear(projector["linear_1"], h[1:]), approximate=False)
    return linear(projector["linear_2"], h)


def tower_layer(params: Params, h: Array, config: MultimodalConfig) -> Array:
    """h + attention(norm h), then h + MLP(norm h)."""
    vision, own = config.vision, params["self_attn"]
    x = layer_norm(params["layer_norm1"], h, vision.norm_epsilon)
    heads = (x.shape[0], vision.num_heads, -1)
    q, k, v = (linear(own[f"{name}_proj"], x).reshape(heads) for name in "qkv")
    h = h + linear(own["out_proj"], attention(q, k, v))
    x = linear(params["mlp"]["fc1"], layer_norm(params["layer_norm2"], h, vision.norm_epsilon))
    return h + linear(params["mlp"]["fc2"], x * jax.nn.sigmoid(1.702 * x))


def embedded(params: Params, tokens: Array, picture: Array, config: MultimodalConfig) -> Array:
    """Rows [N, width] of the text, with those of the picture where its tokens stand."""
    image = tokens == config.image_token
    rows = picture_rows(params, picture, config)[jnp.cumsum(image) - 1]
    words = params["language_model"]["embed_tokens"]["embedding"][tokens]
    return jnp.where(image[:, None], rows, words)


# ── text ──────────────────────────────────────────────────────────────────────────────────────────


def empty_memory(length: int, config: MultimodalConfig) -> Memory:
    """Room for the keys and values of so many tokens."""
    text = config.text
    zeros = jnp.zeros((length, text.num_heads, text.head_size))
    return [(zeros, zeros)] * text.num_layers


def read(
    params: Params, h: Array, memory: Memory, start: Any, config: MultimodalConfig
) -> tuple[Array, Memory]:
    """Read rows [M, width] at positions from `start` on: logits [M, V], and the new memory."""
    text, own = config.text, params["language_model"]
    positions = start + jnp.arange(h.shape[0])
    visible = jnp.arange(memory[0][0].shape[0])[None] <= positions[:, None]
    heads, new = (h.shape[0], text.num_heads, -1), []
    for i, (keys, values) in enumerate(memory):
        layer = own[f"layers_{i}"]
        x = rms_norm(layer["input_layernorm"], h, text.norm_epsilon)
        q, k, v = (linear(layer["self_attn"][f"{n}_proj"], x).reshape(heads) for n in "qkv")
        q, k = (rotated(part, positions, text.rope_base) for part in (q, k))
        keys = jax.lax.dynamic_update_slice_in_dim(keys, k, start, axis=0)
        values = jax.lax.dynamic_update_slice_in_dim(values, v, start, axis=0)
        new.append((keys, values))
        h = h + linear(layer["self_attn"]["o_proj"], attention(q, keys, values, visible))
        x = rms_norm(layer["post_attention_layernorm"], h, text.norm_epsilon)
        mlp = layer["mlp"]
        x = jax.nn.silu(linear(mlp["gate_proj"], x)) * linear(mlp["up_proj"], x)
        h = h + linear(mlp["down_proj"], x)
    h = rms_norm(own["norm"], h, text.norm_epsilon)
    return linear(own["lm_head"], h), new


# ── the two pieces of work ────────────────────────────────────────────────────────────────────────


def loss(params: Params, rows: TrainingRow, config: MultimodalConfig) -> Array:
    """Nats per learnt token of a batch."""

    def one(row: TrainingRow) -> Array:
        h = embedded(params, row.tokens, row.picture, config)
        logits, _ = read(params, h, empty_memory(row.tokens.shape[0], config), 0, config)
        log_probs = jax.nn.log_softmax(logits[:-1])
        nats = -jnp.take_along_axis(log_probs, row.tokens[1:, None], axis=1)[:, 0]
        return jnp.sum(jnp.where(row.learnt[1:], nats, 0.0))

    return jnp.sum(jax.vmap(one)(rows)) / jnp.sum(rows.learnt[:, 1:])


def make_update(
    config: MultimodalConfig, freeze: Sequence[str]
) -> tuple[Callable[[Params], Any], Callable[..., Any]]:
    """params → state, and (state, rows) → (state, loss); a state is (trained, frozen, moments)."""
    rest = {name: value for name, value in OPTIMIZER.items() if name not in ("epsilon", "max_norm")}
    optimizer = optax.chain(
        optax.clip_by_global_norm(OPTIMIZER["max_norm"]),
        optax.adamw(
            **rest,
            eps=OPTIMIZER["epsilon"],
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )

    def begin(params: Params) -> Any:
        frozen = {name: params[name] for name in freeze}
        trained = {name: part for name, part in params.items() if name not in freeze}
        return trained, frozen, optimizer.init(trained)

    @jax.jit
    def update(state: Any, rows: TrainingRow) -> Any:
        trained, frozen, moments = state
        value, grads = jax.value_and_grad(lambda own: loss(own | frozen, rows, config))(trained)
        changes, moments = optimizer.update(grads, moments, trained)
        return (optax.apply_updates(trained, changes), frozen, moments), value

    return begin, update


def answers(
    params: Params,
    prompts: Array,
    lengths: Array,
    pictures: Array,
    *,
    num_new: int,
    config: MultimodalConfig,
) -> Array:
    """The most likely next token, `num_new` times, after each prompt: [B, P] → [B, num_new]."""

    def likeliest(logits: Array) -> Array:
        return jnp.argmax(logits.at[config.image_token].set(-jnp.inf))

    def one(prompt: Array, length: Array, picture: Array) -> Array:
        memory = empty_memory(prompt.shape[0] + num_new - 1, config)
        h = embedded(params, prompt, picture, config)
        logits, memory = read(params, h, memory, 0, config)
        first = likeliest(logits[length - 1])

        def step(carry: Any, number: Array) -> Any:
            token, memory = carry
            h = params["language_model"]["embed_tokens"]["embedding"][token][None]
            logits, memory = read(params, h, memory, length + number, config)
            new = likeliest(logits[0])
            return (new, memory), new

        _, others = jax.lax.scan(step, (first, memory), jnp.arange(num_new - 1))
        return jnp.concatenate([first[None], others])

    return jax.vmap(one)(prompts, lengths, pictures)
