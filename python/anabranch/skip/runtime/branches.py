"""What a whole layer gives where it is skipped: the else-branches over a layer's input, in torch's own ops."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anabranch.experts.expert_ffn import Activation
from anabranch.skip.arguments import otherwise_arguments
from anabranch.skip.otherwise import Anchor, CachedDelta, LowRank, Otherwise, SmallFfn


def skipped_output(x: Tensor, otherwise: Otherwise | None, norm: nn.Module) -> Tensor:
    """The output `[B, S, H]` of a layer that is skipped whole; `norm` is its first, for the branches that read it.

    Checked as `gated_ffn` checks its else-branch. Matrices and rows are cast to the dtype of x, as there.

    Raises:
        ValueError: an unknown branch or activation; shapes or devices that do not fit x.
    """
    if otherwise is None:
        return x
    branch = otherwise_arguments("forward", x, otherwise, has_norm=True)
    _, gated, normed, scale = branch.options
    first, second = _matrices(x, otherwise, branch.matrices, gated)
    y = x
    if branch.base is not None:
        base = branch.base.view(x.shape)
        y = x + base if branch.adds_x else base
    if first is None or second is None:
        return y
    hidden = F.linear((norm(x) if normed else x).to(x.dtype), first.to(x.dtype))
    if not isinstance(otherwise, LowRank | SmallFfn):
        pass  # a plain LoRA
    elif gated:
        gate, up = hidden.chunk(2, -1)
        hidden = _activate(gate, otherwise.activation) * up
    else:
        hidden = _activate(hidden, otherwise.activation)
    return y + (scale * F.linear(hidden, second.to(x.dtype))).to(x.dtype)


def _matrices(
    x: Tensor, otherwise: Otherwise, matrices: tuple[Tensor | None, Tensor | None], gated: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The branch's two matrices, `[r, H]` (gated: `[2 r, H]`) and `[H, r]`, or two times None."""
    first, second = matrices
    shapes = [None if each is None else tuple(each.shape) for each in matrices]
    if first is None and second is None:
        return matrices
    size, parts = x.shape[-1], 2 if gated else 1
    if (
        first is None
        or second is None
        or first.dim() != 2
        or tuple(second.shape) != (size, first.shape[0] // parts)
        or tuple(first.shape) != (parts * second.shape[1], size)
    ):
        wanted = f"({'2 r' if gated else 'r'}, {size}) and ({size}, r)"
        raise ValueError(
            f"forward: otherwise, a {type(otherwise).__name__}, has matrices of shapes {shapes[0]} and {shapes[1]}, "
            f"must have {wanted}; give it two that fit the model"
        )
    return first, second


def rows_of(otherwise: Otherwise | None, rows: Tensor, x: Tensor) -> Otherwise | None:
    """The branch for some sequences of the batch x, checked for the whole."""
    otherwise_arguments("forward", x, otherwise, has_norm=True)
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
