"""gated_mean against the line of torch that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from anabranch.mixers import gated_mean


def by_torch(x: Tensor, logits: Tensor) -> Tensor:
    return (logits.sigmoid() * x).mean(-2)


def pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x, logits = torch.randn(*shape, dtype=torch.float64), 4 * torch.randn(*shape, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), logits.to(dtype).requires_grad_()


def run(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, logits: Tensor) -> list[Tensor]:
    u = function(x, logits)
    upstream = torch.linspace(-2, 2, u.numel(), dtype=torch.float64).cos().view(u.shape).to(u.dtype)
    return [u.detach(), *torch.autograd.grad(u, (x, logits), upstream)]


@pytest.mark.parametrize("shape", [(4, 5), (3, 1, 7), (2, 3, 4, 300), (5, 9, 1), (0, 4, 8), (3, 2, 0)])
def test_forward_and_backward(shape: tuple[int, ...]) -> None:
    x, logits = pair(*shape)
    for ours, theirs in zip(run(gated_mean, x, logits), run(by_torch, x, logits), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_any_layout() -> None:
    values = pair(3, 6, 8)
    turned = [one.detach().mT.contiguous().mT.requires_grad_() for one in values]
    strided = [one.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for one in values]
    wanted = run(gated_mean, *values)
    for given in (turned, strided):
        assert all(torch.equal(a, b) for a, b in zip(run(gated_mean, *given), wanted, strict=True))
    one = values[0].detach()[:, :1].expand(3, 6, 8)
    torch.testing.assert_close(gated_mean(one, values[1]), by_torch(one, values[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "n", "channels"), [(40, 4, 320), (5, 3, 37)])
def test_error_at_most_twice_torchs(cpu_isa: str, dtype: torch.dtype, tokens: int, n: int, channels: int) -> None:
    x, logits = pair(tokens, n, channels, dtype=dtype)
    exact = [one.detach().double().requires_grad_() for one in (x, logits)]
    results = [run(by_torch, *exact), run(by_torch, x, logits), run(gated_mean, x, logits)]
    for wanted, theirs, ours in zip(*results, strict=True):
        assert ours.dtype == dtype
        slack = 2 * torch.finfo(dtype).eps * wanted.abs().max().item()
        torch_error = (theirs.double() - wanted).abs().max().item()
        assert (ours.double() - wanted).abs().max().item() <= 2 * torch_error + slack


def test_huge_logits_and_other_values() -> None:
    x = torch.ones(4, 1, 5)
    logits = torch.tensor([-1e30, -100.0, 0.0, 100.0, 1e30]).expand(4, 1, 5).clone()
    logits[2, 0, 1], x[3, 0, 4] = float("nan"), float("inf")
    u = gated_mean(x, logits)
    torch.testing.assert_close(u[0], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]), rtol=0, atol=1e-30)
    assert u[2, 1].isnan()
    assert u[3, 4] == float("inf")
    assert torch.equal(u[2, 2:], u[0, 2:])


@pytest.mark.cpu
def test_same_bits_in_any_company_and_on_any_threads(cpu_isa: str) -> None:
    x, logits = pair(150, 4, 130, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    for threads, pieces in ((1, 150), (2, 150), (5, 150), (1, 7)):
        torch.set_num_threads(threads)
        parts = zip(x.split(pieces), logits.split(pieces), strict=True)
        u = torch.cat([gated_mean(*part) for part in parts])
        results.append([u, *torch.autograd.grad(u.square().sum(), (x, logits))])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_logits_of_another_dtype_and_gradients_alone() -> None:
    x, logits = pair(3, 4, 5, dtype=torch.float32)
    narrow = logits.detach().bfloat16().requires_grad_()
    u = gated_mean(x, narrow)
    assert torch.equal(u, gated_mean(x, narrow.float()))
    both = torch.autograd.grad(u.sum(), (x, narrow))
    assert both[1].dtype == torch.bfloat16
    assert torch.equal(torch.autograd.grad(gated_mean(x, narrow.detach()).sum(), x)[0], both[0])
    assert torch.equal(torch.autograd.grad(gated_mean(x.detach(), narrow).sum(), narrow)[0], both[1])
    (first,) = torch.autograd.grad(gated_mean(x, logits).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="gated_mean: it is differentiable once"):
        first.sum().backward()


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, logits: gated_mean(x, logits) * 2, fullgraph=True, backend="aot_eager")
    x, logits = pair(7, 4, 6, dtype=torch.float32)
    for ours, theirs in zip(run(compiled, x, logits), run(lambda a, b: gated_mean(a, b) * 2, x, logits), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.cpu
@torch.no_grad()
def test_fake_tensors_on_a_gpu() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        x = torch.randn(2, 3, 4, 8, dtype=torch.bfloat16)
        u = gated_mean(x, torch.randn(2, 3, 4, 8))
        assert (u.shape, u.dtype, u.device.type) == ((2, 3, 8), torch.bfloat16, "cuda")
        flat = x.reshape(6, 4, 8)
        dx, dlogits = torch.ops.anabranch.gated_mean_backward(u.reshape(6, 8), flat, flat, 0b10)
        assert (dx.shape, dlogits.shape) == ((0,), (6, 4, 8))


X = torch.randn(3, 4, 5)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("x", "logits", "message"),
    [
        (X.int(), X, "x is int32, must be float32"),
        (X, X.long(), "logits is int64"),
        (X, X.to("meta"), "logits is on meta, must be on cpu like x"),
        (X[0, 0], X[0, 0], r"x has shape \(5,\), must be \(\.\.\., streams > 0, channels\)"),
        (X[:, :0], X[:, :0], r"x has shape \(3, 0, 5\)"),
        (X, X[:, :1], r"logits has shape \(3, 1, 5\), must be \(3, 4, 5\) like x"),
    ],
)
def test_bad_input(x: Any, logits: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^gated_mean: {message}"):
        gated_mean(x, logits)
