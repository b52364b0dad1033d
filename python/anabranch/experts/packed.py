"""`pack_experts`: expert weights rearranged once for CPU inference, as they are or as int8."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from anabranch.core.arguments import call_as, check_floating, check_same_device, check_same_dtype
from anabranch.core.library import cpu_only, ops
from anabranch.experts.expert_ffn import ACTIVATIONS, Activation, accumulate_dtype, check_items, record_cost
from anabranch.plan import Plan
from anabranch.plan.plan import by_item

# Features of one packed block, as include/anabranch/experts/packed_experts.hpp names them.
_GATE_UP_BLOCK, _DOWN_BLOCK = 96, 192
_INT8_LIMIT = 127

cpu_only(
    "a GPU needs no packing, use expert_ffn with the weights themselves",
    "expert_pack",
    "expert_ffn_packed",
)


@dataclasses.dataclass(frozen=True, eq=False)
class PackedExperts:
    """Expert weights in the order in which this CPU's kernels read them; made by `pack_experts`, used by calling it.

    It is a copy: later changes of the weights do not reach it. The order depends on the processor, so it is not meant
    to be saved.

    Attributes:
        gate_up, down: `[E, elements]`, the dtype of the weights or int8.
        gate_up_scales, down_scales: float32 `[E, features out]`, only with int8: weight = scale * integer.
        gate_up_bias, down_bias: as `expert_ffn`, gate half first; None without.
        dtype: in which it computes: that of the weights.
        in_features, intermediate, out_features: H, I, O.
        gated: whether there is an up half.
        isa: the instruction set whose order this is.
    """

    gate_up: Tensor
    down: Tensor
    gate_up_scales: Tensor | None
    down_scales: Tensor | None
    gate_up_bias: Tensor | None
    down_bias: Tensor | None
    dtype: torch.dtype
    in_features: int
    intermediate: int
    out_features: int
    gated: bool
    isa: int

    @property
    def num_experts(self) -> int:
        """E, null experts not included."""
        return self.gate_up.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights and their scales."""
        tensors = (self.gate_up, self.down, self.gate_up_scales, self.down_scales)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def __call__(
        self,
        x: Tensor,
        plan: Plan,
        *,
        activation: Activation = "silu",
        zero_experts: int = 0,
        identity_experts: int = 0,
        expert_widths: Tensor | None = None,
    ) -> Tensor:
        """`expert_ffn(x, gate_up_proj, down_proj, plan, ...)` with these weights, for inference: no gradient.

        Args:
            x: `[T, H]` on the CPU, float32, float64, bfloat16 or float16.
            plan, activation, zero_experts, identity_experts, expert_widths: as `expert_ffn`.

        Returns:
            `[T, O]` in the dtype of `x`. A row's result does not depend on the other rows. Equal to `expert_ffn` up to
            rounding; with int8 weights up to their quantisation as well.

        Raises:
            ValueError: a gradient would be needed, or arguments that do not fit.

        Cost:
            As `expert_ffn`; few rows per expert cost one pass over the touched experts' packed bytes.
        """
        op = "expert_ffn"
        if torch.is_grad_enabled() and (x.requires_grad or (plan.weights is not None and plan.weights.requires_grad)):
            raise ValueError(
                f"{op}: the weights are packed and a gradient is wanted, must be called under torch.no_grad(); "
                "use expert_ffn with the weights themselves to train"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"{op}: activation is {activation!r}, must be one of {ACTIVATIONS}; "
                "for another, compose gather, grouped_mm and scatter_add"
            )
        check_items(op, x, plan)
        if x.shape[1] != self.in_features:
            raise ValueError(
                f"{op}: x has shape {tuple(x.shape)}, must be (num_items={plan.num_items}, {self.in_features}); "
                "pack the weights of this width"
            )
        if x.device != self.gate_up.device:
            raise ValueError(
                f"{op}: x is on {x.device}, must be on {self.gate_up.device} like the packed weights; "
                "a GPU needs no packing, use expert_ffn with the weights themselves"
            )
        check_same_device(op, "x", x, expert_widths=expert_widths)
        transposed_plan = by_item(op, plan)
        y = call_as(
            op,
            ops.expert_ffn_packed,
            x.to(self.dtype),
            self.gate_up,
            self.gate_up_scales,
            self.gate_up_bias,
            self.down,
            self.down_scales,
            self.down_bias,
            plan.group_offsets,
            plan.item_ids,
            None if plan.weights is None else plan.weights.to(accumulate_dtype(self.dtype)),
            transposed_plan.item_offsets,
            transposed_plan.entry_ids,
            expert_widths,
            self.intermediate,
            self.out_features,
            ACTIVATIONS.index(activation),
            self.gated,
            zero_experts,
            identity_experts,
            self.isa,
        )
        per_expert = (2 if self.gated else 1) * self.intermediate * self.in_features
        per_expert += self.out_features * self.intermediate
        record_cost(op, plan, self.num_experts, per_expert, self.gate_up.element_size())
        return y.to(x.dtype)


