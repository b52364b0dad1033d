"""Valid calls of every op of the experts room: tests/test_every_op.py checks what torch asks of an op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from anabranch import plan
from anabranch.experts import pack_experts

ops = torch.ops.anabranch


def samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Ops with arguments; the tensors that may get a gradient ask for one."""

    def rows(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape).to(of).requires_grad_()

    offsets = torch.tensor([0, 2, 2, 4]).int()  # row 4 belongs to no group
    for bias in (None, rows(3, 2)):
        yield ops.grouped_mm, (rows(5, 4), rows(3, 4, 2), offsets, bias)
    yield ops.grouped_mm, (rows(4, 5).t(), rows(3, 2, 4).mT, offsets, None)
    yield ops.grouped_mm_dw, (rows(5, 4), rows(5, 2), offsets)

    for gated, transposed in ((True, False), (False, True)):
        # Expert 1 has no entry and item 2 no expert. The plan has no room to spare and no entry of the two experts
        # without weights: their rows of the second output are not written, and opcheck would compare them.
        mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 1, 0, 0]]).bool()
        routed = plan.from_mask(mask, capacity=5)
        by_item = routed.transpose()
        width = 6 if gated else 3
        arguments = (
            rows(4, 5),
            rows(3, 5, width) if transposed else rows(3, width, 5),
            rows(3, width),
            rows(3, 3, 5) if transposed else rows(3, 5, 3),
            rows(3, 5),
            routed.group_offsets,
            routed.item_ids,
            rows(5, of=torch.float64 if dtype == torch.float64 else torch.float32),
            by_item.item_offsets,
            by_item.entry_ids,
            torch.tensor([3, 3, 3]).int(),
            None,
            1,
            gated,
            False,
            transposed,
            1,
            1,
        )
        yield ops.expert_ffn, arguments
        plain = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
        yield ops.expert_ffn_inference, plain
        _, pre_activation = ops.expert_ffn(*plain)
        for wanted in (63, 0b100010):
            yield ops.expert_ffn_backward, (rows(4, 5).detach(), pre_activation, *plain, wanted)

    with torch.device("cpu"):  # packing is for CPUs alone
        yield from packed_samples(dtype)


def packed_samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    routed = plan.from_top_k(torch.tensor([[0, 2], [2, 4], [5, 5], [0, 3]]), num_groups=5)
    by_item = routed.transpose()
    # 100 and 193 features: one full block of each product, and the rest of another.
    x, gate_up, down = (
        torch.randn(4, 193).to(dtype),
        torch.randn(3, 200, 193).to(dtype),
        torch.randn(3, 193, 100).to(dtype),
    )
    isa = ops.cpu_isa()
    yield ops.expert_pack, (gate_up, 2, True, False, 96, isa)
    yield ops.expert_pack, (down.mT, 1, False, True, 192, isa)
    for weight_dtype in (None, torch.int8) if dtype != torch.float64 else (None,):
        packed = pack_experts(gate_up, down, down_bias=torch.randn(3, 193).to(dtype), weight_dtype=weight_dtype)
        yield (
            ops.expert_ffn_packed,
            (
                x,
                packed.gate_up,
                packed.gate_up_scales,
                packed.gate_up_bias,
                packed.down,
                packed.down_scales,
                packed.down_bias,
                routed.group_offsets,
                routed.item_ids,
                None,
                by_item.item_offsets,
                by_item.entry_ids,
                torch.tensor([100, 7, 99]).int(),
                100,
                193,
                1,
                True,
                1,
                1,
                isa,
            ),
        )
