"""Moving rows through a plan: `gather`, its adjoint `scatter_add`, and reductions over groups."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from anabranch.core.library import ops
from anabranch.plan.plan import Plan

_REDUCTIONS = ("sum", "mean", "max", "min")


def gather(x: Tensor, plan: Plan, *, weighted: bool = False) -> Tensor:
    """Rows of `x` in plan order: `out[e] = x[plan.item_ids[e]]`, times `plan.weights[e]` if `weighted`.

    Args:
        x: floating `[num_items, ...]`.

    Returns:
        `[capacity, ...]` in the dtype of `x`; rows past the plan's end are zero. Differentiable in `x` and weights.

    Raises:
        ValueError: `x` has not `plan.num_items` rows, or lies on another device.

    Cost:
        Reads and writes each entry's row once; the backward sums per item in entry order, without atomics.
    """
    if x.dim() < 1 or x.shape[0] != plan.num_items:
        raise ValueError(f"gather: x has shape {tuple(x.shape)}, must be (num_items={plan.num_items}, ...)")
    out = ops.plan_gather(
        _rows(x),
        _accumulate_weights("gather", plan, x) if weighted else None,
        plan.group_offsets,
        plan.item_ids,
        *_by_item(plan),
    )
    return out.reshape(plan.capacity, *x.shape[1:])


def scatter_add(values: Tensor, plan: Plan, *, weighted: bool = True) -> Tensor:
    """Sums rows back to their items: `out[t] = sum of weights[e] * values[e]` over the entries e of item t.

    The sum runs in entry order in float32 (float64 for float64), so it is bitwise reproducible. Weights of 1 are used
    where the plan has none or `weighted` is False.

    Args:
        values: floating `[capacity, ...]`; rows past the plan's end are not read.

    Returns:
        `[num_items, ...]` in the dtype of `values`; items without entries are zero. Differentiable in both.

    Raises:
        ValueError: `values` has not `plan.capacity` rows, or lies on another device.
    """
    if values.dim() < 1 or values.shape[0] != plan.capacity:
        raise ValueError(
            f"scatter_add: values has shape {tuple(values.shape)}, must be (capacity={plan.capacity}, ...)"
        )
    out = ops.plan_combine(
        _rows(values),
        _accumulate_weights("scatter_add", plan, values) if weighted and plan.weights is not None else None,
        *_by_item(plan),
        plan.group_offsets,
        plan.item_ids,
    )
    return out.reshape(plan.num_items, *values.shape[1:])


def segment_reduce(values: Tensor, plan: Plan, reduce: Literal["sum", "mean", "max", "min"]) -> Tensor:
    """Reduces the rows of each group: `[capacity, ...]` to `[num_groups, ...]`.

    An empty group gives 0. For max and min the gradient goes to the first of equal rows; a NaN wins.

    Raises:
        ValueError: `values` has not `plan.capacity` rows, or `reduce` is unknown.
    """
    if reduce not in _REDUCTIONS:
        raise ValueError(f"segment_reduce: reduce is {reduce!r}, must be one of {_REDUCTIONS}")
    if values.dim() < 1 or values.shape[0] != plan.capacity:
        raise ValueError(
            f"segment_reduce: values has shape {tuple(values.shape)}, must be (capacity={plan.capacity}, ...)"
        )
    out, _ = ops.plan_segment_reduce(_rows(values), plan.group_offsets, _REDUCTIONS.index(reduce))
    return out.reshape(plan.num_groups, *values.shape[1:])


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _by_item(plan: Plan) -> tuple[Tensor, Tensor]:
    transposed = plan.transpose()
    return transposed.item_offsets, transposed.entry_ids


def _accumulate_weights(op: str, plan: Plan, values: Tensor) -> Tensor:
    if plan.weights is None:
        raise ValueError(f"{op}: the plan has no weights, must have them when weighted=True")
    return plan.weights.to(torch.float64 if values.dtype == torch.float64 else torch.float32)


@torch.library.register_fake("anabranch::plan_gather")
def _(x: Tensor, weights: Tensor | None, group_offsets: Tensor, item_ids: Tensor, *by_item: Tensor) -> Tensor:
    return x.new_empty(item_ids.shape[0], x.shape[1])


@torch.library.register_fake("anabranch::plan_combine")
def _(values: Tensor, weights: Tensor | None, item_offsets: Tensor, entry_ids: Tensor, *plan: Tensor) -> Tensor:
    return values.new_empty(item_offsets.shape[0] - 1, values.shape[1])


@torch.library.register_fake("anabranch::plan_row_dot")
def _(values: Tensor, x: Tensor, group_offsets: Tensor, item_ids: Tensor, *by_item: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(item_ids.shape[0], dtype=dtype)


@torch.library.register_fake("anabranch::plan_segment_reduce")
def _(values: Tensor, group_offsets: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    num_groups, width = group_offsets.shape[0] - 1, values.shape[1]
    selects = reduction >= _REDUCTIONS.index("max")
    arg = values.new_empty(num_groups if selects else 0, width, dtype=torch.int32)
    return values.new_empty(num_groups, width), arg


@torch.library.register_fake("anabranch::plan_segment_reduce_backward")
def _(dout: Tensor, arg: Tensor, group_offsets: Tensor, capacity: int, reduction: int) -> Tensor:
    return dout.new_empty(capacity, dout.shape[1])


def _save_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, *plan = inputs
    ctx.save_for_backward(x, weights, *plan)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weights, group_offsets, item_ids, item_offsets, entry_ids = ctx.saved_tensors
    dx = dweights = None
    if ctx.needs_input_grad[0]:
        dx = ops.plan_combine(grad, weights, item_offsets, entry_ids, group_offsets, item_ids)
    if ctx.needs_input_grad[1]:
        dweights = ops.plan_row_dot(grad, x, group_offsets, item_ids, item_offsets, entry_ids)
    return dx, dweights, None, None, None, None


def _combine_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, weights, item_offsets, entry_ids, group_offsets, item_ids = ctx.saved_tensors
    dvalues = dweights = None
    if ctx.needs_input_grad[0]:
        dvalues = ops.plan_gather(grad, weights, group_offsets, item_ids, item_offsets, entry_ids)
    if ctx.needs_input_grad[1]:
        dweights = ops.plan_row_dot(values, grad, group_offsets, item_ids, item_offsets, entry_ids)
    return dvalues, dweights, None, None, None, None


def _row_dot_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, x, group_offsets, item_ids, item_offsets, entry_ids = ctx.saved_tensors
    dvalues = dx = None
    if ctx.needs_input_grad[0]:
        dvalues = ops.plan_gather(x, grad, group_offsets, item_ids, item_offsets, entry_ids)
    if ctx.needs_input_grad[1]:
        dx = ops.plan_combine(values, grad, item_offsets, entry_ids, group_offsets, item_ids)
    return dvalues, dx, None, None, None, None


def _save_segment_reduce(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, group_offsets, reduction = inputs
    ctx.capacity, ctx.reduction = values.shape[0], reduction
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], group_offsets)


def _segment_reduce_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    arg, group_offsets = ctx.saved_tensors
    return ops.plan_segment_reduce_backward(grad, arg, group_offsets, ctx.capacity, ctx.reduction), None, None


torch.library.register_autograd("anabranch::plan_gather", _gather_backward, setup_context=_save_gather)
torch.library.register_autograd("anabranch::plan_combine", _combine_backward, setup_context=_save_gather)


def _save_segment_reduce_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, arg, group_offsets, _, ctx.reduction = inputs
    ctx.save_for_backward(arg, group_offsets)


def _segment_reduce_double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    arg, group_offsets = ctx.saved_tensors
    if ctx.reduction < _REDUCTIONS.index("max"):
        ddout = ops.plan_segment_reduce(grad, group_offsets, ctx.reduction)[0]
    else:
        ddout = torch.where(arg >= 0, grad.gather(0, arg.clamp(min=0).long()), 0)
    return ddout, None, None, None, None


torch.library.register_autograd("anabranch::plan_row_dot", _row_dot_backward, setup_context=_save_gather)
torch.library.register_autograd(
    "anabranch::plan_segment_reduce_backward",
    _segment_reduce_double_backward,
    setup_context=_save_segment_reduce_backward,
)
torch.library.register_autograd(
    "anabranch::plan_segment_reduce", _segment_reduce_backward, setup_context=_save_segment_reduce
)
