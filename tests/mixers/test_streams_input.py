"""What stream steps say to bad input, and their shapes on a GPU that is not there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from anabranch.mixers import Cayley, LinearGates, Projection, Sinkhorn, SoftmaxGates, connect

pytestmark = pytest.mark.cpu


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_fake_tensors_on_a_gpu(dtype: torch.dtype) -> None:
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    with FakeTensorMode(), torch.device("cuda"):
        x, y = torch.randn(2, 3, 4, 8, dtype=dtype), torch.randn(2, 3, 8, dtype=dtype)
        one = Projection(torch.randn(24, 32), torch.randn(24), torch.randn(24), Sinkhorn())
        step = connect(x, one)
        assert (step.input.shape, step.input.dtype) == ((2, 3, 8), dtype)
        assert (step.coefficients.shape, step.coefficients.dtype) == ((2, 3, 24), sums)
        merged = step.merge(y)
        assert (merged.shape, merged.dtype, merged.device.type) == (x.shape, dtype, "cuda")
        following = step.merge_and_connect(y, dataclasses.replace(one, weight=None), lagged=True)
        assert (following.streams.shape, following.coefficients.device.type) == (x.shape, "cuda")


X = torch.randn(3, 4, 5)
GOOD = Projection(torch.randn(24, 20), torch.randn(24), torch.randn(24), Sinkhorn())


def changed(**fields: Any) -> Projection:
    return dataclasses.replace(GOOD, **fields)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: connect(X.int(), GOOD), "connect: x is int32, must be float32"),
        (lambda: connect(X[0, 0], GOOD), r"connect: x has shape \(5,\), must be \(\.\.\., streams, channels\)"),
        (lambda: connect(X[..., :0], GOOD), r"connect: x has shape \(3, 4, 0\)"),
        (lambda: connect(X[:, :1], GOOD), "connect: there are 1 streams, must be 2 to 8"),
        (lambda: connect(X.repeat(1, 3, 1), GOOD), "connect: there are 12 streams"),
        (lambda: connect(X[:, :3], GOOD), r"connect: scale has shape \(24,\), must be \(15,\) for 3 streams"),
        (lambda: connect(X[..., :4], GOOD), r"connect: weight has shape \(24, 20\), must be \(24, 16\)"),
        (lambda: connect(X, changed(bias=torch.randn(23))), r"connect: bias has shape \(23,\), must be \(24,\)"),
        (lambda: connect(X, changed(scale=torch.ones(24).int())), "connect: scale is int32"),
        (lambda: connect(X.to("meta"), GOOD), "connect: weight is on cpu, must be on meta like x"),
        (lambda: connect(X, changed(bias=GOOD.bias.to("meta"))), "connect: bias is on meta, must be on cpu like x"),
        (lambda: connect(X, changed(norm_eps=-1.0)), "connect: norm_eps is -1"),
        (lambda: connect(X, changed(gates=SoftmaxGates())), r"connect: scale has shape \(24,\), must be \(48,\)"),
        (lambda: connect(X, changed(mixer=Cayley(), per_stream=True, gates=SoftmaxGates(), scale=torch.ones(48),
                                    bias=torch.ones(48))), "connect: per_stream is True, must be False"),
        (lambda: connect(X, changed(gates=LinearGates(), per_stream=True)), "connect: weight has shape"),
        (lambda: connect(X, GOOD, lag=connect(X[:2], GOOD)), r"connect: lag has streams of shape \(2, 4, 5\)"),
        (lambda: connect(X, GOOD).merge(X), r"merge: y has shape \(3, 4, 5\), must be \(3, 5\) like the input"),
        (lambda: connect(X, GOOD).merge(X[:, 0].int()), "merge: y is int32"),
        (lambda: connect(X, GOOD).merge(X[:, 0].to("meta")), "merge: y is on meta, must be on cpu like streams"),
        (lambda: connect(X, GOOD).merge_and_connect(X, GOOD), r"merge_and_connect: y has shape \(3, 4, 5\)"),
        (lambda: connect(X, GOOD).merge_and_connect(X[:, 0], changed(scale=X)), "merge_and_connect: scale has shape"),
        (lambda: connect(X, {"bias": X}), "connect: projection is a dict, must be a Projection"),
        (lambda: connect(X, GOOD).merge_and_connect(X[:, 0], None), "merge_and_connect: projection is a NoneType"),
        (lambda: connect(X, changed(mixer="cayley")), "connect: mixer is 'cayley', must be a Mixer"),
        (lambda: connect(X, changed(gates=None)), "connect: gates is None, must be SigmoidGates"),
        (lambda: connect(X, GOOD, lag=X), "connect: lag is a Tensor, must be a Connection"),
        (lambda: connect(X / 0, GOOD, check=True), "connect: x holds NaN or infinity, must be finite"),
        (lambda: SoftmaxGates(0.0), "SoftmaxGates: temperature is 0.0, must be positive"),
    ],
)  # fmt: skip
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_check_lets_finite_streams_pass() -> None:
    checked, plain = connect(X, GOOD, check=True), connect(X, GOOD)
    assert torch.equal(checked.input, plain.input) and torch.equal(checked.coefficients, plain.coefficients)
    assert connect(X / 0, GOOD).input.isnan().all()


def test_steps_and_projections_are_compared_by_identity() -> None:
    step = connect(X, GOOD)
    assert step == step and step != connect(X, GOOD) and changed() != GOOD
    assert len({step, step, GOOD, changed()}) == 3


def test_streams_of_a_fused_step_see_their_other_uses_alone() -> None:
    """What `Connection.streams` says: the step's own gradient takes another way, and arrives before."""
    x, y = X.double().requires_grad_(), torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    narrow = connect(x, GOOD)
    fused, merged = narrow.merge_and_connect(y, GOOD), narrow.merge(y)
    apart = connect(merged, GOOD)
    losses = [(step.merge(step.input.sin()).square().sum(), streams) for step, streams in
              ((fused, fused.streams), (apart, merged))]  # fmt: skip
    wholes = [torch.autograd.grad(loss + 3 * streams.sum(), [x, y], retain_graph=True) for loss, streams in losses]
    for one, other in zip(*wholes, strict=True):
        torch.testing.assert_close(one, other)
    (loss, streams), _ = losses
    fused.streams.retain_grad()
    (loss + 3 * streams.sum()).backward()
    assert fused.streams.grad is not None and torch.equal(fused.streams.grad, torch.full_like(x, 3))
