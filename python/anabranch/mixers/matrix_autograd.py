"""What torch knows of the op `mix_matrix`: shapes without values, and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anabranch.core.library import ops


@torch.library.register_fake("anabranch::mix_matrix")
def _(logits: Tensor, permutations: Tensor | None, num_streams: int, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape[0], num_streams, num_streams)


@torch.library.register_fake("anabranch::mix_matrix_backward")
def _(dmatrices: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, permutations, *ctx.options = inputs
    ctx.save_for_backward(logits, output, permutations)


def _backward(ctx: Any, dmatrices: Tensor) -> tuple[Tensor | None, ...]:
    logits, matrices, permutations = ctx.saved_tensors
    dlogits = ops.mix_matrix_backward(dmatrices, logits, matrices, permutations, *ctx.options)
    return (dlogits, *(None,) * (1 + len(ctx.options)))


def _no_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("mix_matrix: it is differentiable once; compose torch's ops for more")


torch.library.register_autograd("anabranch::mix_matrix", _backward, setup_context=_save)
torch.library.register_autograd("anabranch::mix_matrix_backward", _no_double_backward)
