"""`gated_ffn` and `prefix_ffn`: the feed-forward block for the rows that run it, as wide as each row asks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import anabranch.skip.gated_ffn_autograd  # noqa: F401  (registers the formulas)
from anabranch.core.arguments import call_as, cast, check_floating
from anabranch.core.library import ops
from anabranch.experts.expert_ffn import Activation, compute_dtype
from anabranch.skip.arguments import (
    Matrices,
    activation_index,
    add_to_stream,
    check_cosine,
    check_weights,
    decisions_of,
    nothing_runs,
    one_matrix,
    otherwise_arguments,
    record_gated_ffn,
    row_gate,
    untouched,
)
from anabranch.skip.norm import Norm, norm_arguments
from anabranch.skip.otherwise import Otherwise


def gated_ffn(
    x: Tensor,
    keep: Tensor,
    gate_up_proj: Matrices,
    down_proj: Tensor,
    *,
    gate: Tensor | None = None,
    norm: Norm | None = None,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: Activation = "silu",
    gated: bool = True,
    residual: bool = True,
    residual_scale: float = 1.0,
    otherwise: Otherwise | None = None,
    capacity: int | None = None,
    return_cosine: bool = False,
) -> Any:
    """A residual feed-forward block for the rows that are kept: `y = x + s * g * FFN(norm(x))`, else the else-branch.

    `FFN(n) = down @ (act(gate @ n) * (up @ n))`, or `down @ act(gate @ n)` without `gated`. One op compacts the rows,
    normalises, multiplies and adds to the residual; it costs what is kept.

    Args:
        x: `[..., H]`, float32, float64, bfloat16 or float16: the residual stream.
        keep: bool `[...]`, true where the FFN runs.
        gate_up_proj: `[2I, H]`, gate rows first; `[I, H]` if not `gated`; or a pair of `[I, H]` matrices, gate and up,
            which are concatenated in every call (`pack_ffn` does it once).
        down_proj: `[H, I]`. It and the biases have the dtype of gate_up_proj; the norm's tensors and the else-branch's
            matrices are cast to it.
        gate: floating `[...]` or None: multiplies the FFN of kept rows.
        norm: of the FFN's input, or None.
        gate_up_bias: `[2I]` (`[I]`); down_bias: `[H]`, or None.
        activation: of the gate, as `expert_ffn`.
        residual: False leaves x itself out, for kept rows and others: y is what a block adds to its residual, as a
            sub-layer of `mixers.HyperConnection` or a shared expert returns it.
        residual_scale: s.
        otherwise: what the other rows get; None: x itself (0 without `residual`).
        capacity: the most rows that may be kept; default all. What training saves is sized by it.
        return_cosine: also return cos(x, y), for the next layer's decision.

    Returns:
        y, `[..., H]` in the dtype of x; or (y, cosine), cosine `[...]` in float32 (float64 for float64): cos(x, y) of
        kept rows (0 where x or y is zero) and 1 for the others, without gradient.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; a cosine without `residual`; more kept rows than
            `capacity` (CPU; on a GPU the last ones are treated as not kept). An inference call on the CPU that keeps
            nothing and has no else-branch looks at x, keep and the outputs of down_proj alone.

    Gradient:
        To x, all weights of both branches, and `gate`: `dgate = s * <dy, FFN(norm(x))>` for kept rows, 0 for the
        others. `keep` has none. So a hard gate learns from kept rows alone; a straight-through gate that shall learn
        from skipped rows too needs their FFN: pass all rows as kept and `gate = hard + soft - soft.detach()`, at the
        dense price. A soft gate (`gate = probability`) learns from kept rows. Not differentiable twice.

    Cost:
        6*M*H*I FLOPs for M kept rows, twice that backward; bytes of the weights once, and of x and y. Nothing kept: one
        copy of x. No host read: the result has the shape of x, so it captures in a CUDA graph. If x is not in the
        weights' dtype (a float32 stream around bfloat16 weights, or under autocast) the block is computed in theirs and
        added to x in its own.
    """
    op = "gated_ffn"
    inner = down_proj.shape[-1] if down_proj.dim() == 2 else 0
    if nothing_runs(x, keep, down_proj.shape[0] if down_proj.dim() == 2 else 0, otherwise):
        return untouched(op, x, keep, residual, return_cosine)
    return run_gated_ffn(
        op, x, keep, gate_up_proj, down_proj, (0, inner), gate, norm, gate_up_bias, down_bias, activation, gated,
        residual, residual_scale, otherwise, capacity, return_cosine,
    )  # fmt: skip


def prefix_ffn(
    x: Tensor,
    width_index: Tensor,
    gate_up_proj: Matrices,
    down_proj: Tensor,
    widths: tuple[int, ...],
    *,
    gate: Tensor | None = None,
    norm: Norm | None = None,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: Activation = "silu",
    gated: bool = True,
    residual: bool = True,
    residual_scale: float = 1.0,
    otherwise: Otherwise | None = None,
    capacity: int | None = None,
    return_cosine: bool = False,
) -> Any:
    """`gated_ffn` whose rows choose a width: row t uses the first `widths[width_index[t]]` intermediate features.

    Args:
        width_index: int64 `[...]` as x's rows, or `[B]` for all rows of each sample `x[b]`.
        widths: at most 16 ascending numbers up to I; 0, if it is there, skips: those rows get the else-branch.
        Others: as `gated_ffn`; a down_bias is added whatever the width.

    Returns:
        As `gated_ffn`, whose gradient story holds too; the choice of a width has no gradient.

    Raises:
        ValueError: as `gated_ffn`; an index outside widths (CPU; on a GPU such rows skip).

    Cost:
        6*H*w FLOPs for a row of width w, and nothing beyond it. Rows are sorted by width, and each width reads its
        prefix of the weights; up to 28 rows on the CPU read the widest prefix once and multiply by zeros beyond theirs.
    """
    return run_gated_ffn(
        "prefix_ffn", x, width_index, gate_up_proj, down_proj, tuple(widths), gate, norm, gate_up_bias, down_bias,
        activation, gated, residual, residual_scale, otherwise, capacity, return_cosine,
    )  # fmt: skip


def run_gated_ffn(
    op: str,
    x: Tensor,
    choice: Tensor,
    gate_up_proj: Matrices,
    down_proj: Tensor,
    widths: tuple[int, ...],
    gate: Tensor | None,
    norm: Norm | None,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: Activation,
    gated: bool,
    residual: bool,
    residual_scale: float,
    otherwise: Otherwise | None,
    capacity: int | None,
    return_cosine: bool,
) -> Any:
    """Both functions in the name of `op`, checked as far as Python checks."""
    check_floating(op, x=x, gate=gate)
    check_cosine(op, residual, return_cosine)
    choices = decisions_of(op, x, choice, widths)
    gate_up_proj = one_matrix(op, gate_up_proj, down_proj)
    check_weights(op, x, gate_up_proj, down_proj=down_proj, gate_up_bias=gate_up_bias, down_bias=down_bias)
    if capacity is not None and capacity < 0:
        raise ValueError(f"{op}: capacity is {capacity}, must not be negative; pass None for room for all")
    dtype = compute_dtype(x, gate_up_proj)
    norm_weight, norm_bias, norm_kind, eps = norm_arguments(op, x, norm)
    mixed = x.dtype != dtype  # the block is computed by itself and added in the dtype of x
    branch = otherwise_arguments(op, x, otherwise, has_norm=norm_kind > 0)
    rows = x.reshape(-1, x.shape[-1])
    weights = (norm_weight, norm_bias, gate_up_proj, gate_up_bias, down_proj, down_bias)
    added = None if mixed else branch.base
    first, *others = (cast(tensor, dtype) for tensor in (rows, *weights, added, *branch.matrices))
    tensors = (first, choices, row_gate(op, x, gate, dtype), *others)
    arguments = (
        *tensors,
        widths,
        -1 if capacity is None else capacity,
        norm_kind,
        eps,
        activation_index(op, activation),
        gated,
        residual_scale,
        residual and not mixed,
        branch.adds_x and residual and not mixed,
        *branch.options,
        return_cosine and not mixed,
    )
    needs_grad = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    outputs = call_as(op, ops.gated_ffn if needs_grad else ops.gated_ffn_inference, *arguments)
    y, cosine, row_offsets = outputs[:3]
    record_gated_ffn(op, row_offsets, rows.shape, widths, gate_up_proj, down_proj, branch)
    if mixed:
        y, cosine = add_to_stream(rows, y, choices, widths, branch, residual, return_cosine)
    y = y.view(x.shape)
    return (y, cosine.view(x.shape[:-1])) if return_cosine else y
