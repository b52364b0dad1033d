"""The demo's byte-level transformer, with a dense FFN or experts in every layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anabranch.experts import DynamicMoE, Routing, entropy_loss, load_balance_loss, route_top_k, route_top_p
from anabranch.plan import Plan

WIDTH, LAYERS, HEADS, CONTEXT = 128, 3, 4, 128
INTERMEDIATE = 256  # of the dense FFN, and of two experts together
EXPERTS = 8
BALANCE, ENTROPY = 0.01, 0.02  # loss coefficients, ours: the paper did not release its own

ROUTERS: dict[str, Callable[[Tensor], Plan] | None] = {
    "dense": None,
    "top-2": functools.partial(route_top_k, k=2, renormalize=True),
    "top-p": functools.partial(route_top_p, p=0.45, k_max=4),
}


class DenseFFN(nn.Module):
    """SwiGLU, the FFN that the experts are cut from."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Linear(WIDTH, 2 * INTERMEDIATE, bias=False)
        self.down = nn.Linear(INTERMEDIATE, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm attention and FFN."""

    def __init__(self, router: Callable[[Tensor], Plan] | None) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.ffn: DenseFFN | DynamicMoE = (
            DenseFFN() if router is None else DynamicMoE(WIDTH, INTERMEDIATE // 2, EXPERTS, router)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Routing | None]:
        batch, length, _ = x.shape
        heads = self.qkv(self.norm_1(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        if isinstance(self.ffn, DenseFFN):
            return x + self.ffn(self.norm_2(x)), None
        y, routing = self.ffn(self.norm_2(x), return_routing=True)
        return x + y, routing


class ByteModel(nn.Module):
    """Bytes `[B, L]` to logits `[B, L, 256]` and what each layer routed."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block(ROUTERS[variant]) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)
        for weight in (self.embedding.weight, self.position.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, text: Tensor) -> tuple[Tensor, list[Routing]]:
        x = self.embedding(text) + self.position.weight[: text.shape[1]]
        routings = []
        for block in self.blocks:
            x, routing = block(x)
            if routing is not None:
                routings.append(routing)
        return self.head(self.norm(x)), routings


def losses(variant: str, logits: Tensor, targets: Tensor, routings: list[Routing]) -> tuple[Tensor, Tensor]:
    """(bits per byte, loss to minimise): cross entropy, and for experts balance and, for top-p, entropy."""
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss = nats
    for routing in routings:
        loss = loss + BALANCE * load_balance_loss(routing.logits, routing.plan)
        if variant == "top-p":
            loss = loss + ENTROPY * entropy_loss(routing.logits)
    return nats.detach() / math.log(2), loss


def experts_per_byte(routings: list[Routing], shape: torch.Size) -> Tensor:
    """Experts that each byte took, mean over the layers, `[B, L]`; 1 for a dense model."""
    if not routings:
        return torch.ones(shape)
    return torch.stack([r.plan.item_counts().view(shape).float() for r in routings]).mean(0)
