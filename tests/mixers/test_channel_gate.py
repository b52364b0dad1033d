"""`ChannelGatedConnection` and its functions against the formula in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from anabranch.mixers import ChannelGatedConnection, channel_connect, channel_gate, expand_streams

C, RANK, EPS = 10, 3, 1e-3


def module(n: int = 4, sublayer: nn.Module | None = None) -> ChannelGatedConnection:
    made = ChannelGatedConnection(sublayer or nn.Linear(C, C), C, n, rank=RANK, norm_eps=EPS)
    with torch.no_grad():
        for weight in (made.norm_weight, made.down_weight, made.up_weight, made.post_weight):
            weight.add_(torch.randn_like(weight) * 0.3)
    return made


def formula(made: ChannelGatedConnection, x: Tensor) -> tuple[Tensor, Tensor]:
    n = x.shape[-2]
    norm = x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * (1 + made.norm_weight.view(n, C))
    flat = norm.flatten(-2)
    gate = torch.sigmoid(silu(flat @ made.down_weight.T / n) @ made.up_weight.T).view(norm.shape)
    return (gate * norm).mean(-2), 2 * torch.sigmoid(flat @ made.post_weight.T / n)


@pytest.mark.parametrize("n", [2, 4, 7])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_formula_and_gradients(n: int, dtype: torch.dtype, tolerance: float) -> None:
    made = module(n).to(dtype)
    wide = module(n).double()
    wide.load_state_dict(made.state_dict())
    x = torch.randn(2, 3, n, C).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    u, post = formula(wide, exact)
    expected = exact + post[..., None] * wide.sublayer(u)[..., None, :]
    out = made(x)
    out.double().square().mean().backward()
    expected.square().mean().backward()
    pairs = [(out, expected), (x.grad, exact.grad)]
    pairs += [(one.grad, other.grad) for one, other in zip(made.parameters(), wide.parameters(), strict=True)]
    for one, other in pairs:
        assert one is not None and other is not None
        assert (one.double() - other).norm() <= tolerance * other.norm()


def test_connection_and_gate() -> None:
    made, x = module().double(), torch.randn(5, 4, C, dtype=torch.float64)
    weights = (made.norm_weight, made.down_weight, made.up_weight)
    step = channel_connect(x, *weights, made.post_weight, norm_eps=EPS)
    u, post = formula(made, x)
    torch.testing.assert_close(step.input, u)
    torch.testing.assert_close(step.post, post)
    assert torch.equal(step.mixing, torch.eye(4, dtype=torch.float64).expand(5, 4, 4)) and not step.pre.any()
    torch.testing.assert_close(channel_gate(x, *weights, norm_eps=EPS)[0], u)


class Returns(nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, u: Tensor) -> Any:
        return self.what


class Pair(nn.Module):
    def forward(self, u: Tensor, factor: float) -> tuple[Tensor, str]:
        return u * factor, "beside"


def test_other_results_autocast_and_compile(device: torch.device) -> None:
    x = expand_streams(torch.randn(3, C), 4)
    assert module(sublayer=Pair())(x, 2.0)[1] == "beside"
    made = module()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert (made(x) - formula_streams(made, x)).abs().max() < 0.05
    leaf = x.clone().requires_grad_()
    values = [leaf, *made.parameters()]
    expected = torch.autograd.grad(made(leaf).square().sum(), values)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    for one, other in zip(torch.autograd.grad(compiled(leaf).square().sum(), values), expected, strict=True):
        torch.testing.assert_close(one, other)


def formula_streams(made: ChannelGatedConnection, x: Tensor) -> Tensor:
    u, post = formula(made, x)
    out: Tensor = x + post[..., None] * made.sublayer(u)[..., None, :]
    return out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ChannelGatedConnection(nn.Identity(), 0), "hidden_size is 0"),
        (lambda: ChannelGatedConnection(nn.Identity(), C, rank=0), "rank is 0"),
        (lambda: ChannelGatedConnection(nn.Identity(), C, 9), "there are 9 streams"),
        (lambda: module()(torch.randn(C)), r"ChannelGatedConnection: streams has shape \(10,\)"),
        (lambda: module()(torch.randn(2, 3, C)), r"streams has shape \(2, 3, 10\), must be \(\.\.\., 4, 10\)"),
        (lambda: module(sublayer=Returns(None))(torch.randn(2, 4, C)), "ChannelGatedConnection: the sub-layer returns"),
        (lambda: channel_connect(torch.randn(C), *[torch.randn(1)] * 4), "there are 0 streams"),
        (lambda: module()(torch.randn(2, 4, C + 1)), "streams has shape"),
        (lambda: channel_gate(torch.randn(2, 4, C), *[torch.randn(1)] * 3), "norm_weight has shape"),
        (lambda: module()(torch.ones(2, 4, C, dtype=torch.long)), "x is int64"),
        (lambda: channel_gate(torch.randn(C), *[torch.randn(1)] * 3), "x has shape"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
