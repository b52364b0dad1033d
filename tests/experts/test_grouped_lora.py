"""grouped_lora against the sum that it is, in every dtype and rank; and what it says to wrong input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

from anabranch import plan
from anabranch.experts import grouped_lora, route_top_k


def test_values_and_gradients() -> None:
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    lora_a = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    lora_b = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    scores = torch.rand(6, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(6, 3) < 0.6

    def through(x: Any, lora_a: Any, lora_b: Any, scores: Any) -> torch.Tensor:
        return grouped_lora(x, lora_a, lora_b, plan.from_mask(mask, scores), scaling=0.5)

    wanted = 0.5 * torch.einsum("te,eor,erh,th->to", scores * mask, lora_b, lora_a, x)
    torch.testing.assert_close(through(x, lora_a, lora_b, scores), wanted)
    assert gradcheck(through, (x, lora_a, lora_b, scores))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [1, 8, 64])
def test_ranks(cpu_isa: str, rank: int, dtype: torch.dtype) -> None:
    x, mask, scores = torch.randn(40, 72).to(dtype), torch.rand(40, 3) < 0.6, torch.rand(40, 3)
    lora_a, lora_b = (torch.randn(3, rank, 72) / 8).to(dtype), (torch.randn(3, 50, rank) / rank**0.5).to(dtype)
    given = [tensor.requires_grad_() for tensor in (x, lora_a, lora_b, scores)]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    upstream = torch.randn(40, 50)
    y = grouped_lora(*given[:3], plan.from_mask(mask, scores), scaling=0.5)
    wanted = 0.5 * torch.einsum("te,eor,erh,th->to", exact[3] * mask, exact[2], exact[1], exact[0])
    ours = [y, *torch.autograd.grad(y, given, upstream.to(dtype))]
    theirs = [wanted, *torch.autograd.grad(wanted, exact, upstream.to(dtype).double())]
    for name, a, b in zip(("y", "x", "lora_a", "lora_b", "weights"), ours, theirs, strict=True):
        error = (a.double() - b).abs().max().item()
        assert error <= 8 * torch.finfo(dtype).eps * b.abs().max().item(), name


def test_the_scaling_is_not_rounded_further_than_the_work() -> None:
    routed = route_top_k(torch.randn(9, 3), 2)
    for dtype, weights in ((torch.float64, None), (torch.float64, torch.float32), (torch.float32, torch.bfloat16)):
        x, lora_a, lora_b = (torch.randn(s, dtype=dtype) for s in ((9, 8), (3, 4, 8), (3, 5, 4)))
        used = routed.with_weights(None if weights is None else torch.ones_like(routed.weights, dtype=weights))
        y = grouped_lora(x, lora_a, lora_b, used, scaling=0.1)
        plain = grouped_lora(x, lora_a, lora_b, used)
        torch.testing.assert_close(y, 0.1 * plain, rtol=16 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(6)}, r"x has shape \(6,\), must be \(num_items=6, H\)"),
        ({"x": torch.ones(6, 8, dtype=torch.int32)}, r"x is int32, must be float32"),
        ({"lora_a": torch.randn(3, 5, 7)}, r"lora_a has shape \(3, 5, 7\), must be \(num_experts, rank, 8\)"),
        ({"lora_a": torch.randn(3, 0, 8)}, r"lora_a has shape \(3, 0, 8\), must be"),
        ({"lora_a": torch.randn(2, 5, 8)}, r"lora_b has shape \(3, 4, 5\), must be \(2, out_features, 5\)"),
        ({"lora_b": torch.randn(3, 4, 6)}, r"lora_b has shape \(3, 4, 6\), must be \(3, out_features, 5\)"),
        ({"lora_b": torch.randn(3, 4, 5).double()}, r"lora_b is float64, must be float32 like lora_a"),
        ({"lora_a": torch.randn(4, 5, 8), "lora_b": torch.randn(4, 4, 5)}, r"the plan has 3 groups, must have 4"),
        ({"frozen_experts": torch.zeros(3)}, r"frozen_experts is float32, must be bool"),
        ({"frozen_experts": torch.zeros(2, dtype=torch.bool)}, r"frozen_experts has shape \(2,\), must be \(3\)"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.randn(6, 8), "lora_a": torch.randn(3, 5, 8), "lora_b": torch.randn(3, 4, 5)} | change
    with pytest.raises(ValueError, match=f"^grouped_lora: {message}"):
        grouped_lora(plan=route_top_k(torch.randn(6, 3), 2), **arguments)
