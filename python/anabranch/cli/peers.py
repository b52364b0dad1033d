"""What the expert FFN is compared with: a composition of torch's ops, and transformers' default experts function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def torch_experts(x: Tensor, gate_up: Tensor, down: Tensor, tokens: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """Sorted pairs and torch's own grouped product: the shortest composition without this library.

    Args:
        x: `[T, H]`; gate_up, down: as `expert_ffn`.
        tokens, experts, weights: `[S]`, one (token, expert, weight) per pair, in any order and number per token.
    """
    sorted_experts, order = experts.sort(stable=True)
    # No bincount: it copies a size to the host on CUDA, and then nothing could be captured in a graph.
    every = torch.arange(gate_up.shape[0], device=x.device)
    ends = torch.searchsorted(sorted_experts, every, right=True, out_int32=True)
    rows = tokens[order]
    gate, up = F.grouped_mm(x[rows], gate_up.mT, offs=ends).chunk(2, -1)
    out = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends)
    return torch.zeros_like(x).index_add(0, rows, out * weights[order, None])


def transformers_experts(
    gate_up: Tensor, down: Tensor, *, sentinels: bool = False
) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """transformers' default experts function, (x, top-k ids, top-k weights) -> y; None where it is not installed.

    Args:
        sentinels: whether an id of E may stand for "no expert". transformers looks for them only under its own expert
            parallelism, so that is what it is told.
    """
    try:
        from transformers.integrations import moe
    except ImportError:
        return None
    experts: Any = nn.Module()
    experts.num_experts, experts.act_fn = gate_up.shape[0], nn.SiLU()
    # Not registered as parameters: plain attributes, so that autograd sees the benchmark's own tensors.
    experts.__dict__["gate_up_proj"], experts.__dict__["down_proj"] = gate_up, down
    experts.has_bias = experts.is_transposed = experts.has_post_expert_norm = False
    experts._is_expert_parallel = sentinels
    experts.has_gate = experts.is_concatenated = True
    experts._apply_gate = lambda hidden: moe._default_apply_gate(experts, hidden)
    return lambda x, ids, weights: moe.grouped_mm_experts_forward(experts, x, ids, weights)
