"""The stream step in autograd, for `connect` and `Connection`: connection.py says how the gradients go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anabranch.core.arguments import call_as
from anabranch.core.library import ops


def carry_of(x: Tensor) -> Tensor:
    """Of the streams' shape and no size: only its gradient is used."""
    return x.new_empty(()).expand(x.shape)


class Pre(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lag: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        *tensors, options = rest
        u, coefficients, statistics = call_as("connect", ops.stream_pre, x, lag, *tensors, *options)
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, lag, coefficients, statistics, *tensors)
        return u, coefficients, carry_of(x)

    @staticmethod
    def backward(ctx: Any, du: Tensor | None, dcoefficients: Tensor | None, dnext: Tensor | None) -> Any:
        x, lag, coefficients, statistics, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wanted = needs[0] | needs[2] << 1 | needs[3] << 2 | needs[4] << 3 | needs[1] << 4
        dx, dweight, dscale, dbias, dlag = ops.stream_pre_backward(
            du, dcoefficients, dnext, None, x, lag, coefficients, statistics, *tensors, *ctx.options, wanted
        )
        given = (dx, dlag, dweight, dscale, dbias)
        return (*(one if need else None for one, need in zip(given, needs, strict=False)), None)


class Post(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, carry: Tensor, y: Tensor, coefficients: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, coefficients)
        out: Tensor = call_as("merge", ops.stream_post, x, y, coefficients)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        wanted = ctx.needs_input_grad[2] << 1 | ctx.needs_input_grad[3] << 2
        _, dy, dcoefficients = ops.stream_post_backward(dout, *ctx.saved_tensors, wanted)
        return (
            None,
            dout,
            dy if ctx.needs_input_grad[2] else None,
            dcoefficients if ctx.needs_input_grad[3] else None,
        )


class PostPre(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, carry: Tensor, y: Tensor, coefficients: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *tensors, options, lagged = rest
        out, u, following, statistics = call_as(
            "merge_and_connect", ops.stream_post_pre, x, y, coefficients, *tensors, *options, lagged
        )
        ctx.options = (*options, lagged)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, coefficients, following, statistics, *tensors)
        return out, u, following, carry_of(x)

    @staticmethod
    def backward(
        ctx: Any, dout: Tensor | None, du: Tensor | None, dcoefficients: Tensor | None, dnext: Tensor | None
    ) -> Any:
        gradients = ops.stream_post_pre_backward(du, dcoefficients, dnext, dout, *ctx.saved_tensors, *ctx.options)
        needs = ctx.needs_input_grad[1:]
        return (None, *(one if need else None for one, need in zip(gradients, needs, strict=False)), None, None)
