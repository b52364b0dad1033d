"""Sinkhorn's orders, the exact projection, declared gradients, and the numbers that the documentation gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matrix_references import draw, implicit_gradient
from matrix_references import sinkhorn as by_torch
from torch import Tensor

from anabranch.mixers import Sinkhorn, mix_matrix, sinkhorn, stochastic_residual


def random_logits(spread: str, count: int, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return draw(spread, count, n, n * n, dtype).view(count, n, n)


def gradient(logits: Tensor, upstream: Tensor, *arguments: Any, **options: Any) -> Tensor:
    given = logits.detach().requires_grad_()
    (found,) = torch.autograd.grad(sinkhorn(given, *arguments, **options), given, upstream)
    return found


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("backward", ["unrolled", "implicit"])
def test_rows_first_is_the_transpose(eps: float, backward: Any) -> None:
    for n in (2, 3, 4, 7):
        logits = torch.cat([random_logits(spread, 6, n) for spread in ("1", "8", "30")])
        upstream = torch.randn_like(logits)
        rows = sinkhorn(logits, 5, eps=eps, order="rows_first")
        assert torch.equal(rows, sinkhorn(logits.mT, 5, eps=eps).mT)
        ours = gradient(logits, upstream, 5, eps=eps, order="rows_first", backward=backward)
        assert torch.equal(ours, gradient(logits.mT, upstream.mT, 5, eps=eps, backward=backward).mT)
        turned = mix_matrix(logits.flatten(1), Sinkhorn(5, eps=eps, order="rows_first", transpose=True), n)
        assert torch.equal(turned, rows.mT)


def test_the_last_division_leaves_no_error() -> None:
    logits = random_logits("4", 300, 4)
    for order, exact in (("columns_first", "row_error"), ("rows_first", "column_error")):
        _, residual = sinkhorn(logits, 3, order=order, return_residual=True)
        assert getattr(residual, exact).max() < 1e-15
        other = residual.column_error if exact == "row_error" else residual.row_error
        assert other.median() > 1e-3


@pytest.mark.parametrize("n", range(2, 9))
def test_exact_to_the_tolerance(n: int) -> None:
    logits = torch.cat([random_logits(spread, 200, n) for spread in ("0.1", "1", "4", "8", "20", "spiky")])
    for tol in (1e-6, 1e-10):
        matrices, residual = sinkhorn(logits, tol=tol, return_residual=True)
        assert residual.row_error.max() < 1e-14
        assert residual.column_error.max() <= tol
        assert (matrices >= 0).all()
    narrow, residual = sinkhorn(logits.float(), tol=1e-6, return_residual=True)
    assert narrow.dtype == torch.float32
    assert max(residual.row_error.max(), residual.column_error.max()) < 3e-6  # float32 sums of float32 entries
    assert torch.equal(sinkhorn(logits, tol=1e-6, order="rows_first"), sinkhorn(logits.mT, tol=1e-6).mT)


@pytest.mark.parametrize("n", [3, 4, 8])
def test_exact_at_logits_of_any_size(n: int) -> None:
    logits = torch.randn(3, 100, n, n, dtype=torch.float64) * torch.tensor([64.0, 300.0, 1e4]).view(3, 1, 1, 1)
    matrices, residual = sinkhorn(logits, tol=1e-6, return_residual=True)
    assert residual.row_error.max() < 1e-14
    assert residual.column_error.max() <= 1e-6
    assert torch.equal((matrices.sum(-2) - 1).abs().amax(-1), residual.column_error)
    alone = sinkhorn(logits[1, 7], tol=1e-6)
    assert torch.equal(alone, matrices[1, 7])  # wider neighbours change nothing


@pytest.mark.parametrize("n", [2, 3, 4, 6, 8])
def test_exact_is_the_limit(n: int) -> None:
    logits = random_logits("1", 12, n).requires_grad_()
    limit, upstream = by_torch(logits, 400), torch.randn(12, n, n, dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(logits, tol=1e-12), limit, rtol=0, atol=1e-10)
    (wanted,) = torch.autograd.grad(limit, logits, upstream)
    for ours in (gradient(logits, upstream, tol=1e-12), gradient(logits, upstream, 400)):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-9)


def test_exact_gradient_at_large_logits() -> None:
    """Against differences: 20,000 unrolled iterations would not have converged."""
    logits, upstream = random_logits("8", 50, 4), torch.randn(50, 4, 4, dtype=torch.float64)
    direction, step = torch.randn_like(logits), 1e-4
    ours = (gradient(logits, upstream, tol=1e-12) * direction).sum((-1, -2))
    values = [(sinkhorn(logits + s * direction, tol=1e-12) * upstream).sum((-1, -2)) for s in (step, -step)]
    torch.testing.assert_close(ours, (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spread", ["0.1", "1", "2", "4", "spiky"])
@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_implicit_gradient_of_whatever_came_out(n: int, spread: str) -> None:
    """The sums of a matrix that has not converged are kept as they are."""
    logits, upstream = random_logits(spread, 40, n), torch.randn(40, n, n, dtype=torch.float64)
    for eps in (0.0, 1e-6):
        for iters in (1, 20):
            matrices = sinkhorn(logits, iters, eps=eps)
            wanted = implicit_gradient(matrices, upstream)
            ours = gradient(logits, upstream, iters, eps=eps, backward="implicit")
            torch.testing.assert_close(ours, wanted, rtol=1e-7, atol=1e-9)
            narrow = gradient(logits.float(), upstream.float(), iters, eps=eps, backward="implicit")
            torch.testing.assert_close(narrow.double(), wanted, rtol=1e-2, atol=1e-4)


def median_error(spread: str, iters: int) -> float:
    return sinkhorn(random_logits(spread, 2000, 4), iters, return_residual=True)[1].column_error.median().item()


def test_the_documented_errors() -> None:
    """Orders of magnitude, n = 4: what 20 iterations leave, and how many it takes to 1e-6."""
    for spread, wanted in (("1", 3e-13), ("2", 8e-7), ("4", 3e-3), ("8", 2.5e-2)):
        assert wanted / 5 < median_error(spread, 20) < wanted * 5
    for spread, iters in (("1", 9), ("2", 18), ("4", 63)):
        assert 1e-7 < median_error(spread, iters) < 1e-5


def test_how_far_the_gradients_are_apart() -> None:
    medians, tails = {}, {}
    for spread in ("1", "2", "4", "spiky"):
        logits, upstream = random_logits(spread, 2000, 4), torch.randn(2000, 4, 4, dtype=torch.float64)
        unrolled, implicit = (gradient(logits, upstream, 20, backward=one) for one in ("unrolled", "implicit"))
        apart = (unrolled - implicit).flatten(1).norm(dim=1) / unrolled.flatten(1).norm(dim=1)
        medians[spread], tails[spread] = apart.median().item(), apart.quantile(0.99).item()
    assert medians["1"] < 1e-10
    assert 0.01 < tails["2"] < 0.15
    assert 0.2 < tails["4"] < 1.2
    assert 0.5 < medians["spiky"] < 1  # at the logits that mHC-lite starts from


def test_residuals() -> None:
    given = torch.tensor([[[0.5, 0.5], [0.25, 0.85]], [[1.0, 0.0], [0.0, 1.0]]]).requires_grad_()
    residual = stochastic_residual(given)
    torch.testing.assert_close(residual.row_error, torch.tensor([0.1, 0.0]))
    torch.testing.assert_close(residual.column_error, torch.tensor([0.35, 0.0]))
    assert not residual.row_error.requires_grad


def test_iterations_of_long_runs() -> None:
    logits = random_logits("2", 5, 3)
    torch.testing.assert_close(sinkhorn(logits, 1000), by_torch(logits, 1000), rtol=0, atol=1e-13)
    assert torch.equal(sinkhorn(logits), sinkhorn(logits, 20))
