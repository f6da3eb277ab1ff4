"""The same decoder in plain PyTorch, as one would write it for speed: SDPA, torch.compile, fused AdamW, autocast.

Weights are float32 and matmuls bfloat16 by autocast, as ours are; in float32 where the model says so.
"""

import contextlib
import functools
import os
import resource
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tools.bench_device import steps_of


class Attention(nn.Module):
    """Grouped-query attention, causal over whole rows, with rotary positions in halves."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        self.heads, self.kv_heads, self.width = shape["num_heads"], shape["num_kv_heads"], shape["head_dim"]
        project = functools.partial(nn.Linear, shape["embed_dim"], bias=False)
        self.query = project(self.heads * self.width)
        self.key, self.value = project(self.kv_heads * self.width), project(self.kv_heads * self.width)
        self.output = nn.Linear(self.heads * self.width, shape["embed_dim"], bias=False)

    def forward(self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """x [B, T, D] → [B, T, D]."""
        batch, length, _ = x.shape

        def heads(y: torch.Tensor, count: int) -> torch.Tensor:
            return y.view(batch, length, count, self.width).transpose(1, 2)

        q, k = rotated(heads(self.query(x), self.heads), angles), rotated(heads(self.key(x), self.kv_heads), angles)
        v = heads(self.value(x), self.kv_heads)
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.output(o.transpose(1, 2).reshape(batch, length, -1))


def rotated(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """x [B, N, T, H], pairs being its two halves."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Layer(nn.Module):
    """Attention and SwiGLU, each after an RMSNorm and added to its input."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        width, inner, epsilon = shape["embed_dim"], shape["mlp_dim"], shape["norm_epsilon"]
        self.input_norm, self.mlp_norm = nn.RMSNorm(width, epsilon), nn.RMSNorm(width, epsilon)
        self.attention = Attention(shape)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """x [B, T, D] → [B, T, D]."""
        x = x + self.attention(self.input_norm(x), angles)
        y = self.mlp_norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    """Tokens [B, T] and targets [B, T] → mean cross-entropy."""

    def __init__(self, shape: dict[str, Any], length: int):
        super().__init__()
        self.embedding = nn.Embedding(shape["vocab_size"], shape["embed_dim"])
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape["num_layers"]))
        self.final_norm = nn.RMSNorm(shape["embed_dim"], shape["norm_epsilon"])
        self.head = nn.Linear(shape["embed_dim"], shape["vocab_size"], bias=False)
        if shape["tie_embeddings"]:
            self.head.weight = self.embedding.weight
        pairs = torch.arange(0, shape["head_dim"], 2) / shape["head_dim"]
        turns = torch.outer(torch.arange(length), shape["rope_theta"] ** -pairs)
        self.register_buffer("cos", turns.cos(), persistent=False)
        self.register_buffer("sin", turns.sin(), persistent=False)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=shape["init_std"])

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, (self.cos, self.sin))
        return functional.cross_entropy(self.head(self.final_norm(x)).flatten(0, 1), targets.flatten())


def measure(shape: dict[str, Any], batch: int, length: int, steps: int) -> dict[str, float]:
    """Seconds a step and peak memory of updates on random rows of one document each.

    Args:
      shape: fields of a `DecoderConfig`.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with device:
        model = Model(shape, length)
        rows = torch.randint(shape["vocab_size"], (batch, length + 1))
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    loss_of: Callable = torch.compile(model) if cuda else model
    dtype = getattr(torch, shape["dtype"])
    lower = contextlib.nullcontext if dtype == torch.float32 else functools.partial(torch.autocast, device.type, dtype)

    def step() -> float:
        adamw.zero_grad(set_to_none=True)
        with lower():
            loss = loss_of(rows[:, :-1], rows[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        # As ours, which says its metrics: the step has ended when the loss is read.
        return loss.item()

    found = steps_of(step, steps)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found | {"peak_bytes": peak, "parameters": sum(weight.numel() for weight in model.parameters())}
