"""What a whole layer gives where it is skipped: the else-branches over a layer's input, in torch's own ops."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anabranch.experts.expert_ffn import Activation
from anabranch.skip.otherwise import Anchor, CachedDelta, LowRank, Otherwise


def skipped_output(x: Tensor, otherwise: Otherwise | None, norm: nn.Module) -> Tensor:
    """The output `[B, S, H]` of a layer that is skipped whole; `norm` is its first, for the branches that read it."""
    if otherwise is None:
        return x
    if isinstance(otherwise, CachedDelta):
        return x + otherwise.delta
    if isinstance(otherwise, Anchor):
        if otherwise.lora_a is None or otherwise.lora_b is None:
            return otherwise.anchor
        return otherwise.anchor + otherwise.scale * F.linear(F.linear(x, otherwise.lora_a), otherwise.lora_b)
    if isinstance(otherwise, LowRank):
        hidden = F.linear(norm(x) if otherwise.normed else x, otherwise.down_proj)
        return x + otherwise.scale * F.linear(_activate(hidden, otherwise.activation), otherwise.up_proj)
    hidden = F.linear(norm(x), otherwise.gate_up_proj)
    if otherwise.gated:
        gate, up = hidden.chunk(2, -1)
        hidden = _activate(gate, otherwise.activation) * up
    else:
        hidden = _activate(hidden, otherwise.activation)
    return x + otherwise.scale * F.linear(hidden, otherwise.down_proj)


def rows_of(otherwise: Otherwise | None, rows: Tensor) -> Otherwise | None:
    """The branch for some sequences of the batch."""
    if isinstance(otherwise, CachedDelta):
        return CachedDelta(otherwise.delta.index_select(0, rows))
    if isinstance(otherwise, Anchor):
        return dataclasses.replace(otherwise, anchor=otherwise.anchor.index_select(0, rows))
    return otherwise


def _activate(x: Tensor, name: Activation) -> Tensor:
    if name == "silu":
        return F.silu(x)
    if name == "gelu":
        return F.gelu(x)
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if name == "relu":
        return F.relu(x)
    if name == "relu2":
        return F.relu(x).square()
    return x


def gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """`x + gate (y - x)` with a gate `[B]`."""
    return x + gate.to(x.dtype)[:, None, None] * (y - x)


def where_rows(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x for the sequences where `condition` `[B]` holds, y for the others."""
    return torch.where(condition[:, None, None], x, y)
