"""Shapes and devices of every op on a GPU, by fake tensors: neither a GPU nor a driver is needed to check them."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from anabranch import plan
from anabranch.experts import expert_ffn, grouped_mm

ops = torch.ops.anabranch
# torch without CUDA has neither autograd nor slicing on CUDA devices, fake or not: the backward ops are called by hand.
pytestmark = pytest.mark.cpu


@torch.no_grad()
def test_plan_ops() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        built = plan.from_top_k(torch.zeros(6, 2, dtype=torch.int64), torch.rand(6, 2), num_groups=4)
        mask = plan.from_mask(torch.ones(6, 4, dtype=torch.bool), capacity=9)
        ids = torch.zeros(5, dtype=torch.int64)
        pairs = plan.from_pairs(ids, ids, num_items=6, num_groups=4)
        for made, capacity in ((built, 12), (mask, 9), (pairs, 5)):
            by_item = made.transpose()
            shapes = [
                made.group_offsets.shape,
                made.item_ids.shape,
                by_item.item_offsets.shape,
                by_item.entry_ids.shape,
            ]
            assert shapes == [(5,), (capacity,), (7,), (capacity,)]
            assert made.item_ids.device.type == by_item.group_ids.device.type == "cuda"
        rows = plan.gather(torch.randn(6, 8), built, weighted=True)
        assert (rows.shape, rows.device.type) == ((12, 8), "cuda")
        assert plan.scatter_add(rows, built).shape == (6, 8)
        assert plan.segment_reduce(rows, built, "max").shape == (4, 8)
        grad = ops.plan_segment_reduce_backward(torch.randn(4, 8), ids.int(), built.group_offsets, 12, 0)
        assert (grad.shape, grad.device.type) == ((12, 8), "cuda")
        assert ops.plan_select_backward(torch.randn(12), built.item_ids, 99).shape == (99,)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_experts_ops(dtype: torch.dtype) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        built = plan.from_top_k(torch.zeros(6, 2, dtype=torch.int64), torch.rand(6, 2), num_groups=4)
        x, gate_up = torch.randn(6, 8, dtype=dtype), torch.randn(4, 10, 8, dtype=dtype)
        down = torch.randn(4, 7, 5, dtype=dtype)
        y = expert_ffn(x, gate_up, down, built)
        assert (y.shape, y.dtype, y.device.type) == ((6, 7), dtype, "cuda")
        by_item = built.transpose()
        arguments = (x, gate_up, None, down, None, built.group_offsets, built.item_ids, None, by_item.item_offsets)
        arguments += (by_item.entry_ids, None, None, 1, True, False, False, 0, 0)
        y, saved = ops.expert_ffn(*arguments)
        assert saved.shape == (12, 10)
        gradients = ops.expert_ffn_backward(y, saved, *arguments, 0b101011)
        assert [g.shape for g in gradients] == [(6, 8), (4, 10, 8), (0,), (4, 7, 5), (0,), (12,)]
        assert all(g.device.type == "cuda" for g in gradients)
        out = grouped_mm(saved, torch.randn(4, 10, 3, dtype=dtype), built.group_offsets)
        assert (out.shape, out.device.type) == ((12, 3), "cuda")
        assert ops.grouped_mm_dw(saved, out, built.group_offsets).shape == (4, 10, 3)
