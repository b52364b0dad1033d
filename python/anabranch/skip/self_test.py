"""The skip room's self-tests: a masked FFN and a low-rank adapter beside torch's linear layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from anabranch.core.self_test import SelfTest, compare, worst_error
from anabranch.skip.gated_ffn import gated_ffn
from anabranch.skip.lowrank import lowrank_residual
from anabranch.skip.packed import pack_ffn

_FFN = ("core/gemm", "experts/row_kernels", "skip/residual_kernels")


def _arguments() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(6, 16), torch.randn(48, 16) / 4, torch.randn(16, 24) / 4


def _keep() -> Tensor:
    return torch.arange(6) % 3 != 0


def _masked(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = linear(x, gate_up).chunk(2, -1)
    return x + _keep().unsqueeze(1) * linear(silu(gate) * up, down)


def _gated_ffn() -> float:
    def ours(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return gated_ffn(x, _keep(), gate_up, down)

    leaves = _arguments()
    with torch.no_grad():
        inference = worst_error([ours(*leaves)], [_masked(*leaves)])
    return max(inference, compare(ours, _masked, *leaves))


def _packed() -> float:
    x, gate_up, down = _arguments()
    return worst_error([pack_ffn(gate_up, down)(x, _keep())], [_masked(x, gate_up, down)])


def _lowrank() -> float:
    def ours(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return lowrank_residual(x, down, up, scale=0.5)

    def expected(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return x + 0.5 * linear(linear(x, down).relu(), up)

    leaves = torch.randn(6, 16), torch.randn(4, 16), torch.randn(16, 4)
    with torch.no_grad():
        inference = worst_error([ours(*leaves)], [expected(*leaves)])
    return max(inference, compare(ours, expected, *leaves))


def self_tests() -> list[SelfTest]:
    """One case for the masked FFN, one for its packed form, one for the adapter."""
    return [
        SelfTest(
            ("gated_ffn", "gated_ffn_inference", "gated_ffn_backward"),
            _gated_ffn,
            _FFN,
            "bfloat16 and float16, silu, gated, sizes in multiples of 8",
        ),
        SelfTest(("gated_ffn_packed",), _packed, ("core/packed_gemm", *_FFN[1:]), cpu_only=True),
        SelfTest(
            ("lowrank_residual", "lowrank_residual_inference", "lowrank_residual_backward"),
            _lowrank,
            (_FFN[0], _FFN[2]),
        ),
    ]
