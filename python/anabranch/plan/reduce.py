"""Moving rows through a plan: `gather`, its adjoint `scatter_add`, and reductions over groups."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from anabranch.core.arguments import call_as, check_floating, check_same_device
from anabranch.core.library import ops
from anabranch.plan.plan import Plan, by_item

_REDUCTIONS = ("sum", "mean", "max", "min")


def gather(x: Tensor, plan: Plan, *, weighted: bool = False) -> Tensor:
    """Rows of `x` in plan order: `out[e] = x[plan.item_ids[e]]`, times `plan.weights[e]` if `weighted`.

    Args:
        x: `[num_items, ...]`, float32, float64, bfloat16 or float16.
        plan: of num_items items.
        weighted: whether to multiply by the plan's weights, which it then must have.

    Returns:
        `[capacity, ...]` in the dtype of `x`; rows past the plan's end are zero. Differentiable in `x` and weights.

    Raises:
        ValueError: `x` has not `plan.num_items` rows, no floating dtype, or lies on another device; no weights where
            they are asked for; a plan with ids out of range (CPU; on a GPU such entries give zero rows).

    Cost:
        Reads and writes each entry's row once; the backward sums per item in entry order, without atomics.
    """
    if x.dim() < 1 or x.shape[0] != plan.num_items:
        raise ValueError(
            f"gather: x has shape {tuple(x.shape)}, must be (num_items={plan.num_items}, ...); "
            "pass the rows that the plan was made for"
        )
    weights = _checked_weights("gather", plan, weighted, x=x)
    out = ops.plan_gather(_rows(x), weights, plan.group_offsets, plan.item_ids, *_by_item("gather", plan))
    return out.reshape(plan.capacity, *x.shape[1:])


def scatter_add(values: Tensor, plan: Plan, *, weighted: bool = True) -> Tensor:
    """Sums rows back to their items: `out[t] = sum of weights[e] * values[e]` over the entries e of item t.

    The sum runs in entry order in float32 (float64 for float64), so it is bitwise reproducible. Weights of 1 are used
    where the plan has none or `weighted` is False.

    Args:
        values: `[capacity, ...]`, float32, float64, bfloat16 or float16; rows past the plan's end are not read.
        plan: with room for capacity entries.
        weighted: whether to multiply by the plan's weights, where it has any.

    Returns:
        `[num_items, ...]` in the dtype of `values`; items without entries are zero. Differentiable in both.

    Raises:
        ValueError: `values` has not `plan.capacity` rows, no floating dtype, or lies on another device; a plan with
            ids out of range (CPU; on a GPU such entries are skipped).

    Cost:
        Reads each entry's row once and writes each item's row once, without atomics; the plan is transposed the first
        time. The backward is a `gather`.
    """
    if values.dim() < 1 or values.shape[0] != plan.capacity:
        raise ValueError(
            f"scatter_add: values has shape {tuple(values.shape)}, must be (capacity={plan.capacity}, ...); "
            "pass one row for each entry, as gather returns them"
        )
    op = "scatter_add"
    weights = _checked_weights(op, plan, weighted and plan.weights is not None, values=values)
    out = call_as(op, ops.plan_combine, _rows(values), weights, *_by_item(op, plan), plan.group_offsets, plan.item_ids)
    return out.reshape(plan.num_items, *values.shape[1:])


def segment_reduce(values: Tensor, plan: Plan, reduce: Literal["sum", "mean", "max", "min"]) -> Tensor:
    """Reduces the rows of each group: `out[g]` is the sum, mean, max or min of `values[e]` over its entries e.

    Sums run in entry order in float32 (float64 for float64), so they are bitwise reproducible.

    Args:
        values: `[capacity, ...]`, float32, float64, bfloat16 or float16; rows past the plan's end are not read.
        plan: with room for capacity entries; its weights are not used.
        reduce: "sum", "mean", "max" or "min". In max and min a NaN wins.

    Returns:
        `[num_groups, ...]` in the dtype of `values`; an empty group gives 0. Differentiable, twice, in `values`; for
        max and min the gradient goes to the first of equal rows.

    Raises:
        ValueError: `values` has not `plan.capacity` rows, no floating dtype, or lies on another device; `reduce` is
            unknown; offsets that decrease or leave the capacity (CPU; on a GPU they are clamped).

    Cost:
        Reads each entry's row once and writes each group's once; the backward the other way round.
    """
    if reduce not in _REDUCTIONS:
        raise ValueError(f"segment_reduce: reduce is {reduce!r}, must be one of {_REDUCTIONS}; pass one of these")
    if values.dim() < 1 or values.shape[0] != plan.capacity:
        raise ValueError(
            f"segment_reduce: values has shape {tuple(values.shape)}, must be (capacity={plan.capacity}, ...); "
            "pass one row for each entry, as gather returns them"
        )
    _checked_weights("segment_reduce", plan, False, values=values)
    out, _ = ops.plan_segment_reduce(_rows(values), plan.group_offsets, _REDUCTIONS.index(reduce))
    return out.reshape(plan.num_groups, *values.shape[1:])


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _by_item(op: str, plan: Plan) -> tuple[Tensor, Tensor]:
    transposed = by_item(op, plan)
    return transposed.item_offsets, transposed.entry_ids


def _checked_weights(op: str, plan: Plan, weighted: bool, **rows: Tensor) -> Tensor | None:
    """Checks the rows and the plan, and gives the weights in the dtype that sums are kept in."""
    ((name, values),) = rows.items()
    check_floating(op, **rows)
    check_same_device(op, name, values, group_offsets=plan.group_offsets, item_ids=plan.item_ids)
    if not weighted:
        return None
    if plan.weights is None:
        raise ValueError(f"{op}: the plan has no weights, must have them when weighted=True; add them by with_weights")
    check_floating(op, weights=plan.weights)
    check_same_device(op, name, values, weights=plan.weights)
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
