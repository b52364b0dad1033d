"""The arguments of the gated FFN in the form that its kernels take, and what its calls cost."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anabranch.core.arguments import autocast_dtype, check_floating, check_same_device, check_same_dtype, dtype_name
from anabranch.core.cost import CostMeter, record
from anabranch.experts.expert_ffn import ACTIVATIONS, Activation, accumulate_dtype
from anabranch.skip.otherwise import Anchor, CachedDelta, LowRank, Otherwise, SmallFfn

Matrices = Tensor | tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Branch:
    """The else-branch: its rows in the dtype of x, its two matrices, whether x is added, and the kernels' options."""

    base: Tensor | None = None
    matrices: tuple[Tensor | None, Tensor | None] = (None, None)
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

    The op would find out too, but its arguments alone take longer to pass than that. A subclass of Tensor may have no
    values to look at (fake tensors), so it goes the long way.
    """
    if (
        otherwise is not None
        or torch.is_grad_enabled()
        or type(keep) is not Tensor
        or not x.is_floating_point()
        or features == 0
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


def untouched(op: str, x: Tensor, keep: Tensor, residual: bool, with_cosine: bool) -> Any:
    """What a call returns of which `nothing_runs` is true."""
    check_cosine(op, residual, with_cosine)
    y = x.clone(memory_format=torch.contiguous_format) if residual else x.new_zeros(x.shape)
    return (y, y.new_ones(keep.shape, dtype=accumulate_dtype(x.dtype))) if with_cosine else y


def check_cosine(op: str, residual: bool, with_cosine: bool) -> None:
    """Raises ValueError where a cosine with the residual stream is asked of a call that leaves that out."""
    if with_cosine and not residual:
        raise ValueError(f"{op}: return_cosine is True, must be False without residual; add x yourself and compare")


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
    if x.dim() < 1 or x.shape[-1] == 0:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, must be (..., H) with H > 0; give it features")
    if not all(isinstance(width, int) and width < 2**31 for width in widths):
        raise ValueError(f"{op}: widths are {widths}, must be whole numbers below 2^31; widths count features")
    if choice.shape == x.shape[:-1]:
        return choice.reshape(-1)
    if op == "prefix_ffn" and choice.dim() == 1 and x.dim() >= 2 and choice.shape[0] == x.shape[0]:
        return choice.view(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1]).reshape(-1)
    raise ValueError(
        f"{op}: {name} has shape {tuple(choice.shape)}, must be {tuple(x.shape[:-1])} like the rows of x; "
        "decide for every row (prefix_ffn: or for every sample)"
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


def one_matrix(op: str, gate_up_proj: Matrices, down_proj: Tensor) -> Tensor:
    """gate_up_proj, of a pair the concatenation; it and down_proj are floating."""
    if isinstance(gate_up_proj, Tensor):
        check_floating(op, gate_up_proj=gate_up_proj, down_proj=down_proj)
        return gate_up_proj
    shapes = [tuple(one.shape) for one in gate_up_proj]
    if len(shapes) != 2 or shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise ValueError(
            f"{op}: gate_up_proj has shapes {shapes}, must be two matrices of one shape, (I, H); pass gate, then up"
        )
    gate_proj, up_proj = gate_up_proj
    check_floating(op, gate_proj=gate_proj, up_proj=up_proj, down_proj=down_proj)
    check_same_device(op, "gate_proj", gate_proj, up_proj=up_proj)
    check_same_dtype(op, "gate_proj", gate_proj, up_proj=up_proj)
    return torch.cat(gate_up_proj)


def check_weights(op: str, x: Tensor, gate_up_proj: Tensor, **others: Tensor | None) -> None:
    """Raises ValueError unless the FFN's weights lie beside x, floating and, but under autocast, of one dtype."""
    check_floating(op, **others)
    check_same_device(op, "x", x, gate_up_proj=gate_up_proj, **others)
    if autocast_dtype(x.device) is None:
        check_same_dtype(op, "gate_up_proj", gate_up_proj, **others)


