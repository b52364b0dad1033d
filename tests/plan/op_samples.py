"""Valid calls of every op of the plan room: tests/test_every_op.py checks what torch asks of an op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from anabranch import plan

ops = torch.ops.anabranch


def samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Ops with arguments; the tensors that may get a gradient ask for one."""
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32

    def rows(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape).to(of).requires_grad_()

    # Group 1 is empty, item 2 is in no group, and two of the eight entries there is room for do not exist.
    indices = torch.tensor([[0, 2], [2, 0], [3, 3], [0, 2]])
    built = plan.from_top_k(indices, num_groups=3)
    by_item = built.transpose()
    parts, item_parts = (built.group_offsets, built.item_ids), (by_item.item_offsets, by_item.entry_ids)

    yield ops.plan_from_top_k, (indices, 3)
    yield ops.plan_from_top_k, (indices.int().t(), 3)
    yield ops.plan_from_mask, (indices == 2, 5)
    yield ops.plan_from_pairs, (torch.tensor([2, 0]).int(), torch.tensor([1, 2]).int(), 3, 2)
    yield ops.plan_transpose, (*parts, 4)

    source_ids = torch.tensor([3, -1, 0]).int()
    yield ops.plan_select, (rows(5, 3), source_ids)
    yield ops.plan_select_backward, (rows(3), source_ids, 9)

    for weights in (None, rows(8, of=accumulate)):
        yield ops.plan_gather, (rows(4, 3), weights, *parts, *item_parts)
        yield ops.plan_combine, (rows(8, 3), weights, *item_parts, *parts)
    yield ops.plan_gather, (rows(3, 4).t(), None, *parts, *item_parts)
    yield ops.plan_row_dot, (rows(8, 3), rows(4, 3), *parts, *item_parts)

    for reduction in range(4):
        values = rows(8, 3)
        yield ops.plan_segment_reduce, (values, built.group_offsets, reduction)
        _, arg = ops.plan_segment_reduce(values.detach(), built.group_offsets, reduction)
        yield ops.plan_segment_reduce_backward, (rows(3, 3), arg, built.group_offsets, 8, reduction)