@torch.no_grad()
def pack_experts(
    gate_up_proj: Tensor,
    down_proj: Tensor,
    *,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    gated: bool = True,
    interleaved: bool = False,
    transposed: bool = False,
    weight_dtype: torch.dtype | None = None,
) -> PackedExperts:
    """Rearranges expert weights for inference on this CPU.

    Unpacked weights are fine for training and for many rows per expert. Packed ones are read front to back without any
    rearranging per call, which is what decoding is bound by.

    Args:
        gate_up_proj, down_proj, gate_up_bias, down_bias, gated, interleaved, transposed: as `expert_ffn`.
        weight_dtype: None keeps the weights' dtype. `torch.int8` rounds each output feature's weights to 255 levels
            between plus and minus its largest (symmetric, one float32 scale per expert and feature), which halves the
            bytes of bfloat16; products then run in float32. Not for float64.

    Returns:
        A `PackedExperts`, to be called like `expert_ffn` without its weights.

    Raises:
        ValueError: tensors that are not on the CPU or do not fit, weights of different dtypes, another `weight_dtype`,
            non-finite weights for int8.

    Cost:
        Reads the weights once and writes as many bytes (half for int8 of bfloat16); memory beside the weights' own.
    """
    op = "pack_experts"
    if gate_up_proj.device.type != "cpu":
        raise ValueError(f"{op}: gate_up_proj is on {gate_up_proj.device}, must be on the CPU; a GPU needs no packing")
    if weight_dtype not in (None, torch.int8, gate_up_proj.dtype):
        raise ValueError(
            f"{op}: weight_dtype is {weight_dtype}, must be None, torch.int8 or {gate_up_proj.dtype}; "
            "convert the weights first for another"
        )
    others = {"down_proj": down_proj, "gate_up_bias": gate_up_bias, "down_bias": down_bias}
    check_floating(op, gate_up_proj=gate_up_proj)
    check_same_device(op, "gate_up_proj", gate_up_proj, **others)
    check_same_dtype(op, "gate_up_proj", gate_up_proj, **others)
    in_features, intermediate, out_features = _check_shapes(op, gate_up_proj, down_proj, gated, transposed)
    parts, isa = 2 if gated else 1, ops.cpu_isa()
    gate_up, gate_up_scales, down, down_scales = gate_up_proj, None, down_proj, None
    if weight_dtype == torch.int8:
        if gate_up_proj.dtype == torch.float64:
            raise ValueError(
                f"{op}: gate_up_proj is float64, must be float32, bfloat16 or float16 for int8; "
                "convert it, or pass weight_dtype=None"
            )
        gate_up, gate_up_scales = _quantize(op, "gate_up_proj", gate_up_proj, transposed)
        down, down_scales = _quantize(op, "down_proj", down_proj, transposed)
    if interleaved and gated:
        gate_up_scales, gate_up_bias = _gate_first(gate_up_scales), _gate_first(gate_up_bias)
    experts = gate_up_proj.shape[0]
    for name, bias, features in (
        ("gate_up_bias", gate_up_bias, parts * intermediate),
        ("down_bias", down_bias, out_features),
    ):
        if bias is not None and bias.shape != (experts, features):
            raise ValueError(
                f"{op}: {name} has shape {tuple(bias.shape)}, must be {(experts, features)}; "
                "give each feature out of each expert one"
            )
    return PackedExperts(
        ops.expert_pack(gate_up, parts, interleaved and gated, transposed, _GATE_UP_BLOCK, isa),
        ops.expert_pack(down, 1, False, transposed, _DOWN_BLOCK, isa),
        gate_up_scales,
        down_scales,
        _copy(gate_up_bias),
        _copy(down_bias),
        gate_up_proj.dtype,
        in_features,
        intermediate,
        out_features,
        gated,
        isa,
    )


