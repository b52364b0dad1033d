"""Training a stack of orthogonal hyper-connections without keeping its streams: they are rebuilt going back.

Forward keeps the last streams and, for each block, the sub-layer's output y and the coefficients p, q, H. Backward
takes the blocks from the last: `x = H^T (x' - q y)` is one `stream_post` with H^T for H and -H^T q for q; then the
block's reading and its sub-layer run again with gradients on. Its writing does not: its gradient needs x, y and the
coefficients alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from anabranch.core.arguments import autocast_dtype
from anabranch.core.library import ops
from anabranch.mixers.connection import Connection, connect
from anabranch.mixers.modules import HyperConnection


def sublayer_output(block: HyperConnection, u: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What the block's sub-layer gives for u; a ValueError if that is no tensor."""
    y, rest = block.run(u, *args, **kwargs)
    if rest is not None:
        raise ValueError(
            f"HyperConnectionSequence: the sub-layer returns a tuple of {len(rest) + 1}, must return a tensor; "
            "wrap it in a module that does, or call the blocks one by one"
        )
    return y


def run_blocks(
    blocks: Sequence[HyperConnection],
    streams: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    lagged: bool,
    kept: _Kept | None = None,
) -> Tensor:
    """All blocks, each one's writing in one pass with the next one's reading.

    Training on a CPU takes two passes: its arithmetic is the limit there, and the fused backward, which computes the
    streams between again, was measured to take 8 to 14 % longer.
    """
    fused = streams.device.type != "cpu" or not torch.is_grad_enabled()
    step = connect(streams, blocks[0].projection())
    for index, block in enumerate(blocks):
        if kept is not None:
            kept.surroundings.append(_Surroundings(streams.device))
        y = sublayer_output(block, step.input, args, kwargs)
        if kept is not None:
            kept.outputs.append(y.to(streams.dtype))
            kept.coefficients.append(step.coefficients)
        if index + 1 == len(blocks):
            break
        following = blocks[index + 1].projection()
        if fused:
            step = step.merge_and_connect(y, following, lagged=lagged)
        else:
            step = connect(step.merge(y), following, lag=step if lagged else None)
    return step.merge(y)


@torch.compiler.disable(reason="HyperConnectionSequence: reversible=True runs eagerly; compile its sub-layers instead")
def run_reversible(
    blocks: Sequence[HyperConnection], streams: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], *, lagged: bool
) -> Tensor:
    """`run_blocks`, keeping for the backward what this file's header says."""
    tensors: dict[int, Tensor] = {}
    for one in (*_learned(args, kwargs), *(parameter for block in blocks for parameter in block.parameters())):
        if one.requires_grad:
            tensors[id(one)] = one
    out: Tensor = _Reversible.apply((blocks, args, kwargs, lagged), streams, *tensors.values())
    return out


def _learned(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among the sub-layers' arguments, and the parameters of modules among them (a policy that all ask)."""
    for one in pytree.tree_leaves((args, kwargs)):
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, nn.Module):
            yield from one.parameters()


_WANTS_Y_AND_COEFFICIENTS = 6  # bits of stream_post_backward's `wanted`


class _Surroundings:
    """Autocast and random numbers as they are now, to be found again by the block's second run."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._autocast = autocast_dtype(device)
        self._random = torch.get_rng_state()
        self._device_random = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        on_device = self._device_random is not None
        dtype = self._autocast
        with torch.random.fork_rng([self._device] if on_device else []):
            torch.set_rng_state(self._random)
            if self._device_random is not None:
                torch.cuda.set_rng_state(self._device_random, self._device)
            if self._device.type == "meta":  # which torch knows no autocast for
                yield
                return
            with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
                yield


class _Kept:
    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.coefficients: list[Tensor] = []
        self.surroundings: list[_Surroundings] = []


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Any, streams: Tensor, *tensors: Tensor) -> Tensor:
        blocks, args, kwargs, lagged = run
        kept = _Kept()
        out = run_blocks(blocks, streams, args, kwargs, lagged=lagged, kept=kept)
        ctx.run, ctx.tensors, ctx.surroundings = run, tensors, kept.surroundings
        # The tensors too: a change of one before the backward is then an error.
        ctx.save_for_backward(out, *kept.outputs, *kept.coefficients, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Any:
        blocks, args, kwargs, lagged = ctx.run
        depth, tensors = len(blocks), ctx.tensors
        x, *saved = ctx.saved_tensors
        outputs, coefficients = saved[:depth], saved[depth : 2 * depth]
        place = {id(tensor): index for index, tensor in enumerate(tensors)}
        total: list[Tensor | None] = [None] * len(tensors)
        arguments = [place[id(one)] for one in _learned(args, kwargs) if id(one) in place]
        dlag: Tensor | None = None
        for index in reversed(range(depth)):
            block, y = blocks[index], outputs[index]
            x = _before(x, y, coefficients[index])
            wanted = [place[id(one)] for one in block.parameters() if id(one) in place]
            wanted = list(dict.fromkeys(arguments + wanted))
            leaf, inputs = x.detach().requires_grad_(), [tensors[one] for one in wanted]
            lag = None
            if lagged and index > 0:
                lag = Connection(leaf, y, coefficients[index - 1].detach().requires_grad_(), None)
            with torch.enable_grad(), ctx.surroundings[index].restored():
                step = connect(leaf, block.projection(), lag=lag)
                again = sublayer_output(block, step.input, args, kwargs)
            results, upstream = _merge_gradient(step, y, again, dout, dlag)
            inputs = [leaf, *inputs] if lag is None else [leaf, lag.coefficients, *inputs]
            dout, *grads = torch.autograd.grad(results, inputs, upstream, allow_unused=True)
            dlag = None if lag is None else grads.pop(0)
            for one, grad in zip(wanted, grads, strict=True):
                if grad is not None:  # of an argument that some sub-layers alone use
                    known = total[one]
                    total[one] = grad if known is None else known + grad
        return (None, dout, *total)


def _before(merged: Tensor, y: Tensor, coefficients: Tensor) -> Tensor:
    """The streams that `Connection.merge(y)` with an orthogonal H made `merged` of."""
    n = merged.shape[-2]
    pre, post, mixing = coefficients.split([n, n, n * n], -1)
    back = mixing.unflatten(-1, (n, n)).mT
    undo = torch.cat([pre, -(back @ post[..., None]).squeeze(-1), back.flatten(-2)], -1)
    return Connection(merged, y, undo, None).merge(y)


def _merge_gradient(
    step: Connection, y: Tensor, again: Tensor, dout: Tensor, dlag: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """What `step.merge(y)` is made of, as far as it has a gradient, and these gradients; dlag is added to p's."""
    n, channels = step.streams.shape[-2:]
    width = n * (n + 2)
    _, dy, dcoefficients = ops.stream_post_backward(
        dout.reshape(-1, n, channels),
        step.streams.detach().reshape(-1, n, channels),
        y.reshape(-1, channels),
        step.coefficients.detach().reshape(-1, width),
        _WANTS_Y_AND_COEFFICIENTS,
    )
    dcoefficients = dcoefficients.view(step.coefficients.shape)
    if dlag is not None:
        dcoefficients = dcoefficients + dlag
    assert step._carry is not None  # the streams are a leaf that wants a gradient
    results = [step._carry, step.coefficients, again]
    upstream = [dout.reshape(step._carry.shape), dcoefficients, dy.view(y.shape).to(again.dtype)]
    kept = [index for index, one in enumerate(results) if one.requires_grad]
    return [results[index] for index in kept], [upstream[index] for index in kept]
