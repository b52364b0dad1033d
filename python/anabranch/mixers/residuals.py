"""How far matrices are from the manifold that they shall be on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DoublyStochasticResidual(NamedTuple):
    """How far a matrix is from doubly stochastic.

    Attributes:
        row_error, column_error: `[...]`, the largest error of a sum, without gradient.
    """

    row_error: Tensor
    column_error: Tensor


def stochastic_residual(matrices: Tensor) -> DoublyStochasticResidual:
    """`max |sum - 1|` over the rows and over the columns of `[..., n, n]`.

    Args:
        matrices: `[..., n, n]`.

    Returns:
        A `DoublyStochasticResidual` of `[...]`, in the dtype of the matrices, without gradient.

    Cost:
        Two sums over the matrices.
    """
    given = matrices.detach()
    row, column = ((given.sum(dim) - 1).abs().amax(-1) for dim in (-1, -2))
    return DoublyStochasticResidual(row, column)


def orthogonality_residual(matrices: Tensor) -> Tensor:
    """`max |H^T H - I|` of `[..., n, n]`, in float64; `[...]`, without gradient.

    Args:
        matrices: `[..., n, n]`.

    Returns:
        float64 `[...]`.

    Cost:
        A product of n x n matrices in float64 for each.
    """
    given = matrices.detach().double()
    return (given.mT @ given - torch.eye(given.shape[-1], dtype=given.dtype, device=given.device)).abs().amax((-1, -2))


def projector_residual(matrices: Tensor) -> Tensor:
    """`max |H H - H|` of `[..., n, n]`, in float64; `[...]`, without gradient.

    Args:
        matrices: `[..., n, n]`.

    Returns:
        float64 `[...]`.

    Cost:
        A product of n x n matrices in float64 for each.
    """
    given = matrices.detach().double()
    return (given @ given - given).abs().amax((-1, -2))
