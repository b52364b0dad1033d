"""Stream steps as programs meet them: ops called directly, threads, batches, autocast, torch.compile, bad input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stream_references import KINDS, by_fused_steps, by_steps, mapped, projection, tensors
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from anabranch.mixers import Cayley, LinearGates, Projection, SigmoidGates, Sinkhorn, SoftmaxGates, connect

ops = torch.ops.anabranch
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def layer(u: Tensor) -> Tensor:
    return u.tanh() + 0.5 * u


def problem(kind: str, n: int, channels: int, tokens: int, dtype: torch.dtype, steps: int = 2) -> Any:
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(tokens, n, channels).to(dtype).requires_grad_()
    return x, [projection(kind, n, channels, sums) for _ in range(steps)]


def results_of(function: Callable[..., Tensor], x: Tensor, given: list[Projection], **options: Any) -> list[Tensor]:
    out = function(x, given, [layer] * len(given), **options)
    upstream = torch.linspace(-2, 2, out.numel()).sin().view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [x, *tensors(given)], upstream)]


def by_ops(x: Tensor, given: list[Projection], layers: Any, lagged: bool = False) -> Tensor:
    """Steps by the registered ops and their own autograd."""
    before = None
    for one, function in zip(given, layers, strict=True):
        u, coefficients, _ = ops.stream_pre(x, before, *one.tensors(x), *one.options(x))
        x = ops.stream_post(x, function(u), coefficients)
        before = coefficients if lagged else None
    return x


def by_fused_ops(x: Tensor, given: list[Projection], layers: Any, lagged: bool = False) -> Tensor:
    first, second = given
    u, coefficients, _ = ops.stream_pre(x, None, *first.tensors(x), *first.options(x))
    x, u, coefficients, _ = ops.stream_post_pre(
        x, layers[0](u), coefficients, *second.tensors(x), *second.options(x), lagged
    )
    return ops.stream_post(x, layers[1](u), coefficients)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("lagged", [False, True], ids=["", "lagged"])
def test_the_ops_have_the_same_gradients(kind: str, lagged: bool) -> None:
    x, given = problem(kind, 4, 7, 9, torch.float64)
    wanted = results_of(by_steps, x, given, lagged=lagged)
    for function in (by_ops, by_fused_ops):
        for ours, theirs in zip(results_of(function, x, given, lagged=lagged), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_is_unfused(cpu_isa: str, dtype: torch.dtype) -> None:
    for lagged in (False, True):
        x, given = problem("mhc", 4, 96, 33, dtype)
        apart, fused = (results_of(function, x, given, lagged=lagged) for function in (by_steps, by_fused_steps))
        slack = 8 * torch.finfo(dtype).eps
        for a, b in zip(apart, fused, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=slack * a.abs().max().item())


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_every_thread_count(cpu_isa: str, dtype: torch.dtype) -> None:
    x, given = problem("mhc", 4, 72, 150, dtype)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        results.append(results_of(by_steps, x, given) + results_of(by_fused_steps, x, given))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", ["mhc", "exact", "jpmhc", "hc"])
def test_a_token_is_the_same_in_any_company(cpu_isa: str, kind: str) -> None:
    x, given = problem(kind, 4, 40, 21, torch.float32)
    with torch.no_grad():
        for function in (by_steps, by_fused_steps):
            wanted = function(x, given, [layer] * 2)
            for pieces in (1, 5):
                parts = [function(part, given, [layer] * 2) for part in x.split(pieces)]
                assert torch.equal(torch.cat(parts), wanted)


@pytest.mark.parametrize(("kind", "value"), [("mhc", float("nan")), ("mhc", float("inf")), ("exact", float("nan")),
                                             ("jpmhc", float("inf")), ("hc", float("nan"))])  # fmt: skip
def test_one_bad_token_spoils_no_other(cpu_isa: str, kind: str, value: float) -> None:
    x, given = problem(kind, 4, 12, 35, torch.float32)
    spoiled = x.detach().clone()
    spoiled[17, 2, 3] = value
    others = torch.arange(35) != 17
    for function in (by_steps, by_fused_steps):
        good, bad = (results_of(function, one, given)[:2] for one in (x, spoiled.requires_grad_()))
        assert not bad[0][17].isfinite().all()
        for a, b in zip(good, bad, strict=True):
            assert torch.equal(a[others], b[others])


def test_dtypes_of_parameters_and_outputs() -> None:
    """Whatever a module's parameters are kept in, sums are float32; a sub-layer may answer in another dtype."""
    x, given = problem("mhc", 4, 16, 5, torch.float32)
    rounded = [mapped(one, lambda t: t.detach().bfloat16().requires_grad_()) for one in given]
    exact = [mapped(one, lambda t: t.detach().float().requires_grad_()) for one in rounded]
    ours, wanted = results_of(by_steps, x, rounded), results_of(by_steps, x, exact)
    assert torch.equal(ours[0], wanted[0])
    for a, b in zip(ours[2:], wanted[2:], strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b.bfloat16())
    step = connect(x, given[0])
    y = step.input.double().requires_grad_()
    out = step.merge(y)
    assert out.dtype == torch.float32
    assert torch.equal(out, step.merge(y.float()))
    assert torch.autograd.grad(out.sum(), y)[0].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_the_sub_layer_alone(dtype: torch.dtype) -> None:
    x, given = problem("mhc", 4, 16, 5, dtype)
    linear = torch.nn.Linear(16, 16, dtype=torch.float32)

    def narrow(u: Tensor) -> Tensor:
        return torch.nn.functional.linear(u.bfloat16(), linear.weight.bfloat16(), linear.bias.bfloat16())

    for function in (by_steps, by_fused_steps):
        wanted = function(x, given, [narrow] * 2)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            ours = function(x, given, [linear] * 2)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize(("function", "lagged"), [(by_steps, False), (by_steps, True), (by_fused_steps, False)])
def test_compiles_whole_with_other_sizes(function: Callable[..., Tensor], lagged: bool) -> None:
    def step(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        one = Projection(weight, scale, bias, Sinkhorn(5), SigmoidGates())
        return function(x, [one] * 2, [layer] * 2, lagged=lagged)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (11, 7):
        x, (one,) = problem("mhc", 4, 6, tokens, torch.float32, steps=1)
        given = (x, one.weight, one.scale, one.bias)
        with torch._dynamo.config.patch(error_on_recompile=tokens == 7):
            y = compiled(*given)
        wanted = step(*given)
        assert torch.equal(y, wanted)
        ours, theirs = (torch.autograd.grad(z.square().sum(), given) for z in (y, wanted))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_differentiable_once() -> None:
    x, given = problem("mhc", 2, 3, 4, torch.float64)
    for function in (by_ops, by_steps):
        (first,) = torch.autograd.grad(function(x, given, [layer] * 2).square().sum(), x, create_graph=True)
        with pytest.raises((NotImplementedError, RuntimeError), match=r"differentiable once|does not require grad"):
            first.sum().backward()


@pytest.mark.cpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
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


@pytest.mark.cpu
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
        (lambda: SoftmaxGates(0.0), "SoftmaxGates: temperature is 0.0, must be positive"),
    ],
)  # fmt: skip
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
