"""`lowrank_residual`: low-rank branches of many layers or adapters at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anabranch.core.arguments import call_as, cast, check_floating, check_same_device, check_same_dtype
from anabranch.core.cost import CostMeter, record
from anabranch.core.library import ops
from anabranch.experts.expert_ffn import Activation, compute_dtype
from anabranch.skip.arguments import activation_index
from anabranch.skip.norm import Norm, norm_arguments


def lowrank_residual(
    x: Tensor,
    down_proj: Tensor,
    up_proj: Tensor,
    *,
    activation: Activation = "relu",
    scale: float = 1.0,
    norm: Norm | None = None,
) -> Tensor:
    """`y = x + scale * up @ act(down @ norm(x))`: adapters, LoRA deltas and Hourglass blocks, in one op.

    Hourglass MLPs (arXiv 2510.01796) are stacks of it with `norm`; DAS (2309.01479) bypasses layers by it; with
    activation "identity" and `x` the layers' inputs it is LoRA-Drop's correction (2601.02569) for all dropped layers.

    Args:
        x: `[G, ..., H]` for G layers or adapters; `[..., H]` if the matrices have two dimensions.
        down_proj: `[G, r, H]` or `[r, H]`; up_proj: `[G, H, r]` or `[H, r]`, in one dtype.
        activation: between them.
        scale: of the branch.
        norm: of what the branch reads, the same for all groups; None: x itself.

    Returns:
        As x. If the weights have another dtype the branch is computed in theirs and added in that of x.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.

    Gradient:
        To x, both matrices and the norm's tensors. Not differentiable twice.

    Cost:
        4*T*H*r FLOPs for T rows, twice that backward; every matrix is read once, x read and y written once. On a GPU
        three launches whatever G is.
    """
    op = "lowrank_residual"
    check_floating(op, x=x, down_proj=down_proj, up_proj=up_proj)
    check_same_device(op, "x", x, down_proj=down_proj, up_proj=up_proj)
    check_same_dtype(op, "down_proj", down_proj, up_proj=up_proj)
    dim = down_proj.dim()
    if dim not in (2, 3) or dim != up_proj.dim() or x.dim() < dim - 1 or x.shape[-1] == 0:
        raise ValueError(
            f"{op}: x, down_proj and up_proj have shapes {tuple(x.shape)}, {tuple(down_proj.shape)} and "
            f"{tuple(up_proj.shape)}, must be (G, ..., H), (G, r, H) and (G, H, r), or without G, with H > 0; "
            "stack the matrices"
        )
    single = dim == 2
    groups = 1 if single else down_proj.shape[0]
    if not single and x.shape[0] != groups:
        raise ValueError(
            f"{op}: x has shape {tuple(x.shape)}, must begin with G={groups} as down_proj; give each group its rows"
        )
    norm_weight, norm_bias, norm_kind, eps = norm_arguments(op, x, norm)
    dtype = compute_dtype(x, down_proj)
    mixed = x.dtype != dtype
    rows_per_group = x.shape[:-1].numel() // groups if groups else 0
    rows = x.reshape(groups, rows_per_group, x.shape[-1]).to(dtype)
    matrices = (down_proj, up_proj) if not single else (down_proj.unsqueeze(0), up_proj.unsqueeze(0))
    tensors = [cast(one, dtype) for one in (rows, *matrices, norm_weight, norm_bias)]
    needs_grad = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
    kernel = ops.lowrank_residual if needs_grad else ops.lowrank_residual_inference
    outputs = call_as(op, kernel, *tensors, norm_kind, eps, activation_index(op, activation), scale, not mixed)
    y: Tensor = outputs[0] if needs_grad else outputs
    if CostMeter._active and not torch.compiler.is_compiling():  # else nobody needs a tensor of the number of rows
        numbers = down_proj.numel() + up_proj.numel()
        record(
            op,
            group_offsets=torch.tensor([0, groups * rows_per_group], dtype=torch.int32, device="cpu"),
            groups=range(1),
            dense_rows=groups * rows_per_group,
            flops_per_row=2 * numbers // max(groups, 1),
            bytes_per_group=numbers * down_proj.element_size(),
        )
    y = y.view(x.shape)
    return x + y.to(x.dtype) if mixed else y


@torch.library.register_fake("anabranch::lowrank_residual")
def _(x: Tensor, down_proj: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0] * x.shape[1], down_proj.shape[1])


@torch.library.register_fake("anabranch::lowrank_residual_inference")
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("anabranch::lowrank_residual_backward")
def _(dy: Tensor, pre_activation: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    wanted = rest[-1]
    shapes = (x.shape, rest[0].shape, rest[1].shape, x.shape[2:], x.shape[2:])
    return tuple(x.new_empty(shape if wanted >> bit & 1 else (0,)) for bit, shape in enumerate(shapes))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.options = inputs[5:]
    ctx.save_for_backward(output[1], *inputs[:5])


def _backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 10
    wanted = sum(ctx.needs_input_grad[position] << position for position in range(5))
    computed = ops.lowrank_residual_backward(dy, *ctx.saved_tensors, *ctx.options, wanted)
    return (*(one if ctx.needs_input_grad[i] else None for i, one in enumerate(computed)), None, None, None, None, None)


def _no_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("lowrank_residual: it is differentiable once; compose torch's ops for more")


torch.library.register_autograd("anabranch::lowrank_residual", _backward, setup_context=_save)
torch.library.register_autograd("anabranch::lowrank_residual_backward", _no_double_backward)
