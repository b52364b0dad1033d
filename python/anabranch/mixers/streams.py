"""Residual streams around a model: `expand_streams` makes them of hidden states, `reduce_streams` ends them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from anabranch.core.arguments import check_floating, check_same_device, without_autocast
from anabranch.mixers.mixer import check_num_streams


def expand_streams(x: Tensor, n: int) -> Tensor:
    """n equal residual streams `[..., n, C]` of hidden states `[..., C]`.

    Args:
        x: `[..., C]`.
        n: streams, 2 to 8.

    Returns:
        A view that repeats x without memory of its own; write nothing into it. The gradient of x is their sum.

    Raises:
        ValueError: n out of 2 to 8, or no channels.

    Cost:
        None: no number is copied.
    """
    op = "expand_streams"
    check_num_streams(op, n)
    if x.dim() == 0:
        raise ValueError(f"{op}: x has shape (), must be (..., channels); give it a dimension of channels")
    return x.unsqueeze(-2).expand(*x.shape[:-1], n, x.shape[-1])


def reduce_streams(x: Tensor, how: Literal["sum", "mean"] | Tensor = "sum") -> Tensor:
    """One `[..., C]` of the streams `[..., n, C]`.

    Args:
        how: "sum", as HC and mHC-lite end; "mean"; or weights `[..., n]` that broadcast to all but the channels of x,
            such as a learned `[n]`.

    Returns:
        In the dtype of x, summed in float32 (float64 for float64), under autocast too.

    Raises:
        ValueError: streams or weights that do not fit.

    Cost:
        Reads n*C and writes C numbers a token, with weights as torch composes them.
    """
    op = "reduce_streams"
    check_floating(op, x=x)
    if x.dim() < 2:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, must be (..., streams, channels); expand_streams()")
    if isinstance(how, Tensor):
        check_floating(op, how=how)
        check_same_device(op, "x", x, how=how)
        tokens = x.shape[-how.dim() - 1 : -1]
        fits = 0 < how.dim() < x.dim() and how.shape[-1] == x.shape[-2]
        if not fits or any(size not in (1, full) for size, full in zip(how.shape, tokens, strict=True)):
            raise ValueError(
                f"{op}: how has shape {tuple(how.shape)}, must broadcast to {tuple(x.shape[:-1])} and end with "
                f"{x.shape[-2]}; give a weight per stream"
            )
        sums = torch.float64 if x.dtype == torch.float64 else torch.float32
        # Autocast would make 16-bit products of them.
        with without_autocast(x.device):
            return torch.einsum("...n,...nc->...c", how.to(sums), x.to(sums)).to(x.dtype)
    if how not in ("sum", "mean"):
        raise ValueError(f"{op}: how is {how!r}, must be 'sum', 'mean' or a tensor of weights; name one")
    # Autocast makes float32 of some sums.
    return (x.sum(-2) if how == "sum" else x.mean(-2)).to(x.dtype)
