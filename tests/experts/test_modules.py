"""DynamicMoE: equals its parts, trains, saves, compiles."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from anabranch.experts import DynamicMoE, expert_ffn, load_balance_loss, route_top_k, route_top_p


def test_equals_its_parts_and_keeps_shape() -> None:
    moe = DynamicMoE(12, 20, 4, partial(route_top_p, p=0.5), bias=True, zero_experts=1, identity_experts=1)
    x = torch.randn(2, 5, 12)
    y, routing = moe(x, return_routing=True)
    assert y.shape == x.shape
    assert routing.logits.shape == (10, 6)
    by_hand = expert_ffn(
        x.reshape(10, 12),
        moe.gate_up_proj,
        moe.down_proj,
        route_top_p(routing.logits, 0.5),
        gate_up_bias=moe.gate_up_bias,
        down_bias=moe.down_bias,
        zero_experts=1,
        identity_experts=1,
    )
    assert torch.equal(y.reshape(10, 12), by_hand)
    assert torch.equal(moe(x), y)


def test_every_parameter_learns() -> None:
    torch.manual_seed(1)
    moe = DynamicMoE(8, 16, 4, partial(route_top_k, k=2), bias=True)
    x, target = torch.randn(64, 8), torch.randn(64, 8)
    optimizer = torch.optim.Adam(moe.parameters(), lr=0.01)
    history = []
    for _ in range(40):
        y, routing = moe(x, return_routing=True)
        error = (y - target).square().mean()
        optimizer.zero_grad()
        (error + 0.01 * load_balance_loss(routing.logits, routing.plan)).backward()
        for name, parameter in moe.named_parameters():
            assert parameter.grad is not None, name
        optimizer.step()
        history.append(error.item())
    assert history[-1] < 0.7 * history[0]


def test_state_dict_and_compile() -> None:
    router = partial(route_top_p, p=0.4, k_max=3)
    moe, other = DynamicMoE(8, 16, 4, router), DynamicMoE(8, 16, 4, router)
    other.load_state_dict(moe.state_dict())
    x = torch.randn(7, 8)
    assert torch.equal(moe(x), other(x))
    assert torch.equal(torch.compile(moe, fullgraph=True, backend="aot_eager")(x), moe(x))


def test_autocast_keeps_the_router_in_float32() -> None:
    moe = DynamicMoE(8, 16, 4, partial(route_top_k, k=2))
    with torch.autocast(moe.gate.weight.device.type, dtype=torch.bfloat16):
        _, routing = moe(torch.randn(7, 8).bfloat16(), return_routing=True)
    assert routing.logits.dtype == torch.float32


def test_a_float64_module_is_float64_throughout() -> None:
    moe = DynamicMoE(4, 6, 3, partial(route_top_k, k=2), bias=True, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert moe(x, return_routing=True)[1].logits.dtype == torch.float64
    names, parameters = zip(*moe.named_parameters(), strict=True)

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(moe, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters))


@pytest.mark.parametrize("shape", [(0, 12), (2, 0, 12)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    moe = DynamicMoE(12, 20, 4, partial(route_top_p, p=0.5), bias=True, identity_experts=1)
    x = torch.randn(shape, requires_grad=True)
    y, routing = moe(x, return_routing=True)
    assert y.shape == shape
    assert routing.logits.shape == (0, 5)
    y.sum().backward()
    for parameter in moe.parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all()
    assert x.grad is not None and x.grad.shape == shape


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(3, 4, 6), r"x has shape \(3, 4, 6\), must be \(..., hidden_size=12\)"),
        (torch.randn(24), r"x has shape \(24,\), must be"),
        (torch.tensor(1.0), r"x has shape \(\), must be"),
        (torch.ones(3, 12, dtype=torch.int64), r"x is torch.int64, must be a floating dtype"),
    ],
)
def test_bad_input(x: torch.Tensor, message: str) -> None:
    moe = DynamicMoE(12, 20, 4, partial(route_top_k, k=2))
    with pytest.raises(ValueError, match=f"DynamicMoE: {message}"):
        moe(x)


@pytest.mark.parametrize(
    "change", [{"num_experts": 0}, {"hidden_size": 0}, {"zero_experts": -1}, {"activation": "tanh"}]
)
def test_bad_arguments(change: dict[str, Any]) -> None:
    arguments = {"hidden_size": 4, "intermediate_size": 4, "num_experts": 2, "router": partial(route_top_k, k=1)}
    with pytest.raises(ValueError, match="DynamicMoE: "):
        DynamicMoE(**(arguments | change))
