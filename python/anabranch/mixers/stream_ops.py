"""Shapes and gradients of `torch.ops.anabranch.stream_*`, for those who call the ops themselves.

`connect` and `Connection` go another way in autograd (connection.py), which writes the streams' gradient once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anabranch.core.library import ops


def _sums(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _step(x: Tensor, weight: Tensor | None, scale: Tensor, segments: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens, n, channels = x.shape
    kept = scale.shape[0] + 2 * segments if weight is not None else 0
    return (
        x.new_empty(tokens, channels),
        x.new_empty(tokens, n * (n + 2), dtype=_sums(x)),
        x.new_empty(tokens, kept, dtype=_sums(x)),
    )


@torch.library.register_fake("anabranch::stream_pre")
def _(x: Tensor, lag: Tensor | None, weight: Tensor | None, scale: Tensor, bias: Tensor, segments: int, *_: Any) -> Any:
    return _step(x, weight, scale, segments)


@torch.library.register_fake("anabranch::stream_post")
def _(x: Tensor, y: Tensor, coefficients: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("anabranch::stream_post_pre")
def _(
    x: Tensor,
    y: Tensor,
    coefficients: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    segments: int,
    *_: Any,
) -> Any:
    return (x.new_empty(x.shape), *_step(x, weight, scale, segments))


@torch.library.register_fake("anabranch::stream_pre_backward")
def _(du: Any, dcoefficients: Any, dnext: Any, dx: Any, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _, coefficients, _, weight, scale, bias, *_, wanted = rest
    sums = _sums(x)
    shapes = (x.shape, (0,) if weight is None else weight.shape, scale.shape, bias.shape, coefficients.shape)
    dtypes = (x.dtype, sums, sums, sums, sums)
    return tuple(
        x.new_empty(shape if wanted >> bit & 1 else (0,), dtype=dtype)
        for bit, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    )


@torch.library.register_fake("anabranch::stream_post_backward")
def _(dout: Tensor, x: Tensor, y: Tensor, coefficients: Tensor, wanted: int) -> tuple[Tensor, ...]:
    return (
        x.new_empty(x.shape if wanted & 1 else (0,)),
        x.new_empty(y.shape if wanted & 2 else (0,)),
        x.new_empty(coefficients.shape[0] if wanted & 4 else 0, coefficients.shape[1], dtype=_sums(x)),
    )


@torch.library.register_fake("anabranch::stream_post_pre_backward")
def _(du: Any, dcoefficients: Any, dnext: Any, dout: Any, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    y, coefficients, _, _, weight, scale, bias, *_ = rest
    sums = _sums(x)
    return (
        x.new_empty(x.shape),
        x.new_empty(y.shape),
        x.new_empty(coefficients.shape, dtype=sums),
        x.new_empty((0,) if weight is None else weight.shape, dtype=sums),
        x.new_empty(scale.shape, dtype=sums),
        x.new_empty(bias.shape, dtype=sums),
    )


def _save_pre(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, lag, weight, scale, bias, *options = inputs
    permutations = options.pop(10)
    ctx.options = options
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, lag, output[1], output[2], weight, scale, bias, permutations)


def _backward_pre(ctx: Any, du: Tensor | None, dcoefficients: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    *saved, permutations = ctx.saved_tensors
    options = [*ctx.options[:10], permutations, *ctx.options[10:]]
    needs = ctx.needs_input_grad
    wanted = needs[0] | needs[2] << 1 | needs[3] << 2 | needs[4] << 3 | needs[1] << 4
    dx, dweight, dscale, dbias, dlag = ops.stream_pre_backward(du, dcoefficients, None, None, *saved, *options, wanted)
    given = (dx, dlag, dweight, dscale, dbias)
    rest = (None,) * len(options)
    return (*(one if need else None for one, need in zip(given, needs, strict=False)), *rest)


def _save_post(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_post(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    wanted = sum(need << bit for bit, need in enumerate(ctx.needs_input_grad))
    given = ops.stream_post_backward(dout, *ctx.saved_tensors, wanted)
    return tuple(one if need else None for one, need in zip(given, ctx.needs_input_grad, strict=True))


def _save_post_pre(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, coefficients, weight, scale, bias, *options = inputs
    permutations = options.pop(10)
    ctx.options = options
    ctx.mark_non_differentiable(output[3])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, y, coefficients, output[2], output[3], weight, scale, bias, permutations)


def _backward_post_pre(
    ctx: Any, dout: Tensor | None, du: Tensor | None, dcoefficients: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    *saved, permutations = ctx.saved_tensors
    x, y, coefficients = saved[:3]
    options = [*ctx.options[:10], permutations, *ctx.options[10:]]
    between, *given = ops.stream_post_pre_backward(du, dcoefficients, None, dout, *saved, *options)
    dx = ops.stream_post_backward(between, x, y, coefficients, 1)[0] if ctx.needs_input_grad[0] else None
    rest = (None,) * len(options)
    return (dx, *(one if need else None for one, need in zip(given, ctx.needs_input_grad[1:], strict=False)), *rest)


def _no_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("stream ops: they are differentiable once; compose torch's ops for more")


torch.library.register_autograd("anabranch::stream_pre", _backward_pre, setup_context=_save_pre)
torch.library.register_autograd("anabranch::stream_post", _backward_post, setup_context=_save_post)
torch.library.register_autograd("anabranch::stream_post_pre", _backward_post_pre, setup_context=_save_post_pre)
for _name in ("stream_pre_backward", "stream_post_backward", "stream_post_pre_backward"):
    torch.library.register_autograd(f"anabranch::{_name}", _no_double_backward)