def check_beside(op: str, x: Tensor, prefix: str, **tensors: Tensor | None) -> None:
    """Raises ValueError unless these, named prefix.name, are floating and lie beside x. They are cast to what is
    computed in, whatever their dtype."""
    named = {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
    check_floating(op, **named)
    check_same_device(op, "x", x, **named)


def otherwise_arguments(op: str, x: Tensor, otherwise: Otherwise | None, *, has_norm: bool) -> Branch:
    """The else-branch."""
    if otherwise is None:
        return Branch()
    if isinstance(otherwise, LowRank):
        first, second = otherwise.down_proj, otherwise.up_proj
        check_beside(op, x, "otherwise", down_proj=first, up_proj=second)
        index = activation_index(op, otherwise.activation)
        return Branch(None, (first, second), True, (index, False, otherwise.normed and has_norm, otherwise.scale))
    if isinstance(otherwise, SmallFfn):
        first, second = otherwise.gate_up_proj, otherwise.down_proj
        check_beside(op, x, "otherwise", gate_up_proj=first, down_proj=second)
        index = activation_index(op, otherwise.activation)
        return Branch(None, (first, second), True, (index, otherwise.gated, has_norm, otherwise.scale))
    if isinstance(otherwise, CachedDelta):
        return Branch(_rows(op, "delta", x, otherwise.delta))
    if isinstance(otherwise, Anchor):
        lora_a, lora_b = otherwise.lora_a, otherwise.lora_b
        check_beside(op, x, "otherwise", lora_a=lora_a, lora_b=lora_b)
        return Branch(
            _rows(op, "anchor", x, otherwise.anchor), (lora_a, lora_b), False, (0, False, False, otherwise.scale)
        )
    raise ValueError(
        f"{op}: otherwise is {type(otherwise).__name__}, must be LowRank, SmallFfn, CachedDelta, Anchor or None; "
        "compute another branch yourself and add it where rows skip"
    )


def _rows(op: str, name: str, x: Tensor, rows: Tensor) -> Tensor:
    check_beside(op, x, "otherwise", **{name: rows})
    if rows.shape != x.shape:
        raise ValueError(
            f"{op}: otherwise.{name} has shape {tuple(rows.shape)}, must be {tuple(x.shape)} like x; "
            "keep one row for every row of x"
        )
    return rows.reshape(-1, x.shape[-1]).to(x.dtype)


def add_to_stream(
    rows: Tensor,
    block: Tensor,
    choices: Tensor,
    widths: tuple[int, ...],
    branch: Branch,
    residual: bool,
    with_cosine: bool,
) -> tuple[Tensor, Tensor]:
    """(y, cosine) of a block that was computed by itself in another dtype than that of x, `rows`: added in the latter,
    and so are the else-branch's rows. Without `residual`, added to 0."""
    runs = choices
    if choices.dtype != torch.bool:  # an index outside of widths skips
        runs = (choices >= (1 if widths[0] == 0 else 0)) & (choices < len(widths))
    stream = rows if residual else None
    if branch.base is not None:
        skipped = branch.base if stream is None or not branch.adds_x else stream + branch.base
        stream = torch.where(runs[:, None], torch.zeros_like(rows) if stream is None else stream, skipped)
    y = block.to(rows.dtype) if stream is None else stream + block.to(rows.dtype)
    if not with_cosine:
        return y, y.new_empty(0)
    x_sum, y_sum = (one.detach().to(accumulate_dtype(rows.dtype)) for one in (rows, y))
    return y, torch.where(runs, F.cosine_similarity(x_sum, y_sum, dim=-1), 1.0)


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
    if not CostMeter._active or torch.compiler.is_compiling():  # sizes may be symbols, of which bytes cannot be told
        return
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
    first, second = branch.matrices
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
