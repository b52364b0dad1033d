"""`spectrum`: what a model's mixing matrices do together, from the first step to every later one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.mixers.recording import recording
from anabranch.mixers.residuals import orthogonality_residual, stochastic_residual
from anabranch.mixers.spectrum_chart import chart


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Of the products `H_l ... H_1`, which carry the streams from the first step to after step l.

    All are float64, for L steps and T tokens. A doubly stochastic product keeps both gains at 1 while all singular
    values but the first vanish: streams become their mean. An orthogonal one keeps all singular values at 1, and its
    gains at most sqrt(n).

    Attributes:
        singular_values: `[L, T, n]`, largest first; NaN where the product is not finite.
        row_gain: `[L, T]`, the largest sum of absolute values in a row: how much a stream can grow going forward.
        column_gain: `[L, T]`, the same of a column: how much a gradient can grow going back.
        row_error: `[L, T]`, `max |row sum - 1|` of H_l alone; column_error: of its columns.
        orthogonality_error: `[L, T]`, `max |H^T H - I|` of H_l alone.
    """

    singular_values: Tensor
    row_gain: Tensor
    column_gain: Tensor
    row_error: Tensor
    column_error: Tensor
    orthogonality_error: Tensor

    def svg(self, title: str = "Products of the mixing matrices") -> str:
        """A picture, as SVG text: medians over the tokens of singular values and gains, by depth."""
        values = self.singular_values.median(1).values.T.tolist()
        gains = {"row gain": self.row_gain, "column gain": self.column_gain}
        curves = {f"sigma {index + 1}": line for index, line in enumerate(values)}
        return chart(title, curves, {name: gain.median(1).values.tolist() for name, gain in gains.items()})

    def plot(self, path: str | Path, title: str = "Products of the mixing matrices") -> None:
        """Writes `svg(title)` to that file."""
        Path(path).write_text(self.svg(title), encoding="utf-8")


def spectrum(source: nn.Module | Tensor | Sequence[Tensor], *inputs: Any, **keywords: Any) -> Spectrum:
    """Gains and singular values of the depth products of mixing matrices.

    Args:
        source: matrices in the order of depth, `[L, ..., n, n]` or a sequence of `[..., n, n]`; or a model, which is
            called once with `inputs` and `keywords`, without gradient and in the mode it is in. Every `connect` and
            `merge_and_connect` in that call gives its H: those of `HyperConnection`, `HyperConnectionSequence`,
            `ChannelGatedConnection`, and transformers' after `patch_mixers`.

    Returns:
        A `Spectrum`: gains and singular values by depth, residuals of each matrix; `plot` draws them.

    Raises:
        ValueError: no matrices, empty or complex ones, or of different shapes or devices; inputs beside matrices; a
            model without such steps, or compiled, which records none.

    Cost:
        A model's forward, n * n numbers a token and step, and an n x n singular value decomposition for each.
    """
    op = "spectrum"
    if isinstance(source, nn.Module):
        with torch.no_grad(), recording() as matrices:
            source(*inputs, **keywords)
        if not matrices:
            raise ValueError(
                f"{op}: model is a {type(source).__name__} in which no hyper-connection ran, must have some; "
                "call patch_mixers on a transformers model first, and pass a model that is not compiled"
            )
    else:
        if inputs or keywords:
            raise ValueError(f"{op}: inputs are given beside matrices, must be left out; pass a model to call it")
        matrices = _matrices(op, source)
    shapes = sorted({tuple(one.shape) for one in matrices})
    if len(shapes) != 1 or len(shapes[0]) < 2 or shapes[0][-1] != shapes[0][-2]:
        raise ValueError(
            f"{op}: matrices have shapes {shapes}, must all be one (..., n, n); pass one per depth, of the same tokens"
        )
    if 0 in shapes[0]:
        raise ValueError(f"{op}: matrices have shape {shapes[0]}, must hold numbers; pass one token at least")
    n = shapes[0][-1]
    steps = torch.stack([one.detach().double().reshape(-1, n, n) for one in matrices])
    products = [steps[0]]
    for step in steps[1:]:
        products.append(step @ products[-1])
    through = torch.stack(products)
    finite = through.isfinite().all(-1).all(-1)[..., None]
    values = torch.linalg.svdvals(torch.where(finite[..., None], through, 0.0))
    residual = stochastic_residual(steps)
    return Spectrum(
        singular_values=torch.where(finite, values, torch.nan),
        row_gain=through.abs().sum(-1).amax(-1),
        column_gain=through.abs().sum(-2).amax(-1),
        row_error=residual.row_error,
        column_error=residual.column_error,
        orthogonality_error=orthogonality_residual(steps),
    )


def _matrices(op: str, source: Tensor | Sequence[Tensor]) -> list[Tensor]:
    if not (isinstance(source, Sequence) or (isinstance(source, Tensor) and source.dim() > 0)):
        raise ValueError(
            f"{op}: source is {source!r}, must be a model, a sequence of matrices or a tensor [L, ..., n, n]; pass one"
        )
    matrices = list(source)
    for index, one in enumerate(matrices):
        if not isinstance(one, Tensor) or one.is_complex() or one.device != matrices[0].device:
            what = f"{one.dtype} on {one.device}" if isinstance(one, Tensor) else f"a {type(one).__name__}"
            raise ValueError(
                f"{op}: source[{index}] is {what}, must be a real tensor on the device of the first; convert it"
            )
    return matrices
