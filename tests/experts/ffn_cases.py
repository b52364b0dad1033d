"""Random experts with a plan, and what expert_ffn of them is by definition."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from anabranch import Plan, plan

BY_TORCH = {
    "identity": lambda v: v,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "relu": torch.relu,
    "relu2": lambda v: torch.relu(v) ** 2,
}


def pair_loop(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    routed: Plan,
    *,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    activation: str = "silu",
    gated: bool = True,
    interleaved: bool = False,
    transposed: bool = False,
    zero_experts: int = 0,
    identity_experts: int = 0,
    expert_widths: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition, one pair at a time, differentiable by torch."""
    if transposed:
        gate_up, down = gate_up.mT, down.mT
    experts, inner = gate_up.shape[0], down.shape[2]
    y = torch.zeros(x.shape[0], down.shape[1], dtype=x.dtype)
    offsets = routed.group_offsets.tolist()
    for g in range(routed.num_groups):
        for e in range(offsets[g], offsets[g + 1]):
            t = int(routed.item_ids[e])
            weight = 1.0 if routed.weights is None else routed.weights[e].to(x.dtype)
            if g < experts:
                pre = gate_up[g] @ x[t] + (0 if gate_up_bias is None else gate_up_bias[g])
                if gated:
                    halves = (pre[0::2], pre[1::2]) if interleaved else (pre[:inner], pre[inner:])
                    hidden = BY_TORCH[activation](halves[0]) * halves[1]
                else:
                    hidden = BY_TORCH[activation](pre)
                if expert_widths is not None:
                    hidden = hidden * (torch.arange(inner) < expert_widths[g])
                out = down[g] @ hidden + (0 if down_bias is None else down_bias[g])
            else:
                out = x[t] if g >= experts + zero_experts else torch.zeros_like(y[t])
            y = y.index_add(0, torch.tensor([t]), (weight * out)[None])
    return y


def make(
    items: int = 7,
    features: int = 5,
    inner: int = 9,
    out: int = 5,
    experts: int = 4,
    extra_groups: int = 0,
    *,
    gated: bool = True,
    transposed: bool = False,
    bias: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[dict[str, torch.Tensor], Plan]:
    rows = (2 if gated else 1) * inner
    tensors = {
        "x": torch.randn(items, features),
        "gate_up_proj": torch.randn(experts, *((features, rows) if transposed else (rows, features))) * 0.5,
        "down_proj": torch.randn(experts, *((inner, out) if transposed else (out, inner))) * 0.5,
    }
    if bias:
        tensors |= {"gate_up_bias": torch.randn(experts, rows), "down_bias": torch.randn(experts, out)}
    tensors = {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}
    mask = torch.rand(items, experts + extra_groups) < 0.4
    mask[:, 1] = False  # an expert without entries
    scores = torch.rand(items, experts + extra_groups, dtype=dtype).requires_grad_()
    tensors["weights"] = scores
    return tensors, plan.from_mask(mask, scores)


def call(function: Any, tensors: dict[str, torch.Tensor], routed: Plan, **options: Any) -> torch.Tensor:
    names = {"gate_up_proj": "gate_up", "down_proj": "down"} if function is pair_loop else {}
    arguments = {names.get(k, k): v for k, v in tensors.items() if k != "weights"}
    x, gate_up, down = (arguments.pop(k) for k in list(arguments)[:3])
    return function(x, gate_up, down, routed, **arguments, **options)
