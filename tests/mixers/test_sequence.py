"""`HyperConnectionSequence`: fused, lagged and reversible against block by block."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anabranch.mixers import (
    HyperConnection,
    HyperConnectionSequence,
    Identity,
    Kind,
    TruncatedCayley,
    connect,
    expand_streams,
)

C, N = 10, 4


def stack(kind: Kind = "jpmhc", depth: int = 3, sublayer: Any = None, **options: Any) -> HyperConnectionSequence:
    """Blocks with parameters away from their first values."""

    def default() -> nn.Module:
        return nn.Sequential(nn.LayerNorm(C), nn.Linear(C, C), nn.Tanh())

    blocks = [HyperConnection((sublayer or default)(), C, N, kind=kind, layer_index=i) for i in range(depth)]
    with torch.no_grad():
        for block in blocks:
            for parameter in (block.bias, block.weight, block.scale):
                if parameter is not None:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    return HyperConnectionSequence(blocks, **options)


def blocks_of(model: HyperConnectionSequence) -> list[HyperConnection]:
    return [block for block in model.blocks if isinstance(block, HyperConnection)]


def one_by_one(model: HyperConnectionSequence, streams: Tensor, *args: Any) -> Tensor:
    step = None
    for block in blocks_of(model):
        step = connect(streams, block.projection(), lag=step if model.lagged else None)
        streams = step.merge(block.sublayer(step.input, *args))
    return streams


def gradients(out: Tensor, values: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((out.float() * torch.linspace(-1, 1, out.shape[-1])).square().mean(), values)


def assert_near(left: tuple[Tensor, ...], right: tuple[Tensor, ...], tolerance: float) -> None:
    for one, other in zip(left, right, strict=True):
        assert (one.double() - other.double()).norm() <= tolerance * other.double().norm() + 1e-12


FUSED = [(kind, False) for kind in ("hc", "hc_static", "mhc", "mhc_lite", "jpmhc", "identity")]


@pytest.mark.parametrize(("kind", "reversible"), [*FUSED, ("jpmhc", True), ("identity", True)])
@pytest.mark.parametrize("lagged", [False, True])
def test_equals_block_by_block(kind: Kind, lagged: bool, reversible: bool) -> None:
    model = stack(kind, lagged=lagged, reversible=reversible)
    streams = torch.randn(2, 5, N, C, requires_grad=True)
    values = [streams, *model.parameters()]
    out, expected = model(streams), one_by_one(model, streams)
    torch.testing.assert_close(out, expected)
    assert_near(gradients(out, values), gradients(expected, values), 2e-5)


@pytest.mark.parametrize("reversible", [False, True])
def test_frozen_streams_and_coefficients(reversible: bool) -> None:
    """Only the sub-layers train: what comes first has no gradient at all."""
    model = stack(reversible=reversible)
    for block in blocks_of(model):
        block.requires_grad_(False).sublayer.requires_grad_(True)
    streams = torch.randn(3, N, C)
    values = [parameter for parameter in model.parameters() if parameter.requires_grad]
    out = model(streams)
    assert_near(gradients(out, values), gradients(one_by_one(model, streams), values), 2e-5)


class Noisy(nn.Module):
    """Takes a tensor beside its input, draws random numbers, and gives float32 under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(C, C)

    def forward(self, u: Tensor, beside: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(u), 0.5) + beside.float().cos()


@pytest.mark.parametrize("autocast", [False, True])
def test_reversible_finds_random_numbers_autocast_and_arguments_again(autocast: bool, device: torch.device) -> None:
    model = stack(sublayer=Noisy, reversible=True)
    streams, root = torch.randn(3, N, C, requires_grad=True), torch.randn(3, C, requires_grad=True)
    values = [streams, root, *model.parameters()]
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        torch.manual_seed(1)
        got = model(streams, root * 2)
        torch.manual_seed(1)
        expected = one_by_one(model, streams, root * 2)
    assert torch.equal(got, expected)
    assert_near(gradients(got, values), gradients(expected, values), 1e-5 if not autocast else 1e-2)
    torch.manual_seed(2)
    model(streams, root).sum().backward()
    drawn_after = torch.rand(2)
    torch.manual_seed(2)
    model(streams, root)
    assert torch.equal(torch.rand(2), drawn_after)  # the backward left the generator as it was


