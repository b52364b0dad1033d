"""The plan room's self-tests: a plan of four items and three groups beside masks and torch's matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.core.self_test import SelfTest, compare, worst_error
from anabranch.plan.build import from_mask, from_pairs, from_top_k
from anabranch.plan.plan import Plan
from anabranch.plan.reduce import gather, scatter_add, segment_reduce


def _mask() -> Tensor:
    # Group 1 is empty and so is item 2.
    return torch.tensor([[True, False, True], [True, False, False], [False] * 3, [False, False, True]])


def _lists(plan: Plan) -> list[Tensor]:
    return [plan.group_offsets, plan.item_ids]


def _builders() -> float:
    items, groups = torch.tensor([0, 3, 1, 0]), torch.tensor([2, 2, 0, 0])
    expected = [torch.tensor([0, 2, 2, 4]), torch.tensor([0, 1, 0, 3])]
    from_mask_ = _lists(from_mask(_mask(), capacity=4))
    from_pairs_ = _lists(from_pairs(items, groups, num_items=4, num_groups=3))
    top_k = _lists(from_top_k(torch.tensor([[0], [2], [2]]), num_groups=3))
    return max(
        worst_error(from_mask_, expected),
        worst_error(from_pairs_, expected),
        worst_error(top_k, [torch.tensor([0, 1, 1, 3]), torch.tensor([0, 1, 2])]),
    )


def _transpose() -> float:
    by_item = from_mask(_mask(), capacity=4).transpose()
    return worst_error(
        [by_item.item_offsets, by_item.entry_ids], [torch.tensor([0, 2, 3, 3, 4]), torch.tensor([0, 2, 1, 3])]
    )


def _gather_and_scatter() -> float:
    one_hot = torch.eye(4)[torch.tensor([0, 1, 0, 3])]

    def weights_of_entries(weights: Tensor) -> Tensor:
        return weights.t()[_mask().t()].unsqueeze(1)

    def plan(weights: Tensor) -> Plan:
        return from_mask(_mask(), weights, capacity=4)

    x, weights = torch.randn(4, 5), torch.randn(4, 3)
    gathered = compare(
        lambda x, w: gather(x, plan(w), weighted=True), lambda x, w: one_hot @ x * weights_of_entries(w), x, weights
    )
    added = compare(
        lambda x, w: scatter_add(x, plan(w)), lambda x, w: one_hot.t() @ (x * weights_of_entries(w)), x, weights
    )
    return max(gathered, added)


def _segments() -> float:
    plan, x = from_mask(_mask(), capacity=4), torch.randn(4, 5)

    def expected(x: Tensor) -> Tensor:
        return torch.stack([x[:2].mean(0), torch.zeros(5), x[2:].mean(0)])

    return compare(lambda x: segment_reduce(x, plan, "mean"), expected, x)


def self_tests() -> list[SelfTest]:
    """One case for the builders, one each for what reads a plan."""
    rows = ("plan_gather", "plan_combine", "plan_row_dot", "plan_select", "plan_select_backward")
    return [
        SelfTest(("plan_from_mask", "plan_from_pairs", "plan_from_top_k"), _builders),
        SelfTest(("plan_transpose",), _transpose),
        SelfTest(rows, _gather_and_scatter),
        SelfTest(("plan_segment_reduce", "plan_segment_reduce_backward"), _segments),
    ]
