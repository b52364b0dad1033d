"""What the plan room says to weights and id vectors of the wrong kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from anabranch import plan

ops = torch.ops.anabranch
pytestmark = pytest.mark.cpu


def int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("name", ["from_top_k", "from_mask", "from_pairs"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"dtype": torch.int64}, r"weights is torch.int64, must be a floating dtype"),
        ({"device": "meta"}, r"weights is on meta, must be on cpu like the choices; move it with"),
        ({"size": (1, 1, 1)}, r"weights has shape \(1, 1, 1\), must be "),
    ],
)
def test_bad_weights_name_the_builder(name: str, change: dict[str, Any], message: str) -> None:
    choices = torch.zeros(3, 2, dtype=torch.int64)
    shape = (6,) if name == "from_pairs" else (3, 2)
    weights = torch.ones(**({"size": shape, "dtype": torch.float32} | change))
    calls = {
        "from_top_k": lambda: plan.from_top_k(choices, weights, num_groups=2),
        "from_mask": lambda: plan.from_mask(choices.bool(), weights),
        "from_pairs": lambda: plan.from_pairs(choices.view(6), choices.view(6), weights, num_items=1, num_groups=2),
    }
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        calls[name]()


@pytest.mark.parametrize(
    "op, wrong",
    [
        (lambda ids: ops.plan_transpose(ids, int32([0]), 1), "group_offsets"),
        (lambda ids: ops.plan_transpose(int32([0]), ids, 1), "item_ids"),
        (lambda ids: ops.plan_from_pairs(ids, int32([0]), 1, 1), "item_ids"),
        (lambda ids: ops.plan_from_pairs(int32([0, 0]), ids, 1, 1), "group_ids"),
        (lambda ids: ops.plan_select(torch.ones(2), ids), "source_ids"),
        (lambda ids: ops.plan_select_backward(torch.ones(2), ids, 2), "source_ids"),
        (lambda ids: ops.plan_segment_reduce(torch.ones(2, 2), ids, 0), "group_offsets"),
        (lambda ids: ops.plan_combine(torch.ones(2, 2), None, int32([0]), ids, ids, ids), "entry_ids"),
        (lambda ids: ops.plan_gather(torch.ones(2, 2), None, int32([0]), ids, ids, ids), "item_ids"),
    ],
)
def test_id_vectors_must_be_int32_contiguous_and_flat(op: Callable[[torch.Tensor], Any], wrong: str) -> None:
    for ids, message in (
        (torch.tensor([0, 0]), f"{wrong} is int64, must be int32; convert it with"),
        (int32([0, 9, 0])[::2], f"{wrong} is not contiguous, must be; call"),
        (int32([0, 0]).view(1, 2), rf"{wrong} has shape \(1, 2\), must have 1 dim"),
    ):
        with pytest.raises(ValueError, match=rf"^[a-z_]+: {message}"):
            op(ids)


def test_capacity_and_ids_of_the_builders() -> None:
    mask, ids = torch.ones(3, 2, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    for capacity in (-1, 2**31 - 1, -(2**40)):
        with pytest.raises(ValueError, match=rf"^from_mask: capacity is {capacity}, must be in \[0, 2\^31 - 1\); give"):
            plan.from_mask(mask, capacity=capacity)
    with pytest.raises(ValueError, match=r"^from_mask: capacity is 5, must be at least the number of pairs, 6"):
        plan.from_mask(mask, capacity=5)
    with pytest.raises(ValueError, match=r"^from_pairs: group_ids is torch.int16, must be int32 or int64; convert"):
        plan.from_pairs(ids, ids.short(), num_items=1, num_groups=1)


def test_rows_are_floating_and_weights_are_there() -> None:
    built = plan.from_top_k(torch.zeros(3, 2, dtype=torch.int64), num_groups=1)
    whole = torch.ones(6, 2, dtype=torch.int32)
    calls: dict[str, Callable[[], Any]] = {
        "gather: x": lambda: plan.gather(whole[:3], built),
        "scatter_add: values": lambda: plan.scatter_add(whole, built),
        "segment_reduce: values": lambda: plan.segment_reduce(whole, built, "max"),
        "scatter_add: weights": lambda: plan.scatter_add(whole.float(), built.with_weights(whole[:, 0])),
    }
    for name, call in calls.items():
        with pytest.raises(
            ValueError, match=f"^{name} is int32, must be float32, float64, bfloat16 or float16; convert"
        ):
            call()
    with pytest.raises(ValueError, match=r"^gather: the plan has no weights, must have them when weighted=True; add"):
        plan.gather(torch.ones(3, 2), built, weighted=True)
