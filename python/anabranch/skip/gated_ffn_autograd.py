"""What torch must know of the gated FFN's ops: the shapes of their results, and the backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anabranch.core.library import ops
from anabranch.experts.expert_ffn import accumulate_dtype

_NUM_ARGUMENTS = 26
# x, gate, norm_weight, norm_bias, gate_up_proj, gate_up_bias, down_proj, down_bias, base, other_gate_up, other_down
_DIFFERENTIABLE = (0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
_NUM_TENSORS = 12


def _fake_first(arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    x, widths, cosine = arguments[0], arguments[12], arguments[25]
    groups = len(widths) - (widths[0] == 0)
    cosines = x.new_empty(x.shape[0] if cosine else 0, dtype=accumulate_dtype(x.dtype))
    return x.new_empty(x.shape), cosines, x.new_empty(groups + 2, dtype=torch.int32)


@torch.library.register_fake("anabranch::gated_ffn_inference")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_first(arguments)


@torch.library.register_fake("anabranch::gated_ffn")
def _(*arguments: Any) -> tuple[Tensor, ...]:
    x, gate_up_proj, other_gate_up, capacity = (arguments[i] for i in (0, 5, 10, 13))
    item_ids = x.new_empty(x.shape[0], dtype=torch.int32)
    saved = x.new_empty(x.shape[0] if capacity == -1 else capacity, gate_up_proj.shape[0])
    other = x.new_empty(0, 0) if other_gate_up is None else x.new_empty(x.shape[0], other_gate_up.shape[0])
    return (*_fake_first(arguments), item_ids, saved, other)


@torch.library.register_fake("anabranch::gated_ffn_backward")
def _(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, wanted = arguments[5:], arguments[-1]
    x = inputs[0]
    gate_up_proj, down_proj = inputs[5], inputs[7]
    shapes = {2: (x.shape[0],), 3: (x.shape[1],), 4: (x.shape[1],), 6: gate_up_proj.shape[:1], 8: down_proj.shape[:1]}
    results = []
    for bit, position in enumerate(_DIFFERENTIABLE):
        shape = (0,)
        if wanted >> bit & 1:
            shape = shapes[position] if position in shapes else inputs[position].shape
        results.append(x.new_empty(shape, dtype=accumulate_dtype(x.dtype) if position == 2 else x.dtype))
    return tuple(results)


def _save_gated_ffn(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.options = inputs[_NUM_TENSORS:-1]  # all but `cosine`
    ctx.save_for_backward(*output[2:], *inputs[:_NUM_TENSORS])


def _gated_ffn_backward(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * _NUM_ARGUMENTS
    if dy is None:
        return tuple(gradients)
    wanted = sum(ctx.needs_input_grad[position] << bit for bit, position in enumerate(_DIFFERENTIABLE))
    computed = ops.gated_ffn_backward(dy, *ctx.saved_tensors, *ctx.options, wanted)
    for bit, position in enumerate(_DIFFERENTIABLE):
        if ctx.needs_input_grad[position]:
            gradients[position] = computed[bit]
    return tuple(gradients)


def _no_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("gated_ffn: it is differentiable once; compose torch's ops for higher derivatives")


torch.library.register_autograd("anabranch::gated_ffn", _gated_ffn_backward, setup_context=_save_gated_ffn)
torch.library.register_autograd("anabranch::gated_ffn_backward", _no_double_backward)
