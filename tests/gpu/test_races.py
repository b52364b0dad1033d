"""The same bits again and again, alone and beside other work: what a race in global memory would break."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from anabranch import plan
from anabranch.experts import expert_ffn, grouped_mm
from anabranch.skip import LowRank, Norm, lowrank_residual, prefix_ffn

pytestmark = pytest.mark.gpu
REPEATS = 50


def all_results(dtype: torch.dtype) -> Callable[[], list[torch.Tensor]]:
    """One call that goes through every kernel once: plans, movement, reductions, products, forward and backward."""
    tokens, experts, width, inner = 700, 33, 264, 136
    x = torch.randn(tokens, width).to(dtype).requires_grad_()
    gate_up = (torch.randn(experts, 2 * inner, width) * width**-0.5).to(dtype).requires_grad_()
    down = (torch.randn(experts, width, inner) * inner**-0.5).to(dtype).requires_grad_()
    indices, scores = torch.randint(0, experts + 1, (tokens, 4)), torch.rand(tokens, 4).requires_grad_()
    norm_weight = torch.rand(width).to(dtype).requires_grad_()
    rank_down = (torch.randn(7, 8, width) * width**-0.5).to(dtype).requires_grad_()
    rank_up = torch.randn(7, width, 8).to(dtype).requires_grad_()
    inputs = [x, gate_up, down, scores, norm_weight, rank_down, rank_up]

    def call() -> list[torch.Tensor]:
        routed = plan.from_top_k(indices, scores, num_groups=experts)
        y = expert_ffn(x, gate_up, down, routed)
        rows = plan.gather(x, routed, weighted=True)
        largest = plan.segment_reduce(rows, routed, "max")
        back = plan.scatter_add(grouped_mm(rows, gate_up.mT, routed.group_offsets), routed)
        norm = Norm(norm_weight)
        elastic, cosine = prefix_ffn(
            x, indices[:, 0] % 3, gate_up[0], down[0], (0, inner // 2, inner), gate=scores[:, 0], norm=norm,
            otherwise=LowRank(rank_down[0], rank_up[0]), return_cosine=True,
        )  # fmt: skip
        adapted = lowrank_residual(x.view(7, -1, width), rank_down, rank_up, norm=norm)
        loss = y.float().square().sum() + largest.float().sum() + back.float().square().mean()
        loss = loss + elastic.float().square().sum() + adapted.float().square().sum()
        return [y, largest, back, elastic, cosine, adapted, *torch.autograd.grad(loss, inputs)]

    return call


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_repeats_give_the_same_bits(dtype: torch.dtype) -> None:
    call = all_results(dtype)
    first = call()
    for _ in range(REPEATS):
        assert all(torch.equal(a, b) for a, b in zip(first, call(), strict=True))


def test_two_streams_do_not_disturb_each_other() -> None:
    calls = [all_results(torch.bfloat16), all_results(torch.float32)]
    alone = [call() for call in calls]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for _ in range(10):
        together = []
        for call, stream in zip(calls, streams, strict=True):
            with torch.cuda.stream(stream):
                together.append(call())
        torch.cuda.synchronize()
        for before, after in zip(alone, together, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_nothing_waits_for_the_device() -> None:
    call = all_results(torch.bfloat16)
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_ids_that_do_not_exist_are_harmless() -> None:
    """What the host cannot look at must neither crash nor reach other rows."""
    x, gate_up, down = torch.randn(5, 16), torch.randn(3, 24, 16), torch.randn(3, 16, 12)
    int32 = torch.int32
    group_offsets = torch.tensor([0, 2, 2, 4], dtype=int32)
    item_ids = torch.tensor([0, 4, 1, 3], dtype=int32)
    good = plan.Plan(group_offsets, item_ids, None, 5)
    wanted = expert_ffn(x, gate_up, down, good)
    bad_ids = torch.tensor([0, 4, 1, 3, 2**30, -5], dtype=int32)
    beyond = plan.Plan(group_offsets, bad_ids, None, 5)
    assert torch.equal(expert_ffn(x, gate_up, down, beyond), wanted)
    wild = plan.Plan(torch.tensor([0, 2, 9, 4000], dtype=int32), bad_ids, None, 5)
    expert_ffn(x, gate_up, down, wild)
    grouped_mm(x, gate_up.mT, torch.tensor([0, 900, -7, 5], dtype=int32))
    torch.cuda.synchronize()
    assert torch.equal(expert_ffn(x, gate_up, down, good), wanted)


def test_choices_that_do_not_exist_skip_and_so_do_rows_beyond_the_capacity() -> None:
    x, gate_up, down = torch.randn(6, 16), torch.randn(48, 16), torch.randn(16, 24)
    wild = torch.tensor([1, -1, 2**40, 1, 7, 1])
    y = prefix_ffn(x, wild, gate_up, down, (0, 24))
    assert torch.equal(y, prefix_ffn(x, torch.tensor([1, 0, 0, 1, 0, 1]), gate_up, down, (0, 24)))
    assert torch.equal(y[[1, 2, 4]], x[[1, 2, 4]])
    fewer = prefix_ffn(x, wild, gate_up, down, (0, 24), capacity=2)
    assert torch.equal(fewer[:5], y[:5])
    assert torch.equal(fewer[5], x[5])
