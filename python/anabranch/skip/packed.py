"""`pack_ffn`: the weights of one feed-forward block rearranged once for CPU inference, as they are or as int8."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from anabranch.core.arguments import call_as, cast, check_floating
from anabranch.core.library import cpu_only, ops
from anabranch.experts.expert_ffn import Activation, accumulate_dtype
from anabranch.experts.packed import PackedExperts, pack_experts
from anabranch.skip.arguments import (
    Matrices,
    activation_index,
    add_to_stream,
    check_cosine,
    decisions_of,
    nothing_runs,
    one_matrix,
    otherwise_arguments,
    record_widths,
    row_gate,
    untouched,
)
from anabranch.skip.norm import Norm, norm_arguments
from anabranch.skip.otherwise import Otherwise

cpu_only("a GPU needs no packing, use gated_ffn with the weights themselves", "gated_ffn_packed")


@dataclasses.dataclass(frozen=True, eq=False)
class PackedFfn:
    """A block's weights in the order in which this CPU's kernels read them; made by `pack_ffn`, used by calling it.

    It is a copy: later changes of the weights do not reach it. The order depends on the processor, so it is not meant
    to be saved.

    Attributes:
        experts: the packed weights, as those of a single expert.
    """

    experts: PackedExperts

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights and their scales."""
        return self.experts.nbytes

    def __call__(
        self,
        x: Tensor,
        keep: Tensor,
        *,
        gate: Tensor | None = None,
        norm: Norm | None = None,
        activation: Activation = "silu",
        residual: bool = True,
        residual_scale: float = 1.0,
        otherwise: Otherwise | None = None,
        return_cosine: bool = False,
    ) -> Any:
        """`gated_ffn(x, keep, ...)` with these weights, for inference: no gradient.

        Args:
            x: `[..., H]` on the CPU; the others as `gated_ffn`.

        Returns:
            As `gated_ffn`, up to rounding (with int8 weights up to their quantisation too). The result of a row that
            runs does not depend on the other rows; an else-branch's matrices are not packed, so how its rows are
            rounded may depend on how many they are.

        Raises:
            ValueError: a gradient would be needed, or arguments that do not fit.

        Cost:
            As `gated_ffn`; few kept rows cost one pass over the packed bytes, overlapped with the arithmetic.
        """
        op = "gated_ffn"
        if nothing_runs(x, keep, self.experts.in_features, otherwise):
            return untouched(op, x, keep, residual, return_cosine)
        widths = (0, self.experts.intermediate)
        return self._run(
            op, x, keep, widths, gate, norm, activation, residual, residual_scale, otherwise, return_cosine
        )

    def prefix(
        self,
        x: Tensor,
        width_index: Tensor,
        widths: tuple[int, ...],
        *,
        gate: Tensor | None = None,
        norm: Norm | None = None,
        activation: Activation = "silu",
        residual: bool = True,
        residual_scale: float = 1.0,
        otherwise: Otherwise | None = None,
        return_cosine: bool = False,
    ) -> Any:
        """`prefix_ffn(x, width_index, ..., widths)` with these weights; everything else as calling it.

        Cost:
            As `prefix_ffn`, each width rounded up to a multiple of 32.
        """
        return self._run(
            "prefix_ffn", x, width_index, tuple(widths), gate, norm, activation, residual, residual_scale, otherwise,
            return_cosine,
        )  # fmt: skip

    def _run(
        self,
        op: str,
        x: Tensor,
        choice: Tensor,
        widths: tuple[int, ...],
        gate: Tensor | None,
        norm: Norm | None,
        activation: Activation,
        residual: bool,
        residual_scale: float,
        otherwise: Otherwise | None,
        return_cosine: bool,
    ) -> Any:
        check_floating(op, x=x, gate=gate)
        check_cosine(op, residual, return_cosine)
        choices = decisions_of(op, x, choice, widths)
        packed = self.experts
        if x.device != packed.gate_up.device:
            raise ValueError(
                f"{op}: x is on {x.device}, must be on {packed.gate_up.device} like the packed weights; "
                "a GPU needs no packing, use gated_ffn with the weights themselves"
            )
        if x.shape[-1] != packed.in_features:
            raise ValueError(
                f"{op}: x has shape {tuple(x.shape)}, must be (..., {packed.in_features}) as the packed weights; "
                "pack the weights of this width"
            )
        norm_weight, norm_bias, norm_kind, eps = norm_arguments(op, x, norm)
        dtype = packed.dtype
        mixed = x.dtype != dtype
        branch = otherwise_arguments(op, x, otherwise, has_norm=norm_kind > 0)
        tensors = (x, gate, norm_weight, norm_bias, branch.base, *branch.matrices)
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
            raise ValueError(
                f"{op}: the weights are packed and a gradient is wanted, must be called under torch.no_grad(); "
                "use gated_ffn with the weights themselves to train"
            )
        rows = x.reshape(-1, x.shape[-1])
        y, cosine, row_offsets = call_as(
            op,
            ops.gated_ffn_packed,
            rows.to(dtype),
            choices,
            row_gate(op, x, gate, dtype),
            cast(norm_weight, dtype),
            cast(norm_bias, dtype),
            packed.gate_up,
            packed.gate_up_scales,
            None if packed.gate_up_bias is None else packed.gate_up_bias[0],
            packed.down,
            packed.down_scales,
            None if packed.down_bias is None else packed.down_bias[0],
            None if mixed else branch.base,
            *(cast(tensor, dtype) for tensor in branch.matrices),
            widths,
            packed.intermediate,
            norm_kind,
            eps,
            activation_index(op, activation),
            packed.gated,
            residual_scale,
            residual and not mixed,
            branch.adds_x and residual and not mixed,
            *branch.options,
            return_cosine and not mixed,
            packed.isa,
        )
        parts = 2 if packed.gated else 1
        record_widths(op, row_offsets, rows.shape, widths, parts, packed.gate_up.element_size(), branch)
        if mixed:
            y, cosine = add_to_stream(rows, y, choices, widths, branch, residual, return_cosine)
        y = y.view(x.shape)
        return (y, cosine.view(x.shape[:-1])) if return_cosine else y


