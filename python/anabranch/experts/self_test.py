"""The experts room's self-tests: a product and an FFN of two experts beside torch's linear layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from anabranch.core.self_test import SelfTest, compare, worst_error
from anabranch.experts.expert_ffn import expert_ffn
from anabranch.experts.grouped_mm import grouped_mm
from anabranch.experts.packed import pack_experts
from anabranch.plan import from_top_k

_GEMM = ("core/gemm", "experts/row_kernels")
_HOPPER = "bfloat16 and float16, sizes in multiples of 8"


def _weights() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(6, 16), torch.randn(2, 48, 16) / 4, torch.randn(2, 16, 24) / 4


def _one_by_one(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor) -> Tensor:
    outputs = []
    for expert in range(2):
        gate, up = linear(x, gate_up[expert]).chunk(2, -1)
        outputs.append(linear(silu(gate) * up, down[expert]))
    chosen = torch.stack(outputs, 1)[torch.arange(6), torch.arange(6) % 2]
    return chosen * weights


def _grouped_mm() -> float:
    x, offsets = torch.randn(6, 16), torch.tensor([0, 2, 6], dtype=torch.int32)

    def expected(x: Tensor, w: Tensor) -> Tensor:
        return torch.cat([x[:2] @ w[0], x[2:] @ w[1]])

    return compare(lambda x, w: grouped_mm(x, w, offsets), expected, x, torch.randn(2, 16, 24))


def _expert_ffn() -> float:
    indices, weights = (torch.arange(6) % 2).unsqueeze(1), torch.rand(6, 1) + 0.5

    def ours(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor) -> Tensor:
        return expert_ffn(x, gate_up, down, from_top_k(indices, weights, num_groups=2))

    leaves = (*_weights(), weights)
    with torch.no_grad():
        inference = worst_error([ours(*leaves)], [_one_by_one(*leaves)])
    return max(inference, compare(ours, _one_by_one, *leaves))


def _packed() -> float:
    x, gate_up, down = _weights()
    weights = torch.rand(6, 1) + 0.5
    plan = from_top_k((torch.arange(6) % 2).unsqueeze(1), weights, num_groups=2)
    return worst_error([pack_experts(gate_up, down)(x, plan)], [_one_by_one(x, gate_up, down, weights)])


def self_tests() -> list[SelfTest]:
    """One case for each product, with gradients; one for packed weights."""
    return [
        SelfTest(("grouped_mm", "grouped_mm_dw"), _grouped_mm, _GEMM, _HOPPER),
        SelfTest(
            ("expert_ffn", "expert_ffn_inference", "expert_ffn_backward"), _expert_ffn, _GEMM, f"silu, gated, {_HOPPER}"
        ),
        SelfTest(
            ("expert_ffn_packed", "expert_pack"), _packed, ("core/packed_gemm", "experts/row_kernels"), cpu_only=True
        ),
    ]
