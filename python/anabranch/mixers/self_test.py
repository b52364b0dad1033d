"""The mixers room's self-tests: matrices, a stream step and the gated mean beside torch's ops."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.core.self_test import SelfTest, compare
from anabranch.mixers.connection import connect
from anabranch.mixers.gated_mean import gated_mean
from anabranch.mixers.matrices import sinkhorn
from anabranch.mixers.mixer import Unconstrained
from anabranch.mixers.projection import LinearGates, Projection

_STREAMS, _SIZE = 4, 16


def _sinkhorn() -> float:
    def expected(logits: Tensor) -> Tensor:
        matrix = logits.exp()
        for _ in range(3):
            matrix = matrix / matrix.sum(-2, keepdim=True)
            matrix = matrix / matrix.sum(-1, keepdim=True)
        return matrix

    return compare(lambda logits: sinkhorn(logits, 3), expected, torch.randn(5, _STREAMS, _STREAMS))


def _gated_mean() -> float:
    x, logits = torch.randn(5, _STREAMS, _SIZE), torch.randn(5, _STREAMS, _SIZE)
    return compare(gated_mean, lambda x, logits: (logits.sigmoid() * x).mean(-2), x, logits)


def _leaves() -> list[Tensor]:
    count = _STREAMS * (_STREAMS + 2)
    weight = torch.randn(count, _STREAMS * _SIZE) / 8
    return [torch.randn(5, _STREAMS, _SIZE), torch.randn(5, _SIZE), weight, torch.rand(count), torch.randn(count)]


def _step(x: Tensor, y: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """One step with what the sub-layer reads in the result."""
    step = connect(x, Projection(weight, scale, bias, Unconstrained(), LinearGates()))
    return torch.cat([step.input.unsqueeze(-2), step.merge(y)], -2)


def _two_steps(x: Tensor, y: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    projection = Projection(weight, scale, bias, Unconstrained(), LinearGates())
    step = connect(x, projection).merge_and_connect(y, projection)
    return torch.cat([step.input.unsqueeze(-2), step.merge(y)], -2)


def _step_by_torch(x: Tensor, y: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    normed = torch.nn.functional.rms_norm(x.flatten(-2), (_STREAMS * _SIZE,), eps=1e-6)
    p, q, h = (scale * (normed @ weight.t()) + bias).split([_STREAMS, _STREAMS, _STREAMS**2], -1)
    read = (p.unsqueeze(-1) * x).sum(-2, keepdim=True)
    mixed = h.unflatten(-1, (_STREAMS, _STREAMS)) @ x + q.unsqueeze(-1) * y.unsqueeze(-2)
    return torch.cat([read, mixed], -2)


def _two_steps_by_torch(x: Tensor, y: Tensor, *projection: Tensor) -> Tensor:
    return _step_by_torch(_step_by_torch(x, y, *projection)[:, 1:], y, *projection)


def self_tests() -> list[SelfTest]:
    """Matrices, the gated mean, one step apart and two steps fused."""
    streams, fused = ("stream_pre", "stream_post"), "stream_post_pre"
    kernels, hopper = (
        ("mixers/stream_kernels", "mixers/matrix_kernels"),
        "bfloat16 streams, for the product of the logits",
    )
    return [
        SelfTest(("mix_matrix", "mix_matrix_backward"), _sinkhorn, ("mixers/matrix_kernels",), tolerance=1e-3),
        SelfTest(("gated_mean", "gated_mean_backward"), _gated_mean, ("mixers/gated_mean",)),
        SelfTest(
            (*streams, *(f"{name}_backward" for name in streams)),
            lambda: compare(_step, _step_by_torch, *_leaves()),
            kernels,
            hopper,
        ),
        SelfTest(
            (fused, f"{fused}_backward"),
            lambda: compare(_two_steps, _two_steps_by_torch, *_leaves()),
            kernels,
            hopper,
            tolerance=1e-4,
        ),
    ]
