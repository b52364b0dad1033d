"""Stream steps as programs meet them: ops called directly, threads, batches, autocast, torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stream_references import KINDS, by_fused_steps, by_steps, mapped, projection, tensors
from torch import Tensor

from anabranch.mixers import Projection, SigmoidGates, Sinkhorn, connect

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
@pytest.mark.parametrize(("kind", "tokens"), [("mhc", 33), ("jpmhc", 5)])
def test_fused_is_unfused(cpu_isa: str, kind: str, tokens: int, dtype: torch.dtype) -> None:
    """To the bit, but for the first step's gradients: the sums of several upstream gradients are rounded once less."""
    x, (first, second) = problem(kind, 4, 96, tokens, dtype)
    y, results = torch.randn(tokens, 96).to(dtype).requires_grad_(), []
    for fused in (False, True):
        step = connect(x, first)
        following = step.merge_and_connect(y, second) if fused else connect(step.merge(y), second)
        shown = (following.streams, following.input, following.coefficients)
        loss = sum((one.float() * torch.arange(one.numel()).view(one.shape).cos()).sum() for one in shown)
        gradients = torch.autograd.grad(loss, [*tensors([second]), x, y, *tensors([first])])
        results.append([*shown, *gradients])
    for i, (apart, together) in enumerate(zip(*results, strict=True)):
        if i < 6:
            assert torch.equal(apart, together)
        else:
            slack = 16 * torch.finfo(dtype).eps * apart.abs().max().item()
            torch.testing.assert_close(apart, together, rtol=0, atol=slack)


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


@pytest.mark.parametrize("kind", ["mhc", "exact", "jpmhc", "static_hc"])
def test_a_token_is_the_same_in_any_company(cpu_isa: str, kind: str) -> None:
    """To the bit; the products of 8 tokens or fewer are summed in another order than those of more."""
    x, given = problem(kind, 4, 40, 36, torch.float32)
    y = torch.randn(36, 40)
    with torch.no_grad():
        step = connect(x, given[0])
        wanted = (step.coefficients, step.input, step.merge(y))
        for pieces in (12, 9, 5, 1):
            pairs = list(zip(x.split(pieces), y.split(pieces), strict=True))
            steps = [connect(part, given[0]) for part, _ in pairs]
            merged = [one.merge(part) for one, (_, part) in zip(steps, pairs, strict=True)]
            found = ([one.coefficients for one in steps], [one.input for one in steps], merged)
            for ours, theirs in zip(found, wanted, strict=True):
                if pieces > 8 or given[0].weight is None:
                    assert torch.equal(torch.cat(ours), theirs)
                else:
                    torch.testing.assert_close(torch.cat(ours), theirs, rtol=1e-4, atol=1e-4)


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
