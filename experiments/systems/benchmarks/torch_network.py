"""The network of the peer of "Euler with a model": our shape, in plain PyTorch."""

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

NUM_LAYERS, WIDTH, NUM_HEADS, FFN = 4, 256, 8, 704


class Block(torch.nn.Module):
    """Attention over all positions, then SwiGLU, each after an RMSNorm."""

    def __init__(self):
        super().__init__()
        self.norms = torch.nn.ModuleList([torch.nn.RMSNorm(WIDTH, eps=1e-5) for _ in range(2)])
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = torch.nn.Linear(WIDTH, 2 * FFN, bias=False)
        self.down = torch.nn.Linear(FFN, WIDTH, bias=False)

    def forward(self, h, cos, sin):
        """Map [B, N, width] to the same shape."""
        batch, length, _ = h.shape
        q, k, v = (
            x.view(batch, length, NUM_HEADS, -1).transpose(1, 2)
            for x in self.qkv(self.norms[0](h)).chunk(3, dim=-1)
        )

        def turned(x):
            first, second = x.chunk(2, dim=-1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

        mixed = F.scaled_dot_product_attention(turned(q), turned(k), v)
        h = h + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        gate, up = self.up(self.norms[1](h)).chunk(2, dim=-1)
        return h + self.down(F.silu(gate) * up)


class Network(torch.nn.Module):
    """Tokens [B, N] to logits [B, N, V], in both directions, the head tied."""

    def __init__(self, num_tokens, length):
        super().__init__()
        self.embedding = torch.nn.Embedding(num_tokens, WIDTH)
        torch.nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)
        self.blocks = torch.nn.ModuleList([Block() for _ in range(NUM_LAYERS)])
        self.norm = torch.nn.RMSNorm(WIDTH, eps=1e-5)
        half = WIDTH // NUM_HEADS // 2
        angles = torch.arange(length)[:, None] * 10_000.0 ** -(torch.arange(half) / half)
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, tokens):
        """Map [B, N] to [B, N, V]."""
        h = self.embedding(tokens)
        for block in self.blocks:
            h = block(h, self.cos, self.sin)
        return F.linear(self.norm(h), self.embedding.weight)
