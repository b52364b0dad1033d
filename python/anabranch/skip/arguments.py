"""The arguments of the gated FFN in the form that its kernels take, and what its calls cost."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from anabranch.core.arguments import check_same_device, dtype_name
from anabranch.core.cost import CostMeter, record
from anabranch.experts.expert_ffn import ACTIVATIONS, Activation, accumulate_dtype
from anabranch.skip.otherwise import Anchor, CachedDelta, LowRank, Otherwise, SmallFfn


@dataclasses.dataclass(frozen=True, eq=False)
class Branch:
    """The else-branch: (rows, first matrix, second matrix), whether x is added, and the kernels' options."""

    tensors: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    adds_x: bool = True
    options: tuple[int, bool, bool, float] = (0, False, False, 1.0)  # activation, gated, normed, scale


def activation_index(op: str, activation: Activation) -> int:
    """The kernels' number of an activation."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{op}: activation is {activation!r}, must be one of {ACTIVATIONS}; for another, compose torch's ops"
        )
    return ACTIVATIONS.index(activation)


def nothing_runs(x: Tensor, keep: Tensor, features: int, otherwise: Otherwise | None) -> bool:
    """Whether an inference call on the CPU that is right so far keeps no row: then a copy of x is all there is to do.

    The op would find out too, but its arguments alone take longer to pass than that.
    """
    if (
        otherwise is not None
        or torch.is_grad_enabled()
        or keep.dtype != torch.bool
        or keep.device.type != "cpu"
        or x.device.type != "cpu"
        or keep.shape != x.shape[:-1]
        or features != x.shape[-1]
        or CostMeter._active
        or torch.compiler.is_compiling()
    ):
        return False
    return not keep.any()


def decisions_of(op: str, x: Tensor, choice: Tensor, widths: tuple[int, ...]) -> Tensor:
    """One choice per row of x: bool, or int64 into widths."""
    check_same_device(op, "x", x, **{"keep" if op == "gated_ffn" else "width_index": choice})
    wanted = torch.bool if op == "gated_ffn" else torch.int64
    name = "keep" if op == "gated_ffn" else "width_index"
    if choice.dtype != wanted:
        raise ValueError(
            f"{op}: {name} is {dtype_name(choice.dtype)}, must be {dtype_name(wanted)}; "
            f"convert it with .to(torch.{dtype_name(wanted)})"
        )
    if x.dim() < 1:
        raise ValueError(f"{op}: x has shape (), must be (..., H); give it a dimension of features")
    if choice.shape == x.shape[:-1]:
        return choice.reshape(-1)
    if op == "prefix_ffn" and choice.dim() == 1 and x.dim() >= 2 and choice.shape[0] == x.shape[0]:
        return choice.view(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1]).reshape(-1)
    raise ValueError(
        f"{op}: {name} has shape {tuple(choice.shape)}, must be {tuple(x.shape[:-1])} like the rows of x; "
        "decide for every row" + (", or for every sample" if op == "prefix_ffn" else "")
    )


def row_gate(op: str, x: Tensor, gate: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The gate of every row, in the dtype that sums are kept in."""
    if gate is None:
        return None
    check_same_device(op, "x", x, gate=gate)
    if gate.shape != x.shape[:-1]:
        raise ValueError(
            f"{op}: gate has shape {tuple(gate.shape)}, must be {tuple(x.shape[:-1])} like the rows of x; "
            "expand it to one number for each row"
        )
    return gate.to(accumulate_dtype(dtype)).reshape(-1)


def otherwise_arguments(op: str, x: Tensor, otherwise: Otherwise | None, *, has_norm: bool, mixed: bool) -> Branch:
    """The else-branch. mixed: x is added outside of the op, so rows that shall not have it get its negative."""
    if otherwise is None:
        return Branch()
    if isinstance(otherwise, LowRank):
        first, second = otherwise.down_proj, otherwise.up_proj
        check_same_device(op, "x", x, **{"otherwise.down_proj": first, "otherwise.up_proj": second})
        index = activation_index(op, otherwise.activation)
        return Branch((None, first, second), True, (index, False, otherwise.normed and has_norm, otherwise.scale))
    if isinstance(otherwise, SmallFfn):
        first, second = otherwise.gate_up_proj, otherwise.down_proj
        check_same_device(op, "x", x, **{"otherwise.gate_up_proj": first, "otherwise.down_proj": second})
        index = activation_index(op, otherwise.activation)
        return Branch((None, first, second), True, (index, otherwise.gated, has_norm, otherwise.scale))
    if isinstance(otherwise, CachedDelta):
        return Branch((_rows(op, "delta", x, otherwise.delta), None, None))
    if isinstance(otherwise, Anchor):
        lora_a, lora_b = otherwise.lora_a, otherwise.lora_b
        check_same_device(op, "x", x, **{"otherwise.lora_a": lora_a, "otherwise.lora_b": lora_b})
        rows = _rows(op, "anchor", x, otherwise.anchor)
        if mixed:
            rows = rows - x.reshape(-1, x.shape[-1])
        return Branch((rows, lora_a, lora_b), False, (0, False, False, otherwise.scale))
    raise ValueError(
        f"{op}: otherwise is {type(otherwise).__name__}, must be LowRank, SmallFfn, CachedDelta, Anchor or None; "
        "compute another branch yourself and add it where rows skip"
    )


def _rows(op: str, name: str, x: Tensor, rows: Tensor) -> Tensor:
    check_same_device(op, "x", x, **{f"otherwise.{name}": rows})
    if rows.shape != x.shape:
        raise ValueError(
            f"{op}: otherwise.{name} has shape {tuple(rows.shape)}, must be {tuple(x.shape)} like x; "
            "keep one row for every row of x"
        )
    return rows.reshape(-1, x.shape[-1])


def record_gated_ffn(
    op: str,
    row_offsets: Tensor,
    shape: torch.Size,
    widths: tuple[int, ...],
    gate_up_proj: Tensor,
    down_proj: Tensor,
    branch: Branch,
) -> None:
    """Tells the meters of the rows that ran, and of those that went through the else-branch's matrices."""
    parts = gate_up_proj.shape[0] // down_proj.shape[1]
    record_widths(op, row_offsets, shape, widths, parts, gate_up_proj.element_size(), branch)


def record_widths(
    op: str,
    row_offsets: Tensor,
    shape: torch.Size,
    widths: tuple[int, ...],
    parts: int,
    element_size: int,
    branch: Branch,
) -> None:
    """`record_gated_ffn` of weights with `parts` first products whose elements take `element_size` bytes."""
    rows, features = shape
    numbers = tuple((parts + 1) * features * width for width in reversed(widths) if width > 0)
    record(
        op,
        group_offsets=row_offsets,
        groups=range(len(numbers)),
        dense_rows=rows,
        flops_per_row=tuple(2 * number for number in numbers),
        bytes_per_group=tuple(number * element_size for number in numbers),
        shared=True,
    )
    first, second = branch.tensors[1:]
    if first is None or second is None:
        return
    record(
        f"{op}.otherwise",
        group_offsets=row_offsets,
        groups=range(len(numbers), len(numbers) + 1),
        dense_rows=rows,
        flops_per_row=2 * (first.numel() + second.numel()),
        bytes_per_group=first.nbytes + second.nbytes,
    )
