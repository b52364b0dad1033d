"""`gated_mean`: streams read by a gate for every channel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from anabranch.core.arguments import call_as, check_floating, check_same_device
from anabranch.core.library import ops


def gated_mean(x: Tensor, logits: Tensor) -> Tensor:
    """`u = mean_j sigmoid(logits_j) * x_j`: how qwen4_exp of transformers collapses its normed streams.

    Its gates come from a low-rank pair of layers on the same streams; those are matrix products and stay with torch.

    Args:
        x: `[..., n, C]`, n at least 1; float32, bfloat16, float16 or float64.
        logits: as x; another dtype is converted to that of x.

    Returns:
        `[..., C]`, in the dtype of x; sums are float32, or float64 for float64 x.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.

    Gradient:
        To both, from both alone: nothing else is kept. Not differentiable twice.

    Cost:
        Reads 2*n*C and writes C numbers a token, one exponential for each number; the backward reads 2*n*C + C and
        writes 2*n*C.
    """
    op = "gated_mean"
    check_floating(op, x=x, logits=logits)
    check_same_device(op, "x", x, logits=logits)
    if x.dim() < 2 or x.shape[-2] == 0:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, must be (..., streams > 0, channels); expand_streams()")
    if logits.shape != x.shape:
        raise ValueError(
            f"{op}: logits has shape {tuple(logits.shape)}, must be {tuple(x.shape)} like x; give each number a gate"
        )
    tokens = math.prod(x.shape[:-2])
    flat = (tokens, *x.shape[-2:])
    u: Tensor = call_as(op, ops.gated_mean, x.reshape(flat), logits.to(x.dtype).reshape(flat))
    return u.view(*x.shape[:-2], x.shape[-1])


@torch.library.register_fake("anabranch::gated_mean")
def _(x: Tensor, logits: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2])


@torch.library.register_fake("anabranch::gated_mean_backward")
def _(du: Tensor, x: Tensor, logits: Tensor, wanted: int) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape if wanted >> bit & 1 else (0,)) for bit in range(2))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, du: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    given = ops.gated_mean_backward(du, *ctx.saved_tensors, needs[0] | needs[1] << 1)
    return tuple(one if need else None for one, need in zip(given, needs, strict=True))


def _no_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("gated_mean: it is differentiable once; compose torch's ops for more")


torch.library.register_autograd("anabranch::gated_mean", _backward, setup_context=_save)
torch.library.register_autograd("anabranch::gated_mean_backward", _no_double_backward)
