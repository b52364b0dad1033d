"""The stream step of a hyper-connection: `connect` reads the streams, `Connection.merge` writes them.

One step is `u = sum_j p_j x_j`, `y = sub-layer(u)`, `x'_i = sum_j H_ij x_j + q_i y`, with p, q and H from the streams:

    step = connect(x, projection)
    x = step.merge(sub_layer(step.input))

Between two steps `merge_and_connect` does both sides in one pass over the streams.

Gradients. The streams get all of theirs in the backward of `connect`, which is handed the gradient of the merged
streams as it is and applies H itself: each step keeps its streams once and writes their gradient once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anabranch.core.arguments import call_as, check_floating, check_same_device
from anabranch.core.library import ops
from anabranch.mixers import stream_ops  # noqa: F401  (fakes and autograd of the ops)
from anabranch.mixers.connection_autograd import Post, PostPre, Pre, carry_of
from anabranch.mixers.projection import Projection, check_projection
from anabranch.mixers.recording import record


@dataclass(frozen=True, eq=False)
class Connection:
    """One step, half done. Made by `connect` and `merge_and_connect`.

    Attributes:
        streams: x `[..., n, C]`. In a step that `merge_and_connect` made, their gradient goes through a stand-in:
            `retain_grad`, hooks and `torch.autograd.grad` on them see what else they were used for, not what the step
            did with them. Gradients of everything before them, parameters included, are whole.
        input: u `[..., C]`, what the sub-layer reads, in the dtype of the streams.
        coefficients: `[..., n * (n + 2)]`, float32 (float64 for float64 streams); see `pre`, `post`, `mixing`.
    """

    streams: Tensor
    input: Tensor
    coefficients: Tensor
    _carry: Tensor | None  # stands for the streams in autograd: its gradient is that of the merged streams

    @property
    def pre(self) -> Tensor:
        """p `[..., n]`: the weights by which streams were read; with a lag they are for the next step."""
        return self.coefficients[..., : self.streams.shape[-2]]

    @property
    def post(self) -> Tensor:
        """q `[..., n]`: the weights by which the sub-layer's output is written."""
        n = self.streams.shape[-2]
        return self.coefficients[..., n : 2 * n]

    @property
    def mixing(self) -> Tensor:
        """H `[..., n, n]`."""
        n = self.streams.shape[-2]
        return self.coefficients[..., 2 * n :].view(*self.streams.shape[:-1], n)

    def merge(self, y: Tensor) -> Tensor:
        """`x'_i = sum_j H_ij x_j + q_i y`.

        Args:
            y: `[..., C]`, the sub-layer's output; another dtype is converted to that of the streams.

        Returns:
            `[..., n, C]`, in the dtype of the streams.

        Raises:
            ValueError: y of another shape or on another device.

        Cost:
            Reads n*C + C and writes n*C numbers a token.
        """
        x, flat_y, coefficients = self._flat("merge", y)
        if self._carry is None:
            out: Tensor = call_as("merge", ops.stream_post, x, flat_y, coefficients)
        else:
            out = Post.apply(x.detach(), self._carry, flat_y, coefficients)
        return out.view(self.streams.shape)

    def merge_and_connect(self, y: Tensor, projection: Projection, *, lagged: bool = False) -> Connection:
        """`merge(y)` and `connect` of the next step in one pass, which reads the merged streams from cache.

        Args:
            y: `[..., C]`, the sub-layer's output.
            projection: of the next step.
            lagged: the next input reads the streams by this step's p instead of its own (the single-pass form of
                DeepSeek-V4.1): the input then needs nothing that the pass itself finds out.

        Cost:
            Reads n*C + C and writes n*C + C numbers a token; apart they would read n*C more.
        """
        op = "merge_and_connect"
        x, flat_y, coefficients = self._flat(op, y)
        check_projection(op, projection)
        projection.check(op, self.streams)
        tensors, options = projection.tensors(x), projection.options(x)
        carry = self._carry
        if carry is None and not x.requires_grad and _needs_grad(flat_y, coefficients, *tensors):
            carry = carry_of(x)  # streams without a gradient, as a frozen embedding makes them
        if carry is None:
            out, u, coefficients, _ = call_as(
                op, ops.stream_post_pre, x, flat_y, coefficients, *tensors, *options, lagged
            )
        else:
            out, u, coefficients, carry = PostPre.apply(
                x.detach(), carry, flat_y, coefficients, *tensors, options, lagged
            )
        return _shaped(out.view(self.streams.shape), u, coefficients, carry)

    def _flat(self, op: str, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.streams
        check_floating(op, y=y)
        check_same_device(op, "streams", x, y=y)
        if y.shape != self.input.shape:
            raise ValueError(
                f"{op}: y has shape {tuple(y.shape)}, must be {tuple(self.input.shape)} like the input; "
                "return one vector per token"
            )
        return _rows(x, 2), _rows(y.to(x.dtype), 1), _rows(self.coefficients, 1)


def connect(x: Tensor, projection: Projection, *, lag: Connection | None = None, check: bool = False) -> Connection:
    """Coefficients and the sub-layer's input, in one pass over the streams.

    Args:
        x: `[..., n, C]`, n from 2 to 8, float32, bfloat16, float16 or float64, of any strides.
        projection: the parameters of the step.
        lag: the step before, whose p reads the streams instead of the own (single-pass mHC).
        check: raise ValueError for streams that are not finite. On a GPU that waits for them.

    Returns:
        A `Connection`; its `merge` does the second half of the step.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or with `check` streams that are not finite. Without
            it these give NaN for their token and touch no other.

    Gradient:
        To x and the projection's tensors, through p, q and H, as the mixer declares. Not differentiable twice. The
        backward recomputes what it can: x is kept once, and num_logits + 2 numbers a token.

    Cost:
        Reads n*C and writes C numbers a token; 2 * num_logits * n * C FLOPs.
    """
    op = "connect"
    check_projection(op, projection)
    projection.check(op, x)
    if check and not bool(x.isfinite().all()):
        raise ValueError(f"{op}: x holds NaN or infinity, must be finite; find where they come from")
    flat = _rows(x, 2)
    before = None
    if lag is not None:
        if not isinstance(lag, Connection):
            raise ValueError(f"{op}: lag is a {type(lag).__name__}, must be a Connection; pass the step before")
        if lag.streams.shape != x.shape:
            raise ValueError(
                f"{op}: lag has streams of shape {tuple(lag.streams.shape)}, must be {tuple(x.shape)} like x; "
                "pass the step before"
            )
        before = _rows(lag.coefficients, 1)
    tensors, options = projection.tensors(x), projection.options(x)
    carry = None
    if _needs_grad(flat, before, *tensors):
        u, coefficients, carry = Pre.apply(flat, before, *tensors, options)
    else:
        u, coefficients, _ = call_as(op, ops.stream_pre, flat, before, *tensors, *options)
    return _shaped(x, u, coefficients, carry)


def _shaped(x: Tensor, u: Tensor, coefficients: Tensor, carry: Tensor | None) -> Connection:
    batch = x.shape[:-2]
    step = Connection(x, u.view(*batch, x.shape[-1]), coefficients.view(*batch, coefficients.shape[-1]), carry)
    record(step)
    return step


def _rows(tensor: Tensor, dims: int) -> Tensor:
    """Leading dimensions as one."""
    shape = tensor.shape[-dims:]
    return tensor.reshape(math.prod(tensor.shape[:-dims]), *shape)


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
