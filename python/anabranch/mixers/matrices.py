"""Mixing matrices from logits: `sinkhorn`, `permutation_mixture`, `cayley`, `truncated_cayley`, `grassmann`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from anabranch.core.arguments import call_as, check_floating
from anabranch.core.library import ops
from anabranch.mixers import matrix_autograd  # noqa: F401  (the op's fake and gradient)
from anabranch.mixers.mixer import (
    Backward,
    Cayley,
    Grassmann,
    Mixer,
    Order,
    Sinkhorn,
    TruncatedCayley,
    check_mixer,
    check_num_streams,
)
from anabranch.mixers.permutations import PermutationMixture, Permutations
from anabranch.mixers.residuals import orthogonality_residual, projector_residual, stochastic_residual


def mix_matrix(logits: Tensor, mixer: Mixer, n: int, *, check: bool = False) -> Tensor:
    """Matrices `[..., n, n]` of logits `[..., mixer.num_logits(n)]`, by any mixer.

    Args:
        logits: float32, or float64 for results in float64; 16-bit logits are read as float32.
        mixer: how they become a matrix.
        n: streams, 2 to 8.
        check: raise ValueError for logits that are not finite. On a GPU that waits for them. Otherwise a matrix with
            such a logit is NaN, all of it, and no other matrix is touched.

    Returns:
        `[..., n, n]`, float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes that do not fit; with `check` logits that are not finite.

    Gradient:
        To the logits; `Sinkhorn.backward` says which. The same on every device. Not differentiable twice.

    Cost:
        One read of the logits and one write of the matrices; the arithmetic is named at each mixer's header in
        `include/anabranch/mixers`.
    """
    return _mix("mix_matrix", logits, mixer, n, check)


def _mix(op: str, logits: Tensor, mixer: Mixer, n: int, check: bool) -> Tensor:
    check_mixer(op, mixer)
    check_floating(op, logits=logits)
    check_num_streams(op, n)
    count = mixer.num_logits(n)
    if logits.dim() == 0 or logits.shape[-1] != count:
        raise ValueError(f"{op}: logits has shape {tuple(logits.shape)}, must be (..., {count}); reshape it")
    if check and not bool(logits.isfinite().all()):
        raise ValueError(f"{op}: logits holds NaN or infinity, must be finite; find where they come from")
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    batch = logits.shape[:-1]
    flat = logits.to(dtype).reshape(math.prod(batch), count)
    matrices: Tensor = call_as(op, ops.mix_matrix, flat, *mixer.arguments(n, logits.device))
    return matrices.view(*batch, n, n)


def _square(op: str, logits: Tensor) -> tuple[Tensor, int]:
    if logits.dim() < 2 or logits.shape[-1] != logits.shape[-2]:
        raise ValueError(f"{op}: logits has shape {tuple(logits.shape)}, must be (..., n, n); reshape it")
    return logits.flatten(-2), logits.shape[-1]


def sinkhorn(
    logits: Tensor,
    iters: int | None = None,
    *,
    tol: float | None = None,
    order: Order = "columns_first",
    eps: float = 0.0,
    backward: Backward | None = None,
    check: bool = False,
    return_residual: bool = False,
) -> Any:
    """Doubly stochastic matrices: `iters` of Sinkhorn's iterations on `exp(logits)`, or the exact limit to `tol`.

    Each iteration divides columns, then rows, by their sums: mHC's `T_r(T_c(M))` (arXiv 2512.24880), so that rows sum
    to 1 and the columns' error is what convergence has left: 20 iterations leave 3e-13 at logits of standard deviation
    1 and 2.5e-2 at 8 (medians, n = 4). With `tol`, Newton's method on the dual makes columns as right as asked, in 3
    to 6 steps; logits that span more than 32 are approached from half of them, which has found every matrix up to a
    deviation of 1e4. Should one be missed, `return_residual` shows it.

    Args:
        logits: `[..., n, n]`, n from 2 to 8.
        iters, tol, order, eps, backward: see `Sinkhorn`; 20 iterations if neither iters nor tol is given.
        check: see `mix_matrix`.
        return_residual: return `(matrices, DoublyStochasticResidual)`.

    Returns:
        `[..., n, n]`, float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes, options that do not fit, or with `check` logits that are not finite.

    Gradient:
        `backward="unrolled"` is that of the iterations, recomputed; "implicit" that of the exact projection on the
        matrices with the sums that came out, by the implicit function theorem. At convergence they agree.

    Cost:
        One read and one write of the matrices, 4 n^2 FLOPs an iteration; with `tol` 3 to 6 solves of n x n systems in
        double. "unrolled" runs the iterations again in the backward.
    """
    op = "sinkhorn"
    flat, n = _square(op, logits)
    matrices = _mix(op, flat, Sinkhorn(iters, tol, order, eps, backward), n, check)
    return (matrices, stochastic_residual(matrices)) if return_residual else matrices


def permutation_mixture(
    logits: Tensor,
    *,
    n: int | None = None,
    permutations: Permutations | None = None,
    check: bool = False,
    return_residual: bool = False,
) -> Any:
    """Mixtures of permutation matrices, `sum_k softmax(logits)_k P_k` (mHC-lite, arXiv 2601.05732).

    Args:
        logits: `[..., P]`, one for each permutation: n! in the order of `itertools.permutations` (2, 6, 24, 120), or
            one for each row of `permutations`.
        n: streams; None: what the number of logits, or of columns of `permutations`, says.
        permutations: see `PermutationMixture`.
        check, return_residual: as `sinkhorn`.

    Returns:
        `[..., n, n]`; rows and columns sum to 1 within rounding.

    Raises:
        ValueError: a number of logits that fits no n; n and permutations that disagree.

    Gradient:
        To the logits. Not differentiable twice.

    Cost:
        One read of the logits, one write of the matrices, a softmax and P n additions each.
    """
    op = "permutation_mixture"
    mixer = PermutationMixture(permutations)
    if mixer.permutations:
        columns = len(mixer.permutations[0])
        if n not in (None, columns):
            raise ValueError(
                f"{op}: n is {n}, must be {columns} like the columns of permutations; leave it out beside them"
            )
        n = columns
    elif n is None:
        count = logits.shape[-1] if logits.dim() else 0
        n = {2: 2, 6: 3, 24: 4, 120: 5}.get(count)
        if n is None:
            raise ValueError(
                f"{op}: logits has shape {tuple(logits.shape)}, must be (..., 2, 6, 24 or 120); pass permutations"
            )
    matrices = _mix(op, logits, mixer, n, check)
    return (matrices, stochastic_residual(matrices)) if return_residual else matrices


def cayley(logits: Tensor, *, scale: float = 0.1, check: bool = False, return_residual: bool = False) -> Any:
    """Orthogonal matrices `(I - B)^-1 (I + B)`, `B = scale / 2 (G - G^T)`, of logits `G [..., n, n]`.

    JPmHC (arXiv 2602.18308) truncates this map: `truncated_cayley`. Here n <= 4 has a closed form and more streams an
    elimination. Exact up to logits of standard deviation 100 in float32: `max |H^T H - I|` stays below 1e-6 there.
    Beyond, rounding grows with the logits; float64 logits go further.

    Args:
        logits: `[..., n, n]`; scale: the paper's alpha.
        check: as `sinkhorn`.
        return_residual: return `(matrices, max |H^T H - I|)`.

    Returns:
        `[..., n, n]`, float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes that do not fit; with `check` logits that are not finite.

    Gradient:
        To the logits, of the map itself. Not differentiable twice.

    Cost:
        One read of the logits, one write of the matrices; an n x n inverse in registers for each.
    """
    op = "cayley"
    flat, n = _square(op, logits)
    matrices = _mix(op, flat, Cayley(scale), n, check)
    return (matrices, orthogonality_residual(matrices)) if return_residual else matrices


def truncated_cayley(
    logits: Tensor, iters: int = 2, *, scale: float = 0.1, check: bool = False, return_residual: bool = False
) -> Any:
    """JPmHC's iteration in place of `cayley`: `Y = I + 2 B`, then `iters` times `Y <- I + B (I + Y)`.

    Orthogonal to 2e-3 at logits of standard deviation 1 (median, n = 4), 0.13 at 3, and diverging at 10.

    Args:
        logits: `[..., n, n]`; scale: the paper's alpha.
        iters: 1 to 1000.
        check, return_residual: as `cayley`.

    Returns:
        As `cayley`.

    Raises:
        ValueError: as `cayley`, or iters out of range.

    Gradient:
        To the logits, of the iterations that ran. Not differentiable twice.

    Cost:
        One read of the logits, one write of the matrices, an n x n product an iteration.
    """
    op = "truncated_cayley"
    flat, n = _square(op, logits)
    matrices = _mix(op, flat, TruncatedCayley(scale, iters), n, check)
    return (matrices, orthogonality_residual(matrices)) if return_residual else matrices


def grassmann(logits: Tensor, *, check: bool = False, return_residual: bool = False) -> Any:
    """Projectors `U U^T` on the span of the columns of logits `[..., n, rank]` (JPmHC, arXiv 2602.18308).

    A column in the span of those before it adds nothing and gets no gradient. `return_residual` adds
    `max |H H - H|`.

    Args:
        logits: `[..., n, rank]`, rank at most n.
        check, return_residual: as `cayley`.

    Returns:
        `[..., n, n]`, float32, or float64 for float64 logits.

    Raises:
        ValueError: as `cayley`.

    Gradient:
        To the logits. Not differentiable twice.

    Cost:
        One read of the logits, one write of the matrices; rank steps of Gram-Schmidt for each.
    """
    op = "grassmann"
    if logits.dim() < 2 or not 1 <= logits.shape[-1] <= logits.shape[-2]:
        raise ValueError(f"{op}: logits has shape {tuple(logits.shape)}, must be (..., n, rank <= n); reshape it")
    n, rank = logits.shape[-2:]
    matrices = _mix(op, logits.flatten(-2), Grassmann(rank), n, check)
    return (matrices, projector_residual(matrices)) if return_residual else matrices
