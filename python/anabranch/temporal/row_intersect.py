"""Sets of two rows of a graph, `row_set`, and sums over them, `row_set_sum`.

What NCN and NCNC ask of a graph (Wang, Yang, Zhang, Neural Common Neighbor with Completion for Link Prediction, ICLR
2024, arXiv 2302.00890). A graph is `row_offsets` int64 `[N + 1]` and `column_ids` int64, ascending and distinct within
a row; it may be directed. On the CPU the rows that a call names are checked; on a GPU values cannot be looked at: nodes
out of range have no neighbours there, ids out of range are in no set, and what unsorted rows give is not defined.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from anabranch.core.arguments import call_as, check_floating, check_same_device
from anabranch.core.library import ops

RowSetMode = Literal["intersection", "left_difference", "right_difference"]

_MODES = ("intersection", "left_difference", "right_difference")


def row_set_sum(
    x: Tensor,
    row_offsets: Tensor,
    column_ids: Tensor,
    left: Tensor,
    right: Tensor,
    mode: RowSetMode = "intersection",
    exclude_pair: bool = False,
    weights: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """`out_p = sum of w_pu x_u over the nodes u in a set made of the rows of left_p and right_p`; no set is written.

    With "intersection" this is NCN's sum over common neighbours, with weights in one row alone NCNC's over those that
    it completes. The sum over the union is that of all three modes.

    Args:
        x: `[N, D]`; float32, bfloat16, float16 or float64.
        row_offsets, column_ids: int64 `[N + 1]` and `[E]`, the graph.
        left, right: int64 `[P]`, nodes. Equal ends are a pair like others.
        mode: "intersection" (in both rows), "left_difference" (in left's alone) or "right_difference".
        exclude_pair: leaves the pair's own two nodes out of its set, as if the edge between them (and loops) were not
            there: how NCN hides the link it is asked about.
        weights: `[P, K]`, converted to the dtype of x: `weights[p, k]` is that of `ids[p, k]` as `row_set` gives them
            with capacity K and this seed, so the sum is over that sample; what stands where there is no id counts for
            nothing. Without weights the whole set is summed, each node once.
        seed: of the sample, where there are weights.

    Returns:
        `[P, D]` in the dtype of x, summed by ascending node in float32 (float64 for float64 x): the same bits for every
        number of threads, and without weights on every device.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, an unknown mode; on the CPU also nodes out of range and
            rows that do not ascend or leave the graph.

    Gradient:
        To x and weights, any number of times; each node sums over its pairs in order.

    Cost:
        A walk through both rows, or where one is 16 times as long, a search for each element of the short one; and D
        numbers of x for each element of the set. A set larger than K is hashed as by row_set. The gradient to x and
        that to weights walk again, about 1 us a pair of rows of 60; on a GPU the one to x asks each node about each
        pair: N * P searches.
    """
    op = "row_set_sum"
    check_floating(op, x=x, weights=weights)
    check_same_device(
        op, "x", x, row_offsets=row_offsets, column_ids=column_ids, left=left, right=right, weights=weights
    )
    number = _mode_number(op, mode)
    factors = None if weights is None else weights.to(x.dtype)
    out: Tensor = call_as(
        op, ops.row_set_sum, x, row_offsets, column_ids, left, right, number, exclude_pair, factors, seed
    )
    return out


def row_set(
    row_offsets: Tensor,
    column_ids: Tensor,
    left: Tensor,
    right: Tensor,
    mode: RowSetMode,
    capacity: int,
    seed: int = 0,
    exclude_pair: bool = False,
) -> tuple[Tensor, Tensor]:
    """The sets that row_set_sum sums over; where one is larger than the capacity, a sample of it.

    The sample is uniform and without replacement: the nodes of the smallest hashes of (seed, left, right, node). It
    depends on nothing else, so a pair has the same sample in every batch and on every device until the seed changes.

    Args:
        row_offsets, column_ids, left, right, mode, exclude_pair: as row_set_sum.
        capacity: ids that there is room for; NCNC trains with 8 and tests with 128.
        seed: another seed gives another sample; pass the number of the step in training.

    Returns:
        ids int64 `[P, capacity]`, ascending, then -1; sizes int64 `[P]`, those of the whole sets.

    Raises:
        ValueError: as row_set_sum, and a negative capacity.

    Cost:
        As row_set_sum without x; a set that is sampled is hashed once, on a GPU walked three or four times.
    """
    op = "row_set"
    check_same_device(op, "row_offsets", row_offsets, column_ids=column_ids, left=left, right=right)
    number = _mode_number(op, mode)
    sets: tuple[Tensor, Tensor] = call_as(
        op, ops.row_set, row_offsets, column_ids, left, right, number, exclude_pair, capacity, seed
    )
    return sets


def _mode_number(op: str, mode: str) -> int:
    if mode not in _MODES:
        raise ValueError(f"{op}: mode is {mode!r}, must be one of {_MODES}; pass one of these")
    return _MODES.index(mode)


@torch.library.register_fake("anabranch::row_set_sum")
def _(x: Tensor, row_offsets: Tensor, column_ids: Tensor, left: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(left.shape[0], x.shape[1])


@torch.library.register_fake("anabranch::row_set_sum_backward")
def _(dout: Tensor, row_offsets: Tensor, *rest: Any) -> Tensor:
    return dout.new_empty(row_offsets.shape[0] - 1, dout.shape[1])


@torch.library.register_fake("anabranch::row_set_dot")
def _(
    dout: Tensor,
    x: Tensor,
    row_offsets: Tensor,
    column_ids: Tensor,
    left: Tensor,
    right: Tensor,
    mode: int,
    exclude_pair: bool,
    capacity: int,
    seed: int,
) -> Tensor:
    return dout.new_empty(left.shape[0], capacity)


@torch.library.register_fake("anabranch::row_set")
def _(
    row_offsets: Tensor,
    column_ids: Tensor,
    left: Tensor,
    right: Tensor,
    mode: int,
    exclude_pair: bool,
    capacity: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    return left.new_empty(left.shape[0], capacity), left.new_empty(left.shape[0])


# The sum is linear in x and in weights. With S the sum, B its backward to x and D that to weights,
#     <u, S(x, w)> = <B(u, w), x> = <D(u, x), w>,
# so each of the three has the other two as its gradients, and these have gradients again.


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Of row_set_sum, whose rows are x, and of row_set_sum_backward, whose rows are dout."""
    rows, *graph, ctx.mode, ctx.exclude_pair, weights, ctx.seed = inputs
    # x is needed for the gradient to weights alone: without them it need not be kept.
    ctx.save_for_backward(None if weights is None else rows, weights, *graph)


def _gradients(ctx: Any, given: Tensor, adjoint: Any, is_sum: bool) -> tuple[Tensor | None, ...]:
    """Of what `_save_sum` kept: to the rows by the adjoint op, to weights by the op that takes dout and x."""
    rows, weights, *graph = ctx.saved_tensors
    sets = (*graph, ctx.mode, ctx.exclude_pair)
    drows = adjoint(given, *sets, weights, ctx.seed) if ctx.needs_input_grad[0] else None
    dweights = None
    if ctx.needs_input_grad[7]:
        dout, x = (given, rows) if is_sum else (rows, given)
        dweights = ops.row_set_dot(dout, x, *sets, weights.shape[1], ctx.seed)
    return drows, *(None,) * 6, dweights, None


def _sum_backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, dout, ops.row_set_sum_backward, is_sum=True)


def _backward_backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, ddx, ops.row_set_sum, is_sum=False)


def _save_dot(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dout, x, *graph, ctx.mode, ctx.exclude_pair, _, ctx.seed = inputs
    ctx.save_for_backward(dout, x, *graph)


def _dot_backward(ctx: Any, ddweights: Tensor) -> tuple[Tensor | None, ...]:
    dout, x, *graph = ctx.saved_tensors
    rest = (*graph, ctx.mode, ctx.exclude_pair, ddweights, ctx.seed)
    ddout = ops.row_set_sum(x, *rest) if ctx.needs_input_grad[0] else None
    dx = ops.row_set_sum_backward(dout, *rest) if ctx.needs_input_grad[1] else None
    return ddout, dx, *(None,) * 8


torch.library.register_autograd("anabranch::row_set_sum", _sum_backward, setup_context=_save_sum)
torch.library.register_autograd("anabranch::row_set_sum_backward", _backward_backward, setup_context=_save_sum)
torch.library.register_autograd("anabranch::row_set_dot", _dot_backward, setup_context=_save_dot)
