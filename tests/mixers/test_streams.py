"""connect, merge, merge_and_connect and their lagged forms against compositions of torch's ops."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from stream_references import KINDS, by_fused_steps, by_steps, by_torch, coefficients, mapped, projection, tensors
from torch import Tensor

from anabranch.mixers import Connection, Projection, connect

STEPS = 3
Layer = Callable[[Tensor], Tensor]


def layer(u: Tensor) -> Tensor:
    """A sub-layer; its sums are float64 in every dtype, so that it adds no error of its own."""
    return (1.5 * u.double().tanh() + 0.3 * u.double().flip(-1)).to(u.dtype)


LAYERS: Sequence[Layer] = (layer,) * STEPS


def problem(kind: str, n: int, channels: int, *batch: int, dtype: torch.dtype = torch.float64) -> Any:
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(*batch, n, channels, dtype=torch.float64).to(dtype).requires_grad_()
    return x, [projection(kind, n, channels, sums) for _ in range(STEPS)]


def run(function: Callable[..., Tensor], x: Tensor, given: Sequence[Projection], **options: Any) -> list[Tensor]:
    """The result and all gradients."""
    out = function(x, given, LAYERS, **options)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).cos().to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [x, *tensors(given)], upstream)]


PROBLEMS = [(kind, 4, lagged) for kind in KINDS for lagged in (False, True)]
PROBLEMS += [(kind, n, n == 3) for kind in ("lite", "jpmhc", "hc") for n in (2, 3, 5, 6, 7, 8)]


@pytest.mark.parametrize(("kind", "n", "lagged"), PROBLEMS)
def test_forward_and_backward(kind: str, n: int, lagged: bool) -> None:
    x, given = problem(kind, n, 5, 3)
    wanted = run(by_torch, x, given, lagged=lagged)
    for function in (by_steps, by_fused_steps):
        for ours, theirs in zip(run(function, x, given, lagged=lagged), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["jpmhc", "hc_normed", "static_hc"])
@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3), (2, 0), (37,)])
def test_any_batch_and_layout(kind: str, batch: tuple[int, ...]) -> None:
    x, given = problem(kind, 4, 3, *batch)
    wanted = run(by_torch, x, given)
    layouts: tuple[Layer, ...] = (
        lambda t: t,
        lambda t: t.repeat_interleave(2, -1)[..., ::2],
        lambda t: t.mT.contiguous().mT,
        lambda t: t.repeat_interleave(2, -2)[..., ::2, :],
    )
    for change in layouts:
        results = run(by_steps, change(x.detach()).requires_grad_(), given)
        for ours, theirs in zip(results, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    first = x.detach()[..., :1, :].expand(x.shape)  # expand_streams: n views of one vector
    for ours, theirs in zip(*(run(f, first.requires_grad_(), given) for f in (by_steps, by_torch)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@functools.cache  # the same for every instruction set
def narrow_problems(kind: str, n: int, channels: int, tokens: int) -> list[Any]:
    """For each narrow dtype: streams and projections, with the results in float64 and those of torch's ops."""
    found = []
    x, given = problem(kind, n, channels, tokens, dtype=torch.float16)
    exact = [mapped(one, lambda t: t.detach().double().requires_grad_()) for one in given]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        narrow = x.detach().to(dtype).requires_grad_()
        wanted = run(by_torch, narrow.detach().double().requires_grad_(), exact)
        found.append((narrow, given, wanted, run(by_torch, narrow, given)))
    return found


@pytest.mark.parametrize(("kind", "n", "channels", "tokens"), [
    ("mhc", 4, 64, 40), ("mhc", 8, 17, 20), ("shipped", 3, 129, 19), ("lite", 4, 37, 33), ("jpmhc", 3, 48, 17),
    ("hc", 4, 31, 18), ("hc_normed", 2, 64, 16), ("static_hc", 5, 40, 9), ("identity", 6, 1, 50),
])  # fmt: skip
def test_error_at_most_twice_torchs(cpu_isa: str, kind: str, n: int, channels: int, tokens: int) -> None:
    for x, given, *by_composition in narrow_problems(kind, n, channels, tokens):
        ours = [run(function, x, given) for function in (by_steps, by_fused_steps)]
        for wanted, theirs, *both in zip(*by_composition, *ours, strict=True):
            torch_error = (theirs.double() - wanted).abs().max().item()
            slack = 16 * torch.finfo(x.dtype).eps * wanted.abs().max().item()
            for found in both:
                assert (found.double() - wanted).abs().max().item() <= 2 * torch_error + slack


