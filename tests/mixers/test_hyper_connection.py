"""`HyperConnection`: first values of every kind, the step it computes, options, compile and bad input."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from anabranch import mixers
from anabranch.mixers import HyperConnection, Kind, connect, expand_streams, reduce_streams

C = 12
KINDS = get_args(Kind)


def block(kind: Kind = "mhc", n: int = 4, **options: Any) -> HyperConnection:
    return HyperConnection(nn.Sequential(nn.Linear(C, C), nn.Tanh()), C, n, kind=kind, **options)


def shaken(module: HyperConnection) -> HyperConnection:
    """With parameters away from their first values, so that every one of them matters."""
    with torch.no_grad():
        for parameter in (module.bias, module.weight, module.scale):
            if parameter is not None:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 4, 8])
def test_step_by_hand(kind: Kind, n: int) -> None:
    module = shaken(block(kind, n)).double()
    streams = torch.randn(3, 2, n, C, dtype=torch.float64)
    step = connect(streams, module.projection())
    y = module.sublayer(torch.einsum("...n,...nc->...c", step.pre, streams))
    expected = torch.einsum("...ij,...jc->...ic", step.mixing, streams) + step.post[..., None] * y[..., None, :]
    torch.testing.assert_close(module(streams), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_first_values(kind: Kind) -> None:
    n, layer = 4, 6
    module = block(kind, n, layer_index=layer)
    step = connect(torch.randn(50, n, C), module.projection())
    own = torch.eye(n)[layer % n]
    gates = {
        "hc": (own, torch.ones(n)),
        "hc_static": (own, torch.ones(n)),
        "jpmhc": (torch.full((n,), 1 / n), torch.ones(n)),
        "grassmann": (torch.full((n,), 1 / n), torch.ones(n)),
        "identity": (torch.full((n,), 1 / n), torch.ones(n)),
    }
    leaning = torch.sigmoid(own * 2 - 1)
    pre, post = gates.get(kind, (leaning, 2 * leaning))
    torch.testing.assert_close(step.pre.mean(0), pre, atol=0.02, rtol=0.02)
    torch.testing.assert_close(step.post.mean(0), post, atol=0.05, rtol=0.05)
    if kind == "grassmann":
        torch.testing.assert_close(step.mixing.mean(0).sum(-1), torch.ones(n), atol=0.05, rtol=0)
        assert step.mixing.diagonal(dim1=-2, dim2=-1).sum(-1).sub(2).abs().max() < 1e-5
    else:
        assert (step.mixing.mean(0) - torch.eye(n)).abs().max() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_streams_come_apart(kind: Kind) -> None:
    """Equal streams with equal coefficients would stay equal for ever."""
    model = nn.Sequential(*(block(kind, layer_index=i) for i in range(3)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, target = torch.randn(16, C), torch.randn(16, C)
    for _ in range(3):
        optimizer.zero_grad()
        streams = model(expand_streams(x, 4))
        (reduce_streams(streams, "mean") - target).square().mean().backward()
        optimizer.step()
    assert (streams - streams.mean(-2, keepdim=True)).abs().max() > 1e-3


def test_one_stream_of_static_hc_is_a_residual() -> None:
    """With all streams equal, p on one of them and q = 1, each stream is `x + F(x)`."""
    module, x = block("hc_static"), torch.randn(5, C)
    torch.testing.assert_close(module(expand_streams(x, 4)), expand_streams(x + module.sublayer(x), 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_definition(dtype: torch.dtype) -> None:
    module = shaken(block("jpmhc"))
    streams = torch.randn(7, 4, C).to(dtype).requires_grad_()
    module.sublayer.to(dtype)
    module(streams).float().square().mean().backward()
    wide, wide_streams = copy.deepcopy(module).double(), streams.detach().double().requires_grad_()
    wide.zero_grad()
    wide(wide_streams).square().mean().backward()
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    pairs = [(streams, wide_streams), *zip(module.parameters(), wide.parameters(), strict=True)]
    for one, other in pairs:
        assert one.grad is not None and other.grad is not None
        assert (one.grad.double() - other.grad).norm() <= tolerance * other.grad.norm()


def test_learned_basis() -> None:
    module = block("grassmann", dynamic_mixing=False)
    step = connect(torch.randn(6, 4, C), module.projection())
    assert torch.equal(step.mixing, step.mixing[:1].expand(6, 4, 4))
    assert not torch.equal(step.post, step.post[:1].expand(6, 4))
    module(torch.randn(6, 4, C)).square().sum().backward()
    assert module.bias.grad is not None and module.bias.grad[-8:].abs().min() > 0
    assert module.weight is not None and module.weight.shape == (32, 4 * C)


def test_options_take_the_place_of_the_kinds() -> None:
    own = mixers.Sinkhorn(5)
    module = block("mhc", mixer=own, gates=mixers.LinearGates(), layer_norm=True, tanh=True, norm_eps=1e-3)
    projection = module.projection()
    assert (projection.mixer, projection.gates, projection.norm_eps) == (own, mixers.LinearGates(), 1e-3)
    assert projection.layer_norm and projection.tanh and not projection.per_stream
    assert block("mhc", dynamic=False).weight is None
    assert block("hc").no_weight_decay() == {"bias", "scale"} and block("hc_static").no_weight_decay() == {"bias"}


class Two(nn.Module):
    def forward(self, u: Tensor, factor: float, *, shift: float) -> tuple[Tensor, str, int]:
        return u * factor + shift, "attention", 7


def test_arguments_pass_and_other_results_return() -> None:
    module, streams = HyperConnection(Two(), C), torch.randn(3, 4, C)
    merged, name, count = module(streams, 2.0, shift=1.0)
    step = connect(streams, module.projection())
    assert (name, count) == ("attention", 7)
    torch.testing.assert_close(merged, step.merge(step.input * 2 + 1))


def test_state_dict_deepcopy_and_meta() -> None:
    module, streams = shaken(block("hc")), torch.randn(3, 4, C)
    other = block("hc")
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(streams), module(streams))
    assert torch.equal(copy.deepcopy(module)(streams), module(streams))
    assert block("mhc_lite", device="meta").bias.is_meta


@pytest.mark.parametrize("kind", ["hc", "mhc", "mhc_lite"])
def test_compile_in_one_graph(kind: Kind) -> None:
    module, streams = shaken(block(kind)), torch.randn(3, 4, C, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    values = [streams, *module.parameters()]
    expected = torch.autograd.grad(module(streams).square().sum(), values)
    for one, other in zip(torch.autograd.grad(compiled(streams).square().sum(), values), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_expand_and_reduce() -> None:
    x = torch.randn(2, 3, C, requires_grad=True)
    streams = expand_streams(x, 3)
    assert streams.shape == (2, 3, 3, C) and streams.data_ptr() == x.data_ptr()
    reduce_streams(streams).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.full_like(x, 3))
    torch.testing.assert_close(reduce_streams(streams, "mean"), x)
    torch.testing.assert_close(reduce_streams(streams, torch.tensor([1.0, 0.5, 0.25])), x * 1.75)
    assert reduce_streams(streams.bfloat16(), torch.ones(3)).dtype == torch.bfloat16


@pytest.mark.parametrize("how", ["sum", "mean", "weights"])
def test_reduce_under_autocast_is_the_same(device: torch.device, how: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, weights = torch.randn(5, 4, C).to(dtype).requires_grad_(), torch.rand(5, 4)
        chosen: Any = weights if how == "weights" else how
        expected = reduce_streams(x, chosen)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            got = reduce_streams(x, chosen)
        assert got.dtype == dtype and torch.equal(got, expected)
        given = [torch.autograd.grad(one.square().sum(), x)[0] for one in (got, expected)]
        assert torch.equal(*given)


def test_reduce_by_weights_that_broadcast() -> None:
    x = torch.randn(2, 3, 4, C)
    for shape in ((4,), (3, 4), (1, 4), (2, 1, 4), (2, 3, 4)):
        weights = torch.rand(shape)
        torch.testing.assert_close(reduce_streams(x, weights), (x * weights[..., None]).sum(-2))
    for shape in ((), (1,), (2, 4), (4, 1), (7, 2, 3, 4), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match=r"^reduce_streams: how has shape .*, must broadcast to \(2, 3, 4\)"):
            reduce_streams(x, torch.rand(shape))


class Returns(nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, u: Tensor) -> Any:
        return self.what


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("what", [None, (), (None, 1), [], 2.0])
def test_sublayers_that_return_no_tensor(what: Any, sequence: bool) -> None:
    module: nn.Module = HyperConnection(Returns(what), C)
    module = mixers.HyperConnectionSequence([module]) if sequence else module  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"^HyperConnection: the sub-layer returns a .*, must return a tensor"):
        module(torch.randn(3, 4, C))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: block("nope"), "kind is 'nope'"),  # type: ignore[arg-type]
        (lambda: block(mixer="mhc"), "HyperConnection: mixer is 'mhc', must be a Mixer"),
        (lambda: block(gates=mixers.Sinkhorn()), r"HyperConnection: gates is Sinkhorn\(.*, must be SigmoidGates"),
        (lambda: block(n=1), "there are 1 streams"),
        (lambda: HyperConnection(nn.Identity(), 0), "hidden_size is 0"),
        (lambda: block("jpmhc", per_stream=True), "per_stream is True"),
        (lambda: block("mhc_lite", per_stream=True, n=5, mixer=mixers.PermutationMixture(((0, 1, 2, 3, 4),))), "per_"),
        (lambda: block()(torch.randn(3, 5, C)), "streams has shape"),
        (lambda: block()(torch.zeros(3, 4, C, dtype=torch.int32)), "x is int32"),
        (lambda: expand_streams(torch.tensor(1.0), 4), "x has shape"),
        (lambda: expand_streams(torch.randn(3), 9), "there are 9 streams"),
        (lambda: reduce_streams(torch.randn(3)), "x has shape"),
        (lambda: reduce_streams(torch.randn(3, 4), "max"), "how is 'max'"),  # type: ignore[arg-type]
        (lambda: reduce_streams(torch.randn(3, 4), torch.ones(4)), "how has shape"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
