"""`grouped_mm`: every group of rows times its own matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anabranch.core.arguments import autocast_dtype, check_floating, check_same_device
from anabranch.core.cost import record
from anabranch.core.library import ops
from anabranch.plan import Plan


def grouped_mm(x: Tensor, w: Tensor, offsets: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """`out[s] = x[s] @ w[g] (+ bias[g])` for the rows `offsets[g] <= s < offsets[g + 1]` of each group g.

    Any sizes, any strides, empty groups, no rows at all. Sums are kept in float32 (float64 for float64).

    Args:
        x: `[S, K]`, float32, float64, bfloat16 or float16.
        w: `[G, K, N]`, the dtype of `x`; for weights stored as `[G, N, K]` pass `w.mT`, which costs nothing.
        offsets: int32 `[G + 1]`, from 0, never decreasing, at most S: `plan.group_offsets`. Rows past `offsets[-1]`
            belong to no group: they are not read, and their output is zero.
        bias: `[G, N]` or None.

    Returns:
        `[S, N]` in the dtype of `x`. Differentiable, twice, in `x`, `w` and `bias`; the gradient of a group without
        rows is exactly zero. Under autocast all operands are cast to the autocast dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; offsets that decrease or leave `[0, S]` (CPU; on a GPU
            they are clamped, since reading them would stall the stream).

    Cost:
        `2 * offsets[-1] * K * N` FLOPs; each touched matrix is read once per 256 rows. A `CostMeter` takes every row
        of x times every matrix for the dense work.
    """
    return _grouped_mm(x, w, offsets, bias, None)


def routed_mm(rows: Tensor, w: Tensor, plan: Plan, *, bias: Tensor | None = None) -> Tensor:
    """`grouped_mm` of rows that were gathered by a plan: a `CostMeter` takes all its items times all its groups, not
    the rows, for the dense work."""
    return _grouped_mm(rows, w, plan.group_offsets, bias, plan.num_items * plan.num_groups)


def _grouped_mm(x: Tensor, w: Tensor, offsets: Tensor, bias: Tensor | None, dense_rows: int | None) -> Tensor:
    op = "grouped_mm"
    check_floating(op, x=x, w=w, bias=bias)
    check_same_device(op, "x", x, w=w, offsets=offsets, bias=bias)
    element_size = w.element_size()
    by_autocast = autocast_dtype(x.device)
    if by_autocast is not None and x.dtype != torch.float64:
        x, w = x.to(by_autocast), w.to(by_autocast)
        bias = None if bias is None else bias.to(by_autocast)
    out = ops.grouped_mm(x, w, offsets, bias)
    num_groups, k, n = w.shape
    record(
        op,
        dense_rows=x.shape[0] * num_groups if dense_rows is None else dense_rows,
        flops_per_row=2 * k * n,
        group_offsets=offsets,
        groups=range(num_groups),
        bytes_per_group=k * n * element_size,
    )
    return out


@torch.library.register_fake("anabranch::grouped_mm")
def _(x: Tensor, w: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[2])


@torch.library.register_fake("anabranch::grouped_mm_dw")
def _(x: Tensor, dy: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, x.shape[1], dy.shape[1])


def _save_grouped_mm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, offsets, _ = inputs
    ctx.save_for_backward(x, w, offsets)


def _grouped_mm_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, w, offsets = ctx.saved_tensors
    dx = ops.grouped_mm(dy, w.mT, offsets, None) if ctx.needs_input_grad[0] else None
    dw = ops.grouped_mm_dw(x, dy, offsets) if ctx.needs_input_grad[1] else None
    dbias = ops.plan_segment_reduce(dy, offsets, 0)[0] if ctx.needs_input_grad[3] else None
    return dx, dw, None, dbias


def _save_grouped_mm_dw(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_mm_dw_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, dy, offsets = ctx.saved_tensors
    dx = ops.grouped_mm(dy, grad.mT, offsets, None) if ctx.needs_input_grad[0] else None
    ddy = ops.grouped_mm(x, grad, offsets, None) if ctx.needs_input_grad[1] else None
    return dx, ddy, None


torch.library.register_autograd("anabranch::grouped_mm", _grouped_mm_backward, setup_context=_save_grouped_mm)
torch.library.register_autograd("anabranch::grouped_mm_dw", _grouped_mm_dw_backward, setup_context=_save_grouped_mm_dw)