def test_what_a_step_shows() -> None:
    x, (first, second, _) = problem("jpmhc", 4, 5, 2, 3)
    step = connect(x, first)
    for ours, theirs in zip((step.pre, step.post, step.mixing), coefficients(x, first), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert step.streams is x
    assert step.input.shape == (2, 3, 5)
    torch.testing.assert_close(step.input, (step.pre.unsqueeze(-1) * x).sum(-2))
    narrow = connect(x.bfloat16(), first)
    assert (narrow.input.dtype, narrow.coefficients.dtype) == (torch.bfloat16, torch.float32)
    # With a lag the own p is for the next step.
    lagged = connect(x, second, lag=step)
    torch.testing.assert_close(lagged.input, (step.pre.unsqueeze(-1) * x).sum(-2))
    torch.testing.assert_close(lagged.pre, coefficients(x, second)[0])
    # Coefficients have gradients of their own.
    loss = (step.mixing**2).sum() + step.pre.sum() - step.post.exp().sum()
    p, q, h = coefficients(x, first)
    wanted = (h**2).sum() + p.sum() - q.exp().sum()
    inputs = [x, *tensors([first])]
    for ours, theirs in zip(*(torch.autograd.grad(one, inputs) for one in (loss, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_streams_used_elsewhere_too() -> None:
    """The merged streams, their input and the streams before them all have other readers."""
    x, given = problem("mhc", 3, 5, 7)

    def by(step_of: Callable[[Tensor, Projection], tuple[Tensor, Callable[[Tensor], Tensor]]]) -> tuple[Tensor, ...]:
        u, merge = step_of(x, given[0])
        merged = merge(layer(u))
        v, merge_next = step_of(merged, given[1])
        loss = (merge_next(layer(v)) * merged).sum() + (u * v).sum() + x.square().sum() + merged.exp().sum()
        return torch.autograd.grad(loss, [x, *tensors(given[:2])])

    def ours(x: Tensor, one: Projection) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        step = connect(x, one)
        return step.input, step.merge

    def theirs(x: Tensor, one: Projection) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        p, q, h = coefficients(x, one)
        return (p.unsqueeze(-1) * x).sum(-2), lambda y: h @ x + q.unsqueeze(-1) * y.unsqueeze(-2)

    for a, b in zip(by(ours), by(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_a_step_merged_twice() -> None:
    x, given = problem("mhc", 2, 3, 4)
    step = connect(x, given[0])
    both = step.merge(layer(step.input)) + 2 * step.merge(step.input)
    single = connect(x, given[0])
    mean = 3 * single.merge((layer(single.input) + 2 * single.input) / 3)
    for a, b in zip(*(torch.autograd.grad(one.sum(), [x, *tensors(given[:1])]) for one in (both, mean)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("which", range(5))
def test_only_the_gradients_that_are_asked_for(which: int) -> None:
    x, given = problem("mhc", 4, 3, 5)
    y = torch.randn(5, 3, dtype=torch.float64)
    tensors_of = [x, given[0].weight, given[0].scale, given[0].bias, y]
    wanted = torch.autograd.grad(connect(x, given[0]).merge(y.requires_grad_()).exp().sum(), tensors_of)[which]
    x2, weight, scale, bias, y2 = (t.detach().requires_grad_(i == which) for i, t in enumerate(tensors_of))
    alone = Projection(weight, scale, bias, given[0].mixer)
    for fused in (False, True):
        step = connect(x2, alone)
        out = step.merge_and_connect(y2, given[1]).streams if fused else step.merge(y2)
        (found,) = torch.autograd.grad(out.exp().sum(), [(x2, weight, scale, bias, y2)[which]])
        torch.testing.assert_close(found, wanted)


def test_without_gradients_nothing_is_kept() -> None:
    x, given = problem("mhc", 4, 3, 5, dtype=torch.float32)
    wanted = by_steps(x, given, LAYERS)
    with torch.no_grad():
        assert torch.equal(by_steps(x, given, LAYERS), wanted)
        assert torch.equal(by_fused_steps(x, given, LAYERS), by_fused_steps(x.detach(), given, LAYERS))
        step = connect(x, given[0])
    assert isinstance(step, Connection)
    assert step.input.grad_fn is None
