"""A plain PyTorch training loop for `benchmarks/gpu.py`: torch.compile, SDPA, fused AdamW.

    python benchmarks/plain_torch.py VOCAB LAYERS EMBED HEADS HEAD_DIM MLP ROWS LENGTH STEPS

Parameters are float32 and products bfloat16 (autocast). Prints one JSON object.
"""

import json
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Rotates [B, H, S, D] by position."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Layer(nn.Module):
    """One pre-norm layer: attention and SwiGLU."""

    def __init__(self, embed: int, heads: int, head_dim: int, mlp: int) -> None:
        """Makes the parameters."""
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.attention_norm, self.mlp_norm = nn.RMSNorm(embed), nn.RMSNorm(embed)
        self.qkv = nn.Linear(embed, 3 * heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, embed, bias=False)
        self.gate_up = nn.Linear(embed, 2 * mlp, bias=False)
        self.down = nn.Linear(mlp, embed, bias=False)

    def forward(self, x: Any, cos: Any, sin: Any) -> Any:
        """Maps [B, S, E] to itself."""
        rows, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(rows, length, 3, self.heads, self.head_dim)
        q, k, v = (z.transpose(1, 2) for z in qkv.unbind(2))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(out.transpose(1, 2).reshape(rows, length, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class Model(nn.Module):
    """A decoder with a head of its own."""

    def __init__(
        self, vocab: int, layers: int, embed: int, heads: int, head_dim: int, mlp: int
    ) -> None:
        """Makes the parameters."""
        super().__init__()
        self.head_dim = head_dim
        self.embedding = nn.Embedding(vocab, embed)
        self.layers = nn.ModuleList(Layer(embed, heads, head_dim, mlp) for _ in range(layers))
        self.norm = nn.RMSNorm(embed)
        self.head = nn.Linear(embed, vocab, bias=False)

    def forward(self, tokens: Any, targets: Any) -> Any:
        """Returns the mean loss."""
        half = self.head_dim // 2
        steps = torch.arange(half, device=tokens.device) / half
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        angle = positions[:, None] * 10000.0**-steps
        cos, sin = angle.cos(), angle.sin()
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = self.head(self.norm(x)).float()
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main() -> None:
    """Trains and prints tokens per second and the largest memory."""
    *shape, rows, length, steps = map(int, sys.argv[1:])
    if not torch.cuda.is_available():
        sys.exit("torch finds no GPU")
    device = torch.device("cuda")
    torch.set_float32_matmul_precision("high")
    model = Model(*shape).to(device)
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), 3e-4, (0.9, 0.95), weight_decay=0.1, fused=True
    )
    tokens = torch.randint(0, shape[0], (2, rows, length), device=device)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(tokens[0], tokens[1])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / steps
    actual = {"version": torch.__version__, "tokens_per_second": rows * length / seconds}
    print(json.dumps(actual | {"bytes": torch.cuda.max_memory_allocated()}))


if __name__ == "__main__":
    main()