@pytest.mark.parametrize(("dtype", "drift"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_drift_of_rebuilt_streams(dtype: torch.dtype, drift: float) -> None:
    """Against float64, rebuilt streams cost less than the forward's own rounding has cost already."""
    model, streams = stack(depth=16), expand_streams(torch.randn(8, C), N)
    wide, wide_streams = copy.deepcopy(model).double(), streams.double().requires_grad_()
    exact = together(gradients(wide(wide_streams), [wide_streams, *wide.parameters()]))
    for block in blocks_of(model):
        block.sublayer.to(dtype)
    leaf = streams.to(dtype).requires_grad_()
    values = [leaf, *model.parameters()]
    plain = together(gradients(model(leaf), values))
    model.reversible = True
    rebuilt = together(gradients(model(leaf), values))
    assert (rebuilt - plain).norm() < drift * plain.norm()
    assert (rebuilt - exact).norm() < 1.5 * (plain - exact).norm()


def together(grads: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([grad.double().flatten() for grad in grads])


def test_reversible_keeps_no_streams() -> None:
    model, streams = stack(depth=6, reversible=True), torch.randn(4, N, C, requires_grad=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(streams)
    assert sum(tensor.shape == streams.shape for tensor in kept) == 1


def test_parameters_changed_before_the_backward_are_an_error() -> None:
    model, streams = stack(reversible=True), torch.randn(3, N, C, requires_grad=True)
    out = model(streams)
    with torch.no_grad():
        blocks_of(model)[0].bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_second_derivatives_are_an_error() -> None:
    model, streams = stack(reversible=True), torch.randn(3, N, C, requires_grad=True)
    (once,) = torch.autograd.grad(model(streams).square().sum(), streams, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        once.sum().backward()


@pytest.mark.parametrize("reversible", [False, True])
def test_no_tokens_and_strides(reversible: bool) -> None:
    model = stack(reversible=reversible)
    empty = torch.randn(0, N, C, requires_grad=True)
    assert model(empty).shape == (0, N, C)
    assert not any(gradient.any() for gradient in gradients_of_sum(model, empty))
    wide = torch.randn(5, C, N, requires_grad=True)
    strided, dense = wide.mT, wide.detach().mT.contiguous().requires_grad_()
    assert torch.equal(model(strided), model(dense))
    torch.testing.assert_close(gradients_of_sum(model, strided)[0], gradients_of_sum(model, dense)[0])


def gradients_of_sum(model: HyperConnectionSequence, streams: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(model(streams).square().sum(), [streams, *model.parameters()])


def test_meta_tensors() -> None:
    model, streams = stack(reversible=True).to("meta"), torch.randn(3, N, C, device="meta", requires_grad=True)
    model(streams).sum().backward()
    assert streams.grad is not None and streams.grad.is_meta


def test_without_gradients_and_one_block() -> None:
    model, streams = stack(depth=1, reversible=True), torch.randn(3, N, C)
    with torch.no_grad():
        torch.testing.assert_close(model(streams), blocks_of(model)[0](streams))
    assert len(model) == 1


@pytest.mark.parametrize("lagged", [False, True])
def test_compile_in_one_graph(lagged: bool) -> None:
    model, streams = stack("mhc", depth=2, lagged=lagged), torch.randn(3, N, C, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    values = [streams, *model.parameters()]
    assert_near(gradients(compiled(streams), values), gradients(model(streams), values), 1e-5)


def test_reversible_runs_beside_a_graph_and_says_so() -> None:
    model, streams = stack(reversible=True), torch.randn(3, N, C, requires_grad=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="reversible=True runs eagerly"):
        torch.compile(model, backend="eager", fullgraph=True)(streams)
    torch._dynamo.reset()
    values = [streams, *model.parameters()]
    compiled = torch.compile(model, backend="eager")
    assert_near(gradients(compiled(streams), values), gradients(model(streams), values), 1e-6)


class Pair(nn.Module):
    def forward(self, u: Tensor) -> tuple[Tensor, None]:
        return u, None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HyperConnectionSequence([]), "blocks is empty"),
        (lambda: HyperConnectionSequence([nn.Identity()]), r"blocks\[0\] is a Identity"),  # type: ignore[list-item]
        (lambda: HyperConnectionSequence([*blocks_of(stack()), *other_width()]), r"blocks\[3\] has 4 streams of 5"),
        (lambda: stack("mhc", reversible=True), "orthogonal matrix if reversible"),
        (lambda: HyperConnectionSequence(truncated(), reversible=True), "orthogonal matrix if reversible"),
        (lambda: stack()(torch.randn(3, N, C + 1)), "streams has shape"),
        (lambda: stack(sublayer=Pair)(torch.randn(3, N, C)), "returns a tuple of 2"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def other_width() -> list[HyperConnection]:
    return [HyperConnection(nn.Identity(), 5, N)]


def truncated() -> list[HyperConnection]:
    return [HyperConnection(nn.Identity(), C, N, mixer=mixer) for mixer in (Identity(), TruncatedCayley())]
