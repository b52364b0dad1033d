"""Tensors on another device than the rest: a ValueError, not memory that nobody has written. Meta needs no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from anabranch import Plan, plan
from anabranch.experts import (
    PackedExperts,
    expert_ffn,
    grouped_lora,
    grouped_mm,
    pack_experts,
    route_top_k,
)

pytestmark = pytest.mark.cpu

EXPERTS = {
    "x": torch.randn(6, 4),
    "gate_up_proj": torch.randn(3, 10, 4),
    "down_proj": torch.randn(3, 4, 5),
    "gate_up_bias": torch.randn(3, 10),
    "down_bias": torch.randn(3, 4),
    "expert_widths": torch.tensor([5, 5, 1]).int(),
    "frozen_experts": torch.tensor([True, False, False]),
}
LORA = {
    "x": torch.randn(6, 4),
    "lora_a": torch.randn(3, 2, 4),
    "lora_b": torch.randn(3, 7, 2),
    "frozen_experts": torch.tensor([True, False, False]),
}
PRODUCT = {
    "x": torch.randn(6, 4),
    "w": torch.randn(3, 4, 2),
    "offsets": torch.tensor([0, 1, 1, 6]).int(),
    "bias": torch.randn(3, 2),
}
WEIGHTS = {name: EXPERTS[name] for name in ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias")}


def routed() -> Plan:
    return route_top_k(torch.randn(6, 3), 2)


def moved(built: Plan, *parts: str) -> Plan:
    fields = {name: getattr(built, name) for name in ("group_offsets", "item_ids", "weights", "num_items")}
    return Plan(**(fields | {name: fields[name].to("meta") for name in parts}))


def packed(**arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        return pack_experts(**WEIGHTS)(plan=routed(), **arguments)


CALLS: dict[str, tuple[Callable[..., Any], dict[str, torch.Tensor]]] = {
    "expert_ffn": (lambda **a: expert_ffn(plan=routed(), **a), EXPERTS),
    "grouped_lora": (lambda **a: grouped_lora(plan=routed(), **a), LORA),
    "grouped_mm": (grouped_mm, PRODUCT),
    "pack_experts": (pack_experts, WEIGHTS),
    "PackedExperts": (packed, {name: EXPERTS[name] for name in ("x", "expert_widths")}),
}


@pytest.mark.parametrize(("call", "name"), [(call, name) for call, (_, given) in CALLS.items() for name in given])
def test_one_tensor_elsewhere(call: str, name: str) -> None:
    function, arguments = CALLS[call]
    function(**arguments)
    op = "expert_ffn" if call == "PackedExperts" else call
    with pytest.raises(ValueError, match=rf"^{op}: \w+ is on (meta|cpu), must be on .+; "):
        function(**(arguments | {name: arguments[name].to("meta")}))


PLAN_CALLS: dict[str, Callable[[Plan], Any]] = {
    "expert_ffn": lambda p: expert_ffn(EXPERTS["x"], EXPERTS["gate_up_proj"], EXPERTS["down_proj"], p),
    "grouped_lora": lambda p: grouped_lora(LORA["x"], LORA["lora_a"], LORA["lora_b"], p),
    "gather": lambda p: plan.gather(torch.ones(6, 2), p, weighted=True),
    "scatter_add": lambda p: plan.scatter_add(torch.ones(12, 2), p),
}


@pytest.mark.parametrize("part", ["group_offsets", "item_ids", "weights"])
@pytest.mark.parametrize("op", PLAN_CALLS)
def test_a_plan_elsewhere(op: str, part: str) -> None:
    with pytest.raises(ValueError, match=f"^{op}: {part} is on meta, must be on cpu like "):
        PLAN_CALLS[op](moved(routed(), part))


def test_plan_ops_and_rows_elsewhere() -> None:
    built, ids = routed(), torch.zeros(3, dtype=torch.int64)
    calls: dict[str, Callable[[], Any]] = {
        "gather": lambda: plan.gather(torch.ones(6, 2, device="meta"), built),
        "scatter_add": lambda: plan.scatter_add(torch.ones(12, 2, device="meta"), built),
        "segment_reduce": lambda: plan.segment_reduce(torch.ones(12, 2, device="meta"), built, "sum"),
        "transpose": lambda: moved(built, "item_ids").transpose(),
        "from_pairs": lambda: plan.from_pairs(ids, ids.to("meta"), num_items=1, num_groups=1),
    }
    for op, call in calls.items():
        with pytest.raises(ValueError, match=f"^{op}: .+ is on (meta|cpu), must be on .+; move it"):
            call()


def test_a_bad_plan_is_told_by_the_function_that_was_called() -> None:
    built = routed()
    decreasing = Plan(built.group_offsets.flip(0), built.item_ids, built.weights, built.num_items)
    for op, call in PLAN_CALLS.items():
        with pytest.raises(ValueError, match=rf"^{op}: group_offsets\[0\] is 12, must be 0"):
            call(decreasing)


def test_everything_on_meta_gives_shapes() -> None:
    built = moved(routed(), "group_offsets", "item_ids", "weights")
    meta = {name: tensor.to("meta") for name, tensor in EXPERTS.items()}
    y = expert_ffn(plan=built, **meta)
    assert (y.shape, y.device.type) == ((6, 4), "meta")
    out = grouped_mm(**{name: tensor.to("meta") for name, tensor in PRODUCT.items()})
    assert (out.shape, out.device.type) == ((6, 2), "meta")


def test_packed_weights_know_where_they_are() -> None:
    made = pack_experts(**WEIGHTS)
    assert isinstance(made, PackedExperts) and made.num_experts == 3
    with pytest.raises(ValueError, match=r"^pack_experts: gate_up_proj is on meta, must be on the CPU; a GPU needs no"):
        pack_experts(**{name: tensor.to("meta") for name, tensor in WEIGHTS.items()})
