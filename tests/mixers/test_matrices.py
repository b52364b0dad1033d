"""Every mixer against a composition of torch's ops in float64: values and gradients, of small and huge logits."""

from __future__ import annotations

import pytest
import torch
from matrix_references import CASES, Case, draw
from torch import Tensor

from anabranch.mixers import (
    Sinkhorn,
    cayley,
    grassmann,
    mix_matrix,
    permutation_mixture,
    sinkhorn,
    stochastic_residual,
    truncated_cayley,
)

SPREADS = ["0.1", "1", "8", "spiky", "30", "300"]
EACH = 8  # matrices of every spread


def logits_of(case: Case, n: int) -> Tensor:
    """Of all spreads together, representable in float32. Those from e^40 on take sinkhorn's logarithmic path."""
    count = case.mixer.num_logits(n)
    return torch.cat([draw(spread, EACH, n, count, torch.float32) for spread in SPREADS])


def slack(dtype: torch.dtype) -> Tensor:
    """Rounding of a logit is an error of its exponential that grows with the logit."""
    growth = [max(1.0, 0.0 if spread == "spiky" else float(spread)) for spread in SPREADS]
    return 60 * torch.finfo(dtype).eps * torch.tensor(growth, dtype=torch.float64).repeat_interleave(EACH)


def worst(tensor: Tensor) -> Tensor:
    return tensor.detach().double().flatten(1).abs().amax(1)


def check(case: Case, n: int, dtype: torch.dtype, logits: Tensor, wanted: tuple[Tensor, Tensor, Tensor]) -> None:
    upstream, matrices, gradient = wanted
    given = logits.to(dtype).requires_grad_()
    ours = mix_matrix(given, case.mixer, n)
    assert (ours.dtype, ours.shape) == (dtype, (len(logits), n, n))
    (dlogits,) = torch.autograd.grad(ours, given, upstream.to(dtype))
    limit = slack(dtype)
    assert (worst(ours - matrices) <= limit * worst(matrices).clamp_min(1)).all()
    scale = worst(gradient).view(-1, EACH).amax(1).repeat_interleave(EACH)
    assert (worst(dlogits - gradient) <= limit * (1 + scale)).all()


PAIRS = [(name, n) for name, case in CASES.items() for n in case.streams if case.mixer.num_logits(n)]


@pytest.mark.parametrize(("name", "n"), PAIRS)
def test_values_and_gradients(name: str, n: int) -> None:
    case = CASES[name]
    logits = logits_of(case, n)
    exact = logits.double().requires_grad_()
    matrices = case.reference(exact, n)
    upstream = torch.randn(matrices.shape, dtype=torch.float32).double()
    wanted = (upstream, matrices.detach(), torch.autograd.grad(matrices, exact, upstream)[0])
    for dtype in (torch.float64, torch.float32):
        check(case, n, dtype, logits, wanted)


@pytest.mark.cpu
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_instruction_set(cpu_isa: str, name: str) -> None:
    """Against float64, which the test above has proven; counts that leave a remainder in every vector width."""
    case = CASES[name]
    for n in (case.streams[0], case.streams[len(case.streams) // 2]):
        logits = logits_of(case, n).repeat(2, 1)[:83]
        results = []
        for dtype in (torch.float64, torch.float32):
            given = logits.to(dtype).requires_grad_()
            matrices = mix_matrix(given, case.mixer, n)
            loss = (matrices * torch.linspace(-1, 1, n * n, dtype=dtype).view(n, n)).sum()
            empty = given.numel() == 0
            results.append((matrices, given.detach() if empty else torch.autograd.grad(loss, given)[0]))
        limit = slack(torch.float32).repeat(2)[:83]
        for wanted, ours in zip(*results, strict=True):
            if wanted.numel():
                assert (worst(ours - wanted) <= limit * (1 + worst(wanted).max())).all()


def test_the_identity() -> None:
    for n in range(2, 9):
        matrices = mix_matrix(torch.empty(3, 0), CASES["identity"].mixer, n)
        assert torch.equal(matrices, torch.eye(n).expand(3, n, n))


def test_functions_are_their_mixers() -> None:
    square, table = torch.randn(5, 4, 4), torch.randn(5, 24)
    for function, logits, name in (
        (sinkhorn, square, "sinkhorn"),
        (cayley, square, "cayley"),
        (truncated_cayley, square, "truncated_cayley"),
        (permutation_mixture, table, "permutations"),
        (grassmann, torch.randn(5, 4, 2), "grassmann"),
    ):
        matrices, residual = function(logits, return_residual=True)
        assert torch.equal(matrices, mix_matrix(logits.flatten(1), CASES[name].mixer, 4))
        for one in residual if isinstance(residual, tuple) else (residual,):
            assert one.shape == (5,)
            assert not one.requires_grad
    assert torch.equal(sinkhorn(square, 5), mix_matrix(square.flatten(1), Sinkhorn(5), 4))
    turned = permutation_mixture(torch.randn(2, 2), permutations=((1, 2, 0), (0, 1, 2)))
    assert turned.shape == (2, 3, 3)
    assert stochastic_residual(turned).column_error.max() < 1e-6
    five = permutation_mixture(torch.randn(3, 120))
    assert five.shape == (3, 5, 5)


def test_mixtures_are_doubly_stochastic_to_rounding() -> None:
    for n, count in ((2, 2), (3, 6), (4, 24), (5, 120)):
        for spread in (1.0, 30.0, 1e30):
            _, residual = permutation_mixture(torch.randn(500, count) * spread, n=n, return_residual=True)
            assert max(residual.row_error.max(), residual.column_error.max()) < 1e-6


def test_cayley_is_orthogonal_for_any_logits() -> None:
    for n in range(2, 9):
        for spread in (1.0, 10.0, 100.0):
            _, residual = cayley(torch.randn(500, n, n) * spread, return_residual=True)
            assert residual.max() < 1e-6


def test_truncated_cayley_is_not() -> None:
    medians = []
    for spread in (1.0, 3.0, 10.0):
        matrices, residual = truncated_cayley(torch.randn(2000, 4, 4) * spread, return_residual=True)
        medians.append(residual.median().item())
    assert 1e-3 < medians[0] < 4e-3
    assert 0.07 < medians[1] < 0.3
    assert medians[2] > 10
    assert matrices.flatten(1).norm(dim=1).max() > 50  # of orthogonal ones it is 2


def test_projectors_and_dependent_columns() -> None:
    logits = torch.randn(20, 5, 3, dtype=torch.float64)
    logits[..., 2] = logits[..., 0] - 2 * logits[..., 1]
    logits = logits.requires_grad_()
    matrices, residual = grassmann(logits, return_residual=True)
    assert residual.max() < 1e-12
    torch.testing.assert_close(matrices.diagonal(dim1=1, dim2=2).sum(-1), torch.full((20,), 2.0, dtype=torch.float64))
    two = logits.detach()[..., :2].requires_grad_()
    torch.testing.assert_close(matrices, grassmann(two))
    upstream = torch.randn_like(matrices)
    (ours,) = torch.autograd.grad(matrices, logits, upstream)
    (wanted,) = torch.autograd.grad(grassmann(two), two, upstream)
    torch.testing.assert_close(ours[..., :2], wanted)
    assert (ours[..., 2] == 0).all()
