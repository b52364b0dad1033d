"""What expert_ffn says to wrong input, and that the op under it never crashes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ffn_cases import call, make
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.experts import expert_ffn


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(6, 5)}, r"x has shape \(6, 5\), must be \(num_items=7"),
        (
            {"gate_up_proj": torch.randn(4, 17, 5)},
            r"gate_up_proj has shape \(4, 17, 5\), must be \(4, 18, 5\)",
        ),
        ({"down_proj": torch.randn(3, 5, 9)}, r"down_proj has shape \(3, 5, 9\), must be \(4, 5, 9\)"),
        ({"gate_up_bias": torch.randn(4, 9)}, r"gate_up_bias has shape"),
        ({"x": torch.tensor(1.0)}, r"x has shape \(\), must be \(num_items=7"),
        ({"x": torch.randn(7)}, r"x has shape \(7,\), must be \(num_items=7"),
        (
            {"x": torch.ones(7, 5, dtype=torch.int32)},
            r"x is int32, must be float32, float64, bfloat16 or float16; conv",
        ),
        ({"x": torch.ones(7, 5, dtype=torch.complex64)}, r"x is complex64, must be float32"),
        ({"gate_up_proj": torch.ones(4, 18, 5, dtype=torch.int64)}, r"gate_up_proj is int64, must be float32"),
        ({"down_proj": torch.randn(4, 5, 9).double()}, r"down_proj is float64, must be float32 like gate_up_proj"),
        ({"down_bias": torch.ones(4, 5, dtype=torch.int64)}, r"down_bias is int64, must be float32, float64"),
        ({"gate_up_bias": torch.randn(4, 18).bfloat16()}, r"gate_up_bias is bfloat16, must be float32 like"),
        ({"activation": "tanh"}, r"activation is 'tanh'"),
        ({"zero_experts": 1}, r"the plan has 4 groups, must have"),
        ({"zero_experts": -1}, r"must not be negative"),
        ({"expert_widths": torch.tensor([1, 2, 3, 10], dtype=torch.int32)}, r"expert_widths\[3\] is 10"),
        ({"expert_widths": torch.tensor([1, 2, 3])}, r"expert_widths is int64"),
        ({"frozen_experts": torch.zeros(4)}, r"frozen_experts is float32, must be bool"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    tensors, routed = make(dtype=torch.float32)
    arguments = {name: tensor.detach() for name, tensor in tensors.items() if name != "weights"} | change
    with pytest.raises(ValueError, match=f"^expert_ffn: .*{message}"):
        expert_ffn(plan=routed, **arguments)


def test_integer_weights_of_a_plan() -> None:
    tensors, routed = make(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"^expert_ffn: weights is int64, must be float32"):
        call(expert_ffn, tensors, routed.with_weights(torch.ones(routed.capacity, dtype=torch.int64)))


def test_autocast_takes_weights_of_different_dtypes() -> None:
    tensors, routed = make(dtype=torch.float32)
    wanted = call(expert_ffn, tensors, routed)
    tensors["down_proj"] = tensors["down_proj"].half()
    with pytest.raises(ValueError, match=r"^expert_ffn: down_proj is float16, must be float32 like gate_up_proj; conv"):
        call(expert_ffn, tensors, routed)
    with torch.autocast(wanted.device.type, dtype=torch.bfloat16):
        torch.testing.assert_close(call(expert_ffn, tensors, routed), wanted, rtol=0.1, atol=0.1)


@pytest.mark.cpu
@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.data())
def test_fuzz_bad_plans_and_shapes_never_crash(data: st.DataObject) -> None:
    small = st.integers(0, 4)
    shape = [data.draw(small) for _ in range(8)]
    offsets = data.draw(st.lists(st.integers(-2, 6), max_size=5))
    ids = data.draw(st.lists(st.integers(-2, 6), max_size=6))
    entry_ids = data.draw(st.lists(st.integers(-2, 6), max_size=6))
    item_offsets = data.draw(st.lists(st.integers(-2, 6), max_size=5))
    int32 = torch.int32
    try:
        torch.ops.anabranch.expert_ffn(
            torch.randn(*shape[:2]),
            torch.randn(*shape[2:5]),
            None,
            torch.randn(*shape[5:8]),
            None,
            torch.tensor(offsets, dtype=int32),
            torch.tensor(ids, dtype=int32),
            None,
            torch.tensor(item_offsets, dtype=int32),
            torch.tensor(entry_ids, dtype=int32),
            None,
            None,
            data.draw(st.integers(-1, 7)),
            data.draw(st.booleans()),
            data.draw(st.booleans()),
            data.draw(st.booleans()),
            data.draw(st.integers(-1, 2)),
            data.draw(st.integers(-1, 2)),
        )
    except ValueError as error:
        assert "must" in str(error)
