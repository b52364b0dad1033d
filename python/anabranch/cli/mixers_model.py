"""The mixers demo's byte-level transformer: one set of sub-layers, between plain residuals or on residual streams."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anabranch.mixers import HyperConnection, HyperConnectionSequence, expand_streams, reduce_streams

WIDTH, LAYERS, HEADS, CONTEXT, STREAMS = 256, 4, 4, 128, 4

VARIANTS: dict[str, Any] = {
    "plain": None,
    "HC": "hc",
    "mHC-20": "mhc",
    "mHC-exact": "mhc_exact",
    "mHC-lite": "mhc_lite",
    "Cayley": "jpmhc",
}
"""Name and the kind of `HyperConnection`."""

Build = Callable[[list[nn.Module]], nn.Module]


class Attention(nn.Module):
    """Causal, with its norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU, with its norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate_up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.norm(x)).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Residual(nn.Module):
    """`x + f(x)` for one sub-layer after the other."""

    def __init__(self, sublayers: list[nn.Module]) -> None:
        super().__init__()
        self.sublayers = nn.ModuleList(sublayers)

    def forward(self, x: Tensor) -> Tensor:
        for sublayer in self.sublayers:
            x = x + sublayer(x)
        return x


class Streams(nn.Module):
    """The same on residual streams: embeddings are repeated at the start, streams are summed at the end.

    Args:
        options: of every `HyperConnection`.
    """

    def __init__(self, sublayers: list[nn.Module], **options: Any) -> None:
        super().__init__()
        self.sequence = HyperConnectionSequence(
            HyperConnection(sublayer, WIDTH, STREAMS, layer_index=index, **options)
            for index, sublayer in enumerate(sublayers)
        )

    def forward(self, x: Tensor) -> Tensor:
        return reduce_streams(self.sequence(expand_streams(x, STREAMS)))


class ByteModel(nn.Module):
    """Bytes `[B, L]` to logits `[B, L, 256]`. Equal seeds give equal sub-layers, whatever is between them."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)
        sublayers: list[nn.Module] = []
        for _ in range(LAYERS):
            sublayers += [Attention(WIDTH), FeedForward(WIDTH)]
        for weight in (self.embedding.weight, self.position.weight):
            nn.init.normal_(weight, std=0.02)
        self.body = build(sublayers)

    def embed(self, text: Tensor) -> Tensor:
        """`[B, L, WIDTH]`."""
        return self.embedding(text) + self.position.weight[: text.shape[1]]

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.embed(text))))


def build_model(kind: Any) -> ByteModel:
    """With plain residuals for None."""
    return ByteModel(Residual if kind is None else partial(Streams, kind=kind))


def optimizer_of(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW that decays no static part of a hyper-connection, as its paper asks."""
    undecayed = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, HyperConnection)
        for own in module.no_weight_decay()
    }
    named = list(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [one for name, one in named if name not in undecayed]},
        {"params": [one for name, one in named if name in undecayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=0.1)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, rows: Tensor) -> Tensor:
    """One step on bytes `[B, L + 1]`; returns nats per byte."""
    nats = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    nats.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return nats.detach()
