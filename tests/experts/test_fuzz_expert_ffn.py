"""The public expert_ffn on arbitrary input: right where it is valid, else a ValueError and nothing touched."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from ffn_cases import pair_loop
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch import Plan, plan
from anabranch.experts import expert_ffn

pytestmark = pytest.mark.cpu  # a GPU's ops do not look at values
MESSAGE = re.compile(r"^expert_ffn: .+, must .+", re.DOTALL)
FLOATING = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WEIGHTS = ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias")

fuzz = functools.partial(settings, deadline=None, derandomize=True)


def whole_numbers(*shape: int, dtype: torch.dtype, high: int = 1) -> torch.Tensor:
    return torch.randint(-high, high + 1, shape).to(dtype)


def valid_call(data: st.DataObject) -> dict[str, Any]:
    """Arguments of expert_ffn. Small whole numbers: every sum is exact in every dtype."""
    draw = data.draw
    dtype, x_dtype = draw(st.sampled_from(FLOATING)), draw(st.sampled_from(FLOATING))
    items, experts, in_features = draw(st.integers(0, 5)), draw(st.integers(0, 3)), draw(st.integers(1, 4))
    inner, out = draw(st.integers(1, 5)), draw(st.integers(1, 4) | st.just(in_features))
    gated, transposed, interleaved, biased, narrow, weighted = (draw(st.booleans()) for _ in range(6))
    null = draw(st.integers(0, 2)), draw(st.integers(0, 2)) if in_features == out else 0
    rows = (2 if gated else 1) * inner
    gate_up = whole_numbers(experts, rows, in_features, dtype=dtype)
    down = whole_numbers(experts, out, inner, dtype=dtype)
    # Views of matrices that lie the other way, too.
    gate_up, down = (m.mT.contiguous() if draw(st.booleans()) == transposed else m.mT for m in (gate_up, down))
    if not transposed:
        gate_up, down = gate_up.mT, down.mT
    routed = plan.from_mask(torch.rand(items, experts + sum(null)) < 0.5, capacity=items * (experts + sum(null)) + 2)
    weights = whole_numbers(routed.capacity, dtype=draw(st.sampled_from(FLOATING)), high=2) if weighted else None
    return {
        "x": whole_numbers(in_features, items, dtype=x_dtype).t(),
        "gate_up_proj": gate_up,
        "down_proj": down,
        "plan": routed.with_weights(weights),
        "gate_up_bias": whole_numbers(experts, rows, dtype=dtype) if biased else None,
        "down_bias": whole_numbers(experts, out, dtype=dtype) if biased else None,
        "activation": draw(st.sampled_from(["identity", "relu", "relu2"])),
        "gated": gated,
        "interleaved": interleaved,
        "transposed": transposed,
        "zero_experts": null[0],
        "identity_experts": null[1],
        "expert_widths": torch.randint(0, inner + 1, (experts,), dtype=torch.int32) if narrow else None,
        "frozen_experts": torch.rand(experts) < 0.5 if draw(st.booleans()) else None,
    }


def by_definition(arguments: dict[str, Any]) -> torch.Tensor:
    renamed = {"gate_up_proj": "gate_up", "down_proj": "down", "plan": "routed"}
    given = {renamed.get(k, k): v for k, v in arguments.items() if k != "frozen_experts"}
    floating = {k: v.double() for k, v in given.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    return pair_loop(**(given | floating)).to(arguments["x"].dtype)


@fuzz(max_examples=150)
@given(st.data())
def test_valid_calls_are_right(data: st.DataObject) -> None:
    torch.manual_seed(0)
    arguments = valid_call(data)
    wanted = by_definition(arguments)
    assert torch.equal(expert_ffn(**arguments), wanted)
    arguments["x"].requires_grad_()
    y = expert_ffn(**arguments)
    assert torch.equal(y, wanted)
    y.sum().backward()
    assert arguments["x"].grad.shape == arguments["x"].shape


def one_row_more(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat((tensor, tensor.new_zeros(1, *tensor.shape[1:])))


def replaced(built: Plan, **changed: Any) -> Plan:
    fields = {name: getattr(built, name) for name in ("group_offsets", "item_ids", "weights", "num_items")}
    return Plan(**(fields | changed))


def flawed(data: st.DataObject, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with one thing wrong."""
    routed: Plan = arguments["plan"]
    tensors = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    entries = int(routed.group_offsets[-1])
    flaws = ["size", "dim", "scalar", "dtype", "device", "weight dtype", "activation", "null", "negative", "items"]
    flaws += ["offsets", "plan weights", "plan device", "plan dtype"] + (["item ids"] if entries else [])
    flaws += ["width"] if arguments["expert_widths"] is not None and arguments["gate_up_proj"].shape[0] else []
    flaw, name = data.draw(st.sampled_from(flaws)), data.draw(st.sampled_from(tensors))
    if flaw in ("size", "dim", "scalar", "dtype", "device"):
        changes = {
            "size": one_row_more,
            "dim": lambda t: t[..., None],
            "scalar": lambda t: t.new_zeros(()),
            "dtype": lambda t: t.to(torch.int64),
            "device": lambda t: t.to("meta"),
        }
        return {name: changes[flaw](arguments[name])}
    if flaw == "weight dtype":
        name = data.draw(st.sampled_from([n for n in WEIGHTS if arguments[n] is not None]))
        dtypes = [dtype for dtype in FLOATING if dtype != arguments[name].dtype]
        return {name: arguments[name].to(data.draw(st.sampled_from(dtypes)))}
    if flaw == "activation":
        return {"activation": data.draw(st.sampled_from(["tanh", "", None, 1]))}
    if flaw == "null":
        more = data.draw(st.sampled_from([1, 2**31, 2**62]))
        return {"zero_experts": arguments["zero_experts"] + more}
    if flaw == "negative":
        return {"zero_experts": -1, "identity_experts": arguments["zero_experts"] + arguments["identity_experts"] + 1}
    if flaw == "items":
        return {"plan": replaced(routed, num_items=routed.num_items + data.draw(st.sampled_from([1, -1, 2**40])))}
    if flaw == "offsets":
        offsets = routed.group_offsets.clone()
        offsets[0 if data.draw(st.booleans()) else -1] = data.draw(
            st.sampled_from([-1, routed.capacity + 1, 2**31 - 1])
        )
        return {"plan": replaced(routed, group_offsets=offsets)}
    if flaw == "plan weights":
        return {"plan": replaced(routed, weights=torch.ones(routed.capacity + 1))}
    if flaw == "plan dtype":
        part = data.draw(st.sampled_from(["group_offsets", "item_ids"]))
        return {"plan": replaced(routed, **{part: getattr(routed, part).long()})}
    if flaw == "plan device":
        part = data.draw(st.sampled_from(["group_offsets", "item_ids"]))
        return {"plan": replaced(routed, **{part: getattr(routed, part).to("meta")})}
    if flaw == "item ids":
        ids = routed.item_ids.clone()
        ids[entries - 1] = data.draw(st.sampled_from([-1, -(2**31), routed.num_items, 2**31 - 1]))
        return {"plan": replaced(routed, item_ids=ids)}
    widths = arguments["expert_widths"].clone()
    widths[0] = data.draw(st.sampled_from([-1, 99, 2**31 - 1]))
    return {"expert_widths": widths}


@fuzz(max_examples=400)
@given(st.data())
def test_flawed_calls_are_refused(data: st.DataObject) -> None:
    torch.manual_seed(0)
    arguments = valid_call(data)
    changed = arguments | flawed(data, arguments)
    tensors = [v for v in changed.values() if isinstance(v, torch.Tensor) and v.device.type == "cpu"]
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(ValueError, match=MESSAGE):
        expert_ffn(**changed)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
