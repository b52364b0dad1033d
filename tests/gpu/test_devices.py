"""Tensors on another device than the data: a ValueError that says where they are and where they must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from anabranch import Plan, plan
from anabranch.experts import expert_ffn, grouped_mm, load_balance_loss, route_percentile, route_top_k

pytestmark = pytest.mark.gpu


def on_cpu(built: Plan) -> Plan:
    return Plan(built.group_offsets.cpu(), built.item_ids.cpu(), built.weights.cpu(), built.num_items)


CALLS: dict[str, Callable[[Plan, torch.Tensor, torch.Tensor], Any]] = {
    "from_top_k": lambda built, x, w: plan.from_top_k(torch.zeros(6, 4).long(), x.cpu(), num_groups=4),
    "gather": lambda built, x, w: plan.gather(x.cpu(), built),
    "gather_weights": lambda built, x, w: plan.gather(x, built.with_weights(built.weights.cpu()), weighted=True),
    "gather_plan": lambda built, x, w: plan.gather(x, on_cpu(built)),
    "scatter_add": lambda built, x, w: plan.scatter_add(torch.ones(12, 4).cpu(), built),
    "segment_reduce": lambda built, x, w: plan.segment_reduce(torch.ones(12, 4).cpu(), built, "max"),
    "grouped_mm": lambda built, x, w: grouped_mm(torch.ones(12, 4), w, built.group_offsets.cpu()),
    "grouped_mm_weights": lambda built, x, w: grouped_mm(torch.ones(12, 4), w.cpu(), built.group_offsets),
    "expert_ffn": lambda built, x, w: expert_ffn(x, w, w.cpu(), built, gated=False),
    "expert_ffn_plan": lambda built, x, w: expert_ffn(x, w, w, on_cpu(built), gated=False),
    "route_percentile": lambda built, x, w: route_percentile(x, threshold=torch.tensor(0.0).cpu()),
    "load_balance_loss": lambda built, x, w: load_balance_loss(x, on_cpu(built)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_another_device_is_refused(call: Callable[..., Any]) -> None:
    x = torch.randn(6, 4)
    with pytest.raises(ValueError, match=r"^[a-z_]+: .+ is on .+, must be on "):
        call(route_top_k(x, 2), x, torch.randn(4, 4, 4))
