"""The peer of `training_speed`: the same Llama, loss and AdamW step in plain PyTorch.

    PYTHON -P experiments/systems/training_speed/torch_side.py FOLDER SIDE

`training_speed` runs it with the Python of another environment, which has PyTorch and NumPy but not
this package. It is usual PyTorch code: fused attention, norm, loss and optimizer. It reads commands
as lines of JSON, and answers each with one line.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]


class Block(torch.nn.Module):
    """One layer, its parameters named as Hugging Face names them."""

    def __init__(self, work):
        super().__init__()
        width, ffn, kv = work["width"], work["ffn_width"], work["kv_width"]
        linear = lambda i, o: torch.nn.Linear(i, o, bias=False)  # noqa: E731
        attention = {"q_proj": (width, width), "k_proj": (width, kv), "v_proj": (width, kv)}
        attention["o_proj"] = (width, width)
        mlp = {"gate_proj": (width, ffn), "up_proj": (width, ffn), "down_proj": (ffn, width)}
        self.self_attn = torch.nn.ModuleDict({n: linear(*s) for n, s in attention.items()})
        self.mlp = torch.nn.ModuleDict({n: linear(*s) for n, s in mlp.items()})
        self.input_layernorm = torch.nn.RMSNorm(width, eps=work["norm_epsilon"])
        self.post_attention_layernorm = torch.nn.RMSNorm(width, eps=work["norm_epsilon"])
        self.head_size = work["head_size"]

    def forward(self, h, cos, sin):
        """Map [B, N, width] to the same shape."""
        batch, length, width = h.shape

        def heads(x):
            return x.view(batch, length, -1, self.head_size).transpose(1, 2)

        def rotated(x):
            first, second = x.chunk(2, dim=-1)
            return x * cos + torch.cat([-second, first], dim=-1) * sin

        x = self.input_layernorm(h)
        q, k, v = (heads(self.self_attn[f"{name}_proj"](x)) for name in "qkv")
        mixed = F.scaled_dot_product_attention(
            rotated(q), rotated(k), v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
        h = h + self.self_attn["o_proj"](mixed.transpose(1, 2).reshape(batch, length, width))
        x = self.post_attention_layernorm(h)
        inner = F.silu(self.mlp["gate_proj"](x)) * self.mlp["up_proj"](x)
        return h + self.mlp["down_proj"](inner)


class Llama(torch.nn.Module):
    """Tokens [B, N] to logits [B, N, V], the head tied to the embedding."""

    def __init__(self, work):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(work["num_tokens"], work["width"])
        self.layers = torch.nn.ModuleList([Block(work) for _ in range(work["num_layers"])])
        self.norm = torch.nn.RMSNorm(work["width"], eps=work["norm_epsilon"])
        size = work["head_size"]
        exponents = torch.arange(0, size, 2) / size
        angles = torch.arange(work["num_positions"])[:, None] * work["rope_base"] ** -exponents
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens):
        """Map [B, N] to [B, N, V]."""
        h = self.embed_tokens(tokens)
        for layer in self.layers:
            h = layer(h, self.cos, self.sin)
        return F.linear(self.norm(h), self.embed_tokens.weight)


class Training:
    """Weights, batches and optimizer of one side."""

    def __init__(self, folder, *, compiled):
        self.work = json.loads((folder / "work.json").read_text())
        torch.set_num_threads(self.work["num_threads"])
        model = Llama(self.work)
        weights = np.load(folder / "weights.npz")
        state = {n.removeprefix("model."): torch.tensor(weights[n]) for n in weights.files}
        model.load_state_dict(state)
        decays = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        adamw = self.work["adamw"]
        self.optimizer = torch.optim.AdamW(
            [{"params": decays}, {"params": others, "weight_decay": 0.0}],
            lr=adamw["learning_rate"],
            betas=(adamw["b1"], adamw["b2"]),
            eps=adamw["epsilon"],
            weight_decay=adamw["weight_decay"],
            fused=True,
        )
        self.parameters = [*model.parameters()]
        self.model = torch.compile(model) if compiled else model
        tokens = torch.tensor(np.load(folder / "tokens.npy"), dtype=torch.int64)
        # The first token is given: its row sees itself, and does not count.
        self.inputs = torch.cat([tokens[:, :, :1], tokens[:, :, :-1]], dim=-1)
        self.targets = tokens.clone()
        self.targets[:, :, 0] = -100
        self.count = 0

    def loss(self):
        """The loss of the next batch."""
        i = self.count % len(self.inputs)
        self.count += 1
        logits = self.model(self.inputs[i])
        return F.cross_entropy(logits.flatten(0, 1), self.targets[i].flatten())

    def forward(self):
        """A loss without its gradient."""
        with torch.no_grad():
            return self.loss().item()

    def gradient(self):
        """A loss and its gradient."""
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.item()

    def step(self):
        """A whole update, with the norm of the gradient clipped."""
        loss = self.gradient()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.work["adamw"]["max_norm"])
        self.optimizer.step()
        return loss

    def products(self):
        """The matrix products of a step, each with new operands of the right shape."""
        for a, b in self.pairs:
            torch.mm(a, b)
        return 0.0

    def prepare_products(self):
        """One product of each shape in the work."""
        self.pairs = [(torch.rand(m, k), torch.rand(k, n)) for m, k, n in self.work["products"]]


def serve(training):
    """Answer commands until the input ends: {"phase", "steps"} → losses, seconds, faults."""
    training.prepare_products()
    for line in sys.stdin:
        order = json.loads(line)
        phase = getattr(training, order["phase"])
        before, losses, seconds = resource.getrusage(resource.RUSAGE_SELF), [], []
        for _ in range(order["steps"]):
            start = time.perf_counter()
            losses.append(float(phase()))
            seconds.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        answer = {"losses": losses, "seconds": seconds, "cpu": cpu}
        answer["faults"] = after.ru_minflt - before.ru_minflt
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    threads = json.loads((Path(sys.argv[1]) / "work.json").read_text())["num_threads"]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    serve(Training(Path(sys.argv[1]), compiled=sys.argv[2] == "torch.compile"))
