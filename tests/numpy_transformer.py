"""The transformer in plain NumPy float64, position by position: slow, and free of jax.

It is written from the equations: pairs are turned as complex numbers, a head at a time, and a
query sums over what it sees in a loop.
"""

import numpy as np


def rms_norm(x, g, epsilon, condition=None, time_proj=None):
    if time_proj is not None:
        g = g * (1 + condition @ time_proj)
    return g * x / np.sqrt(np.mean(x**2) + epsilon)


def silu(x):
    return x / (1 + np.exp(-x))


def turned(head, position, base):
    half = len(head) // 2
    pairs = head[:half] + 1j * head[half:]
    pairs = pairs * np.exp(1j * position * base ** (-np.arange(half) / half))
    return np.concatenate([pairs.real, pairs.imag])


def attention(rows, params, config):
    size = config.width // config.num_heads
    group = config.num_heads // config.kv_heads
    kernel = {name: value["kernel"] for name, value in params.items()}

    def heads(name, position, turn):
        split = np.split(rows[position] @ kernel[name], kernel[name].shape[1] // size)
        return [turned(head, position, config.rope_base) if turn else head for head in split]

    count = len(rows)
    keys = [heads("k_proj", j, True) for j in range(count)]
    values = [heads("v_proj", j, False) for j in range(count)]
    out = []
    for i in range(count):
        mixed = []
        for n, query in enumerate(heads("q_proj", i, True)):
            seen = range(i + 1) if config.causal else range(count)
            weights = [np.exp(query @ keys[j][n // group] / np.sqrt(size)) for j in seen]
            total = sum(weights)
            terms = zip(seen, weights, strict=True)
            mixed.append(sum(w / total * values[j][n // group] for j, w in terms))
        out.append(np.concatenate(mixed) @ kernel["o_proj"])
    return out


def feed_forward(x, params):
    gate, up = x @ params["gate_proj"]["kernel"], x @ params["up_proj"]["kernel"]
    return (silu(gate) * up) @ params["down_proj"]["kernel"]


def time_condition(t, params, width):
    omega = 1000.0 ** (np.arange(width // 2) / (width // 2))
    features = np.concatenate([np.cos(omega * t), np.sin(omega * t)])
    return silu(silu(features @ params["in_proj"]["kernel"]) @ params["out_proj"]["kernel"])


def logits(params, tokens, config, t=None):
    """[N, V] in float64. `params` as `init` names them, layers unrolled."""
    condition = None if t is None else time_condition(t, params["time"], config.width)

    def norm(x, own):
        time_proj = own["time_proj"]["kernel"] if "time_proj" in own else None
        return rms_norm(x, own["scale"], config.norm_epsilon, condition, time_proj)

    embedding = params["embed_tokens"]["embedding"]
    rows = [embedding[token] for token in tokens]
    if config.learned_positions:
        places = params["embed_positions"]["embedding"]
        rows = [row + place for row, place in zip(rows, places[: len(rows)], strict=True)]
    for i in range(config.num_layers):
        layer = params[f"layers_{i}"]
        normed = [norm(row, layer["input_layernorm"]) for row in rows]
        mixed = attention(normed, layer["self_attn"], config)
        rows = [row + m for row, m in zip(rows, mixed, strict=True)]
        normed = [norm(row, layer["post_attention_layernorm"]) for row in rows]
        rows = [row + feed_forward(n, layer["mlp"]) for row, n in zip(rows, normed, strict=True)]
    head = embedding[: config.num_tokens].T if config.tied else params["lm_head"]["kernel"]
    return np.stack([norm(row, params["norm"]) @ head for row in rows])


def loss(params, tokens, targets, config, t=None):
    """The mean of −log p̂(target) over positions, in nats."""
    rows = logits(params, tokens, config, t)
    log_probs = rows - np.log(np.sum(np.exp(rows), axis=1, keepdims=True))
    return -np.mean(log_probs[np.arange(len(targets)), targets])