def pack_ffn(
    gate_up_proj: Matrices,
    down_proj: Tensor,
    *,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    gated: bool = True,
    weight_dtype: torch.dtype | None = None,
) -> PackedFfn:
    """Rearranges the weights of one feed-forward block for inference on this CPU.

    Args:
        gate_up_proj, down_proj, gate_up_bias, down_bias, gated: as `gated_ffn`.
        weight_dtype: as `pack_experts`: None keeps the weights' dtype, `torch.int8` rounds them.

    Returns:
        The packed weights, on the CPU.

    Raises:
        ValueError: weights that are not floating, not on the CPU or do not fit each other; what `pack_experts` raises.

    Cost:
        One read and write of the weights, and as much memory again.
    """
    op = "pack_ffn"
    gate_up = one_matrix(op, gate_up_proj, down_proj).detach()
    for name, weight in (("gate_up_proj", gate_up), ("down_proj", down_proj)):
        if weight.dim() != 2:
            raise ValueError(
                f"{op}: {name} has shape {tuple(weight.shape)}, must have 2 dimensions; pack_experts takes stacks"
            )
    if down_proj.shape[0] != gate_up.shape[1]:
        raise ValueError(
            f"{op}: down_proj has shape {tuple(down_proj.shape)}, must give the {gate_up.shape[1]} features that "
            "gate_up_proj reads, since they are added to them; pack_experts takes other shapes"
        )
    packed = call_as(
        op,
        pack_experts,
        gate_up[None],
        down_proj.detach()[None],
        gate_up_bias=None if gate_up_bias is None else gate_up_bias.detach()[None],
        down_bias=None if down_bias is None else down_bias.detach()[None],
        gated=gated,
        weight_dtype=weight_dtype,
    )
    return PackedFfn(packed)


@torch.library.register_fake("anabranch::gated_ffn_packed")
def _(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    widths, cosine = arguments[13], arguments[26]
    groups = len(widths) - (widths[0] == 0)
    cosines = x.new_empty(x.shape[0] if cosine else 0, dtype=accumulate_dtype(x.dtype))
    return x.new_empty(x.shape), cosines, x.new_empty(groups + 2, dtype=torch.int32)
