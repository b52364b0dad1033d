"""CostMeter counts what the plans say, per call and per module."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from anabranch import CostMeter, plan
from anabranch.experts import DynamicMoE, expert_ffn, grouped_lora, grouped_mm, pack_experts, route_top_k


def test_counts_of_one_call() -> None:
    gate_up, down = torch.randn(4, 12, 5), torch.randn(4, 5, 6)
    routed = plan.from_top_k(torch.tensor([[0, 4], [0, 2], [4, 4]]), torch.rand(3, 2), num_groups=4)
    with CostMeter() as meter:
        expert_ffn(torch.randn(3, 5), gate_up, down, routed)
    per_expert = 12 * 5 + 5 * 6
    (cost,) = (cost for _, _, cost in meter.calls())
    assert (cost.calls, cost.executed_rows, cost.dense_rows) == (1, 3, 12)
    assert (cost.executed_flops, cost.dense_flops) == (3 * 2 * per_expert, 12 * 2 * per_expert)
    assert (cost.executed_bytes, cost.dense_bytes) == (2 * per_expert * 4, 4 * per_expert * 4)


def test_null_experts_cost_nothing() -> None:
    gate_up, down = torch.randn(2, 12, 6), torch.randn(2, 6, 6)
    routed = plan.from_top_k(torch.tensor([[2, 3], [0, 3]]), torch.rand(2, 2), num_groups=4)
    with CostMeter() as meter:
        expert_ffn(torch.randn(2, 6), gate_up, down, routed, zero_experts=1, identity_experts=1)
    assert meter.total().executed_rows == 1
    assert meter.total().dense_rows == 4


def test_grouped_mm_and_lora() -> None:
    routed = plan.from_top_k(torch.tensor([[0, 4], [0, 2], [4, 4]]), torch.rand(3, 2), num_groups=4)
    x, w = torch.randn(3, 5), torch.randn(4, 5, 7)
    with CostMeter() as meter:
        rows = plan.gather(x, routed)
        plan.scatter_add(grouped_mm(rows, w, routed.group_offsets), routed)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            grouped_lora(x, torch.randn(4, 2, 5), torch.randn(4, 7, 2), routed)
    (_, name, product), (_, lora_name, lora) = meter.calls()
    assert (name, lora_name) == ("grouped_mm", "grouped_lora")  # moving rows is not counted
    assert (product.executed_rows, product.dense_rows) == (3, 6 * 4)  # six rows in the gathered matrix
    assert (product.executed_flops, product.executed_bytes) == (3 * 2 * 35, 2 * 35 * 4)
    assert (lora.executed_rows, lora.dense_rows) == (3, 3 * 4)
    assert (lora.executed_flops, lora.dense_bytes) == (3 * 2 * 24, 4 * 24 * 4)  # bytes of the weights as they lie


@pytest.mark.cpu
def test_packed_modules_are_named() -> None:
    model = nn.Sequential(DynamicMoE(6, 8, 4, partial(route_top_k, k=2)), nn.ReLU())
    model[0].pack()
    with CostMeter(model) as meter, torch.no_grad():
        model(torch.randn(3, 6))
        pack_experts(model[0].gate_up_proj, model[0].down_proj)(torch.randn(1, 6), route_top_k(torch.randn(1, 4), 3))
    assert model[0].packed is not None
    assert {name: cost.executed_rows for name, cost in meter.by_module().items()} == {"0": 6, "": 3}


def test_modules_are_named_and_nesting_sees_all() -> None:
    def layer() -> DynamicMoE:
        return DynamicMoE(6, 8, 4, partial(route_top_k, k=2))

    model = nn.Sequential(layer(), nn.Sequential(layer(), nn.ReLU()))
    with CostMeter(model) as outer:
        model(torch.randn(3, 6))
        with CostMeter() as inner:
            model(torch.randn(5, 6))
    model(torch.randn(7, 6))  # after the meters: not seen
    assert {name: cost.executed_rows for name, cost in outer.by_module().items()} == {"0": 16, "1.0": 16}
    assert outer.total().calls == 4
    assert inner.total().executed_rows == 20
    assert not model._forward_pre_hooks
    assert not model[0]._forward_hooks


def test_a_meter_survives_an_exception() -> None:
    model = nn.Sequential(DynamicMoE(6, 8, 4, partial(route_top_k, k=2)))
    meter = CostMeter(model)
    try:
        with meter:
            model(torch.randn(3, 5))
    except ValueError:
        pass
    except RuntimeError:
        pass
    assert CostMeter._active == []
    assert meter.total().calls == 0