def _check_shapes(op: str, gate_up: Tensor, down: Tensor, gated: bool, transposed: bool) -> tuple[int, int, int]:
    if gate_up.dim() != 3 or down.dim() != 3:
        raise ValueError(
            f"{op}: gate_up_proj and down_proj have shapes {tuple(gate_up.shape)} and {tuple(down.shape)}, "
            "must have 3 dimensions; stack the experts' matrices along the first"
        )
    out_dim, in_dim = (2, 1) if transposed else (1, 2)
    experts, rows, in_features = gate_up.shape[0], gate_up.shape[out_dim], gate_up.shape[in_dim]
    intermediate, out_features = down.shape[in_dim], down.shape[out_dim]
    if down.shape[0] != experts or rows != (2 if gated else 1) * intermediate:
        raise ValueError(
            f"{op}: down_proj has shape {tuple(down.shape)}, must fit gate_up_proj {tuple(gate_up.shape)}: "
            f"{experts} experts of {rows // (2 if gated else 1)} intermediate features; "
            "pass gated and transposed as the weights are"
        )
    return in_features, intermediate, out_features


def _quantize(op: str, name: str, weight: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    """Integers `[E, ...]` in the shape of `weight`, and scales `[E, features out]`."""
    in_dim = 0 if transposed else 1
    integers = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], weight.shape[2 if transposed else 1], dtype=torch.float32)
    for expert in range(weight.shape[0]):  # one at a time: no second copy of all weights in float32
        values = weight[expert].float()
        largest = values.abs().amax(in_dim, keepdim=True)
        if not bool(torch.isfinite(largest).all()):
            value = largest[~largest.isfinite()][0].item()
            raise ValueError(
                f"{op}: {name} of expert {expert} holds {value}, must be finite for int8; "
                "mend the weights or pass weight_dtype=None"
            )
        scale = (largest / _INT8_LIMIT).clamp(min=torch.finfo(torch.float32).tiny)
        integers[expert] = (values / scale).round().clamp(-_INT8_LIMIT, _INT8_LIMIT).to(torch.int8)
        scales[expert] = scale.flatten()
    return integers, scales


def _gate_first(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else rows.unflatten(1, (-1, 2)).mT.flatten(1).contiguous()


def _copy(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().clone(memory_format=torch.contiguous_format)


@torch.library.register_fake("anabranch::expert_ffn_packed")
def _(x: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty(x.shape[0], arguments[13])


@torch.library.register_fake("anabranch::expert_pack")
def _(weight: Tensor, parts: int, interleaved: bool, transposed: bool, block: int, isa: int) -> Tensor:
    def packed(rows: int) -> int:
        return (rows + 15) // 16 * 16 * ((features_in + 1) // 2 * 2)

    features_in, features = weight.shape[1 if transposed else 2], weight.shape[2 if transposed else 1] // parts
    blocks, rest = (features - 1) // block, (features - 1) % block + 1
    return weight.new_empty(weight.shape[0], blocks * packed(parts * block) + packed(parts * rest))
