"""Inputs of the mixers: layouts, dtypes, values that are not finite, vmap, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from matrix_references import CASES
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from anabranch.mixers import (
    Cayley,
    Grassmann,
    Identity,
    PermutationMixture,
    Sinkhorn,
    TruncatedCayley,
    cayley,
    cyclic_permutations,
    grassmann,
    mix_matrix,
    orthogonality_residual,
    permutation_mixture,
    projector_residual,
    sinkhorn,
    truncated_cayley,
)

CASES_WITH_LOGITS = [name for name in CASES if name != "identity"]
EXACT = Sinkhorn(tol=1e-6)


@pytest.mark.parametrize("function", [sinkhorn, cayley, truncated_cayley])
def test_any_layout(function: Callable[..., Tensor]) -> None:
    logits = torch.randn(3, 2, 4, 4)
    wanted = torch.stack([function(one) for one in logits.flatten(0, 1)]).view(logits.shape)
    assert torch.equal(function(logits), wanted)
    assert torch.equal(function(logits.mT.contiguous().mT), wanted)
    assert torch.equal(function(logits.repeat_interleave(2, -1)[..., ::2]), wanted)
    assert torch.equal(function(logits[:1].expand(3, 2, 4, 4)), wanted[:1].expand(3, 2, 4, 4))
    for empty in ((0, 4, 4), (2, 0, 4, 4)):
        given = torch.zeros(empty, requires_grad=True)
        function(given).sum().backward()
        assert given.grad.shape == empty
    turned = logits.transpose(0, 1).requires_grad_()
    plain = turned.detach().contiguous().requires_grad_()
    upstream = torch.randn(2, 3, 4, 4).mT
    gradients = [torch.autograd.grad(function(one), one, upstream)[0] for one in (turned, plain)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_logits_are_read_as_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 4, 4).to(dtype).requires_grad_()
    matrices = sinkhorn(logits)
    assert matrices.dtype == torch.float32
    assert torch.equal(matrices, sinkhorn(logits.float()))
    assert torch.autograd.grad(matrices.square().sum(), logits)[0].dtype == dtype


@pytest.mark.parametrize("name", [*CASES_WITH_LOGITS, "exact", "implicit"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_logit_spoils_one_matrix(name: str, value: float) -> None:
    mixer = {"exact": EXACT, "implicit": Sinkhorn(20, backward="implicit")}.get(name)
    mixer = CASES[name].mixer if mixer is None else mixer
    n = CASES[name].streams[-1] if name in CASES else 4
    logits = torch.randn(40, mixer.num_logits(n))
    spoiled = logits.clone()
    spoiled[7, 1] = value
    results = []
    for given in (logits.requires_grad_(), spoiled.requires_grad_()):
        matrices = mix_matrix(given, mixer, n)
        (gradient,) = torch.autograd.grad(matrices, given, torch.ones_like(matrices).cumsum(0))
        results.append((matrices, gradient))
    assert results[1][0][7].isnan().all()
    others = torch.arange(40) != 7
    for good, bad in zip(*results, strict=True):
        assert good.isfinite().all()
        assert torch.equal(good[others], bad[others])
    with pytest.raises(ValueError, match=r"^mix_matrix: logits holds NaN or infinity, must be finite"):
        mix_matrix(spoiled, mixer, n, check=True)
    assert torch.equal(mix_matrix(logits, mixer, n, check=True), results[0][0])


@pytest.mark.cpu
@pytest.mark.parametrize("name", [*CASES_WITH_LOGITS, "exact"])
def test_same_bits_in_any_company_and_on_any_threads(cpu_isa: str, name: str) -> None:
    mixer = EXACT if name == "exact" else CASES[name].mixer
    n = CASES[name].streams[-1] if name in CASES else 5
    spread = torch.linspace(0.1, 40, 67).view(-1, 1)
    before, results = torch.get_num_threads(), []
    values = torch.randn(67, mixer.num_logits(n)) * spread
    for threads, pieces in ((1, 67), (2, 67), (5, 67), (2, 1), (1, 23)):
        torch.set_num_threads(threads)
        logits = values.clone().requires_grad_()
        matrices = torch.cat([mix_matrix(part, mixer, n) for part in logits.split(pieces)])
        upstream = torch.linspace(-1, 1, n * n).view(n, n).expand_as(matrices)
        results.append((matrices, torch.autograd.grad(matrices, logits, upstream)[0]))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_and_one_derivative() -> None:
    logits = torch.randn(5, 3, 4, 4)
    assert torch.equal(torch.vmap(sinkhorn)(logits), sinkhorn(logits))
    given = logits.requires_grad_()
    (first,) = torch.autograd.grad(sinkhorn(given).square().sum(), given, create_graph=True)
    with pytest.raises(NotImplementedError, match="mix_matrix: it is differentiable once"):
        first.sum().backward()


@pytest.mark.filterwarnings("error")
def test_compiles_whole() -> None:
    def step(square: Tensor, table: Tensor) -> Tensor:
        return sinkhorn(square, 5) @ permutation_mixture(table)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (7, 5):
        given = [torch.randn(count, 4, 4).requires_grad_(), torch.randn(count, 24).requires_grad_()]
        with torch._dynamo.config.patch(error_on_recompile=count == 5):
            y = compiled(*given)
        assert torch.equal(y, step(*given))
        ours, theirs = (torch.autograd.grad(one.sum(), given) for one in (y, step(*given)))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.cpu
@torch.no_grad()
def test_fake_tensors_on_a_gpu() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        logits = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)
        matrices, residual = sinkhorn(logits, return_residual=True)
        assert (matrices.shape, matrices.dtype, matrices.device.type) == ((2, 3, 4, 4), torch.float32, "cuda")
        assert residual.row_error.shape == (2, 3)
        flat = logits.float().reshape(6, 16)
        options = Sinkhorn().arguments(4, logits.device)
        gradient = torch.ops.anabranch.mix_matrix_backward(matrices.reshape(6, 4, 4), flat, flat, *options)
        assert (gradient.shape, gradient.device.type) == ((6, 16), "cuda")


def test_residuals_of_other_matrices() -> None:
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert orthogonality_residual(turn) == 0
    assert orthogonality_residual(2 * turn) == 3
    assert projector_residual(torch.tensor([[2.0, 0.0], [0.0, 1.0]])) == 2
    assert cyclic_permutations(2) == ((0, 1), (1, 0))
    assert len(cyclic_permutations(6)) == 12


SQUARE = torch.randn(2, 4, 4)
TABLE = torch.randn(2, 24)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkhorn(torch.randn(4)), r"sinkhorn: logits has shape \(4,\), must be \(\.\.\., n, n\)"),
        (lambda: sinkhorn(torch.randn(3, 4)), r"sinkhorn: logits has shape \(3, 4\)"),
        (lambda: sinkhorn(torch.randn(9, 9)), "sinkhorn: there are 9 streams, must be 2 to 8"),
        (lambda: cayley(torch.randn(1, 1)), "cayley: there are 1 streams, must be 2 to 8"),
        (lambda: sinkhorn(SQUARE.int()), "sinkhorn: logits is int32, must be float32"),
        (lambda: sinkhorn(SQUARE, 0), "sinkhorn: iters is 0, must be 1 to 1000"),
        (lambda: sinkhorn(SQUARE, 1001), "sinkhorn: iters is 1001"),
        (lambda: sinkhorn(SQUARE, 5, tol=1e-6), "sinkhorn: iters and tol are both given, must be one"),
        (lambda: sinkhorn(SQUARE, tol=0.0), "sinkhorn: tol is 0.0, must be at least 1e-12"),
        (lambda: sinkhorn(SQUARE, tol=float("nan")), "sinkhorn: tol is nan"),
        (lambda: sinkhorn(SQUARE, eps=-1.0), "sinkhorn: eps is -1.0, must be 0"),
        (lambda: sinkhorn(SQUARE, tol=1e-6, eps=1e-6), "sinkhorn: eps is 1e-06, must be 0"),
        (lambda: sinkhorn(SQUARE, order="rows"), "sinkhorn: order is 'rows', must be 'columns_first'"),
        (lambda: sinkhorn(SQUARE, backward="both"), "sinkhorn: backward is 'both', must be"),
        (lambda: sinkhorn(SQUARE, tol=1e-6, backward="unrolled"), "sinkhorn: backward is 'unrolled', must be"),
        (lambda: sinkhorn(SQUARE * float("nan"), check=True), "sinkhorn: logits holds NaN or infinity"),
        (lambda: permutation_mixture(torch.randn(2, 5)), r"permutation_mixture: logits has shape \(2, 5\)"),
        (lambda: permutation_mixture(torch.tensor(1.0)), r"permutation_mixture: logits has shape \(\)"),
        (lambda: permutation_mixture(TABLE, n=6), "permutation_mixture: permutations is None, must be given for 6"),
        (lambda: permutation_mixture(TABLE, n=3), r"permutation_mixture: logits has shape .*, must be \(\.\.\., 6\)"),
        (lambda: permutation_mixture(TABLE, permutations=((0, 0),)), "permutation_mixture: permutations holds"),
        (lambda: permutation_mixture(TABLE, permutations=()), "permutation_mixture: permutations is empty"),
        (lambda: truncated_cayley(SQUARE, 0), "truncated_cayley: iters is 0, must be 1 to 1000"),
        (lambda: grassmann(torch.randn(3, 4)), "grassmann: logits has shape"),
        (lambda: grassmann(torch.randn(4, 0)), "grassmann: logits has shape"),
        (lambda: mix_matrix(TABLE, Grassmann(5), 4), "grassmann: rank is 5, must be 1 to n=4"),
        (lambda: mix_matrix(TABLE, Cayley(), 4), r"mix_matrix: logits has shape .*, must be \(\.\.\., 16\)"),
        (lambda: mix_matrix(TABLE, Identity(), 4), r"mix_matrix: logits has shape .*, must be \(\.\.\., 0\)"),
        (lambda: mix_matrix(TABLE, PermutationMixture(((1, 0),)), 4), "permutation_mixture: permutations holds"),
        (lambda: mix_matrix(TABLE, TruncatedCayley(), 9), "mix_matrix: there are 9 streams"),
        (lambda: cyclic_permutations(1), "cyclic_permutations: there are 1 streams"),
    ],
)  # fmt: skip
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
