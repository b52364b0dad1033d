"""lowrank_residual against the three lines of torch that it stands for: values, gradients, compiled, counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gated_cases import BY_TORCH, leaves, mapped
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck

from anabranch import CostMeter
from anabranch.core.cost import Cost
from anabranch.skip import Norm, lowrank_residual

ACTIVATIONS = list(BY_TORCH)


def make(
    groups: int | None = 3,
    *rows: int,
    features: int = 5,
    rank: int = 2,
    norm: str | None = "rms",
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    def values(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    stack = () if groups is None else (groups,)
    kinds = {
        "rms": lambda: Norm(values(features)),
        "layer": lambda: Norm(values(features), values(features), 0.1, "layer"),
    }
    return {
        "x": values(*stack, *rows, features),
        "down_proj": values(*stack, rank, features, scale=features**-0.5),
        "up_proj": values(*stack, features, rank, scale=rank**-0.5),
        "norm": None if norm is None else kinds[norm](),
    }


def by_definition(
    x: torch.Tensor,
    down_proj: torch.Tensor,
    up_proj: torch.Tensor,
    *,
    activation: str = "relu",
    scale: float = 1.0,
    norm: Norm | None = None,
) -> torch.Tensor:
    read, shape = x, x.shape[-1:]
    if norm is not None:
        read = F.rms_norm(x, shape, norm.weight, norm.eps) if norm.kind == "rms" else x
        read = F.layer_norm(x, shape, norm.weight, norm.bias, norm.eps) if norm.kind == "layer" else read
    groups = down_proj.shape[0] if down_proj.dim() == 3 else 1
    read = read.reshape(groups, x.shape[:-1].numel() // max(groups, 1), x.shape[-1])
    hidden = BY_TORCH[activation](read @ down_proj.mT)
    return x + scale * (hidden @ up_proj.mT).reshape(x.shape)


def compare(arguments: dict[str, Any], **options: Any) -> None:
    y, wanted = lowrank_residual(**arguments, **options), by_definition(**arguments, **options)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        assert torch.equal(lowrank_residual(**arguments, **options), y)
    inputs, upstream = leaves(arguments), torch.randn_like(y)
    ours = torch.autograd.grad(y, list(inputs.values()), upstream)
    theirs = torch.autograd.grad(wanted, list(inputs.values()), upstream)
    for name, a, b in zip(inputs, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [None, "rms", "layer"])
@pytest.mark.parametrize("shape", [(None,), (None, 7), (None, 2, 3), (3,), (3, 7), (3, 2, 4), (1, 1), (3, 0), (0, 4)])
def test_forward_and_backward(shape: tuple[int | None, ...], norm: str | None, activation: str) -> None:
    compare(make(*shape, norm=norm), activation=activation, scale=0.5)


@pytest.mark.parametrize("layout", ["strided", "turned", "expanded"])
def test_any_layout(layout: str) -> None:
    arguments = make(3, 4)
    changes = {
        "strided": lambda t: t.detach().repeat_interleave(2, -1)[..., ::2],
        "turned": lambda t: t.detach().mT.contiguous().mT if t.dim() > 1 else t.detach(),
        "expanded": lambda t: t.detach()[:1].expand(t.shape),
    }
    compare(mapped(arguments, lambda tensor: changes[layout](tensor).requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, features, rank", [(3, 37, 5), (150, 64, 16)])
def test_error_at_most_twice_torchs(cpu_isa: str, dtype: torch.dtype, rows: int, features: int, rank: int) -> None:
    arguments = make(3, rows, features=features, rank=rank, norm="layer", dtype=dtype)
    exact = mapped(arguments, lambda tensor: tensor.detach().double().requires_grad_())
    upstream, results = torch.randn(3, rows, features).to(dtype), []
    for function, inputs in ((by_definition, exact), (by_definition, arguments), (lowrank_residual, arguments)):
        y = function(**inputs, activation="silu")
        results.append([y.detach(), *torch.autograd.grad(y, list(leaves(inputs).values()), upstream.to(y.dtype))])
    for name, wanted, by_torch, ours in zip(("y", *leaves(arguments)), *results, strict=True):
        scale = wanted.abs().max().item()
        torch_error = (by_torch.double() - wanted).abs().max().item()
        error = (ours.double() - wanted).abs().max().item()
        assert error <= 2 * torch_error + 8 * torch.finfo(dtype).eps * scale, name


def test_gradcheck() -> None:
    arguments = make(2, 3, norm="layer")
    names = leaves(arguments)

    def through(*tensors: torch.Tensor) -> torch.Tensor:
        given = iter(tensors)
        return lowrank_residual(**mapped(arguments, lambda _: next(given)), activation="gelu")

    assert gradcheck(through, tuple(names.values()))
    (first,) = torch.autograd.grad(through(*names.values()).square().sum(), names["x"], create_graph=True)
    with pytest.raises(NotImplementedError, match="lowrank_residual: it is differentiable once"):
        first.sum().backward()


@pytest.mark.cpu
def test_same_bits_for_every_thread_count() -> None:
    arguments = make(4, 200, features=60, rank=16, norm="layer", dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = lowrank_residual(**arguments)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(leaves(arguments).values()))])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_other_dtypes_of_the_stream_and_autocast() -> None:
    arguments = make(3, 4, features=16, dtype=torch.float32)
    rounded = {name: arguments[name].bfloat16() for name in ("down_proj", "up_proj")}
    wanted = lowrank_residual(**arguments)
    y = lowrank_residual(**arguments | rounded)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, wanted, rtol=0, atol=0.05)
    silent = rounded | {"up_proj": rounded["up_proj"] * 0}
    assert torch.equal(lowrank_residual(**arguments | silent), arguments["x"])  # added in float32
    with torch.autocast(y.device.type, dtype=torch.bfloat16):
        torch.testing.assert_close(lowrank_residual(**arguments), wanted, rtol=0, atol=0.05)


def test_compiles_whole_with_other_sizes() -> None:
    def step(arguments: dict[str, Any]) -> torch.Tensor:
        return lowrank_residual(**arguments, activation="silu")

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (11, 7, 0):  # of no other dimension: dimensions of one size are taken to be one
        arguments = make(3, rows, norm="layer", dtype=torch.float32)
        with torch._dynamo.config.patch(error_on_recompile=rows == 7):  # one graph for all sizes but 0
            y = compiled(arguments)
        assert torch.equal(y, step(arguments))
        ours, theirs = (
            torch.autograd.grad(one.sum(), list(leaves(arguments).values())) for one in (y, step(arguments))
        )
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_meter() -> None:
    with CostMeter() as meter:
        lowrank_residual(**make(3, 4, dtype=torch.float32))
        lowrank_residual(**make(None, 4, dtype=torch.float32))
        lowrank_residual(**make(3, 0, dtype=torch.float32))
    many, single, none = (cost for _, _, cost in meter.calls())
    assert many == Cost(1, 12, 12, 12 * 4 * 5 * 2, 12 * 4 * 5 * 2, 3 * 20 * 4, 3 * 20 * 4)
    assert single == Cost(1, 4, 4, 4 * 4 * 5 * 2, 4 * 4 * 5 * 2, 20 * 4, 20 * 4)
    assert none == Cost(1, 0, 0, 0, 0, 0, 3 * 20 * 4)


@pytest.mark.cpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_tensors_on_a_gpu(dtype: torch.dtype) -> None:
    ops = torch.ops.anabranch
    with FakeTensorMode(), torch.device("cuda"):
        x, down, up = (torch.randn(*shape, dtype=dtype) for shape in ((3, 6, 8), (3, 2, 8), (3, 8, 2)))
        y = lowrank_residual(x, down, up, norm=Norm())
        assert (y.shape, y.dtype, y.device.type) == ((3, 6, 8), dtype, "cuda")
        arguments = (x, down, up, torch.ones(8, dtype=dtype), None, 1, 1e-6, 1, 1.0, True)
        y, saved = ops.lowrank_residual(*arguments)
        assert saved.shape == (18, 2)
        single = (torch.randn(*shape, dtype=dtype) for shape in ((2, 8), (8, 2)))
        assert lowrank_residual(x, *single).shape == (3, 6, 8)
        gradients = ops.lowrank_residual_backward(y, saved, *arguments, 0b01011)
        assert [g.shape for g in gradients] == [(3, 6, 8), (3, 2, 8), (0,), (8,), (0,)]


GOOD: dict[str, Any] = {"x": torch.randn(3, 4, 5), "down_proj": torch.randn(3, 2, 5), "up_proj": torch.randn(3, 5, 2)}


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 4, 5).int()}, "x is int32"),
        ({"x": torch.randn(2, 4, 5)}, r"x has shape \(2, 4, 5\), must begin with G=3"),
        ({"x": torch.randn(3, 4, 6)}, "down_proj has shape"),
        ({"x": torch.randn(3, 4, 0)}, "x, down_proj and up_proj have shapes"),
        ({"x": torch.randn(5)}, "x, down_proj and up_proj have shapes"),
        ({"down_proj": torch.randn(2, 5)}, "x, down_proj and up_proj have shapes"),
        ({"down_proj": torch.randn(3, 0, 5)}, "down_proj has shape .*, must have no empty feature dimension"),
        ({"down_proj": torch.randn(3, 2, 5).half()}, "up_proj is float32, must be float16 like down_proj"),
        ({"up_proj": torch.randn(3, 5, 3)}, "up_proj has shape"),
        ({"up_proj": torch.randn(3, 5, 2, device="meta")}, "up_proj is on meta"),
        ({"norm": Norm(torch.ones(5, device="meta"))}, "norm.weight is on meta"),
        ({"norm": Norm(torch.ones(4))}, "the norm's weight has shape"),
        ({"norm": Norm(torch.ones(5).int())}, "norm.weight is int32"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
    ],
)  # fmt: skip
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^lowrank_residual: {message}"):
        lowrank_residual(**GOOD | change)
