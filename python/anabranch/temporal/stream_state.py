"""Checks of a batch of events, shared by the modules that keep a state of nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.core.arguments import check_same_device, dtype_name


def host_may_look(values: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device or breaking a graph: eager, on the CPU."""
    return values.numel() > 0 and values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_nodes(op: str, num_nodes: int, anchor: Tensor, *, negative: bool = False, **nodes: Tensor) -> None:
    """int64 `[n]` each, on the anchor's device and, where the host may look, in range, or negative if that may be."""
    check_same_device(op, "the state", anchor, **nodes)
    for name, ids in nodes.items():
        if ids.dtype != torch.int64 or ids.dim() != 1:
            raise ValueError(
                f"{op}: {name} is {dtype_name(ids.dtype)} of shape {tuple(ids.shape)}, must be int64 of one dimension; "
                "convert it with .long().flatten()"
            )
        if not host_may_look(ids):
            continue
        low, high = (int(end) for end in ids.aminmax())
        if (low < 0 and not negative) or high >= num_nodes:
            raise ValueError(
                f"{op}: {name} has {high if high >= num_nodes else low}, must be in [0, {num_nodes})"
                f"{' or negative for none' if negative else ''}; make the state for more nodes or check the ids"
            )


def check_like_nodes(op: str, anchor: Tensor, size: int, **vectors: Tensor | None) -> None:
    """int64 `[size]` each; None is passed over."""
    check_same_device(op, "the state", anchor, **vectors)
    for name, values in vectors.items():
        if values is not None and (values.dtype != torch.int64 or values.shape != (size,)):
            raise ValueError(
                f"{op}: {name} is {dtype_name(values.dtype)} of shape {tuple(values.shape)}, must be int64 of shape "
                f"({size},); give each event one"
            )


def check_rows(op: str, anchor: Tensor, rows: int, width: int, **tables: Tensor) -> None:
    """`[rows, width]` each, in the anchor's dtype and on its device."""
    check_same_device(op, "the state", anchor, **tables)
    for name, table in tables.items():
        if table.shape != (rows, width) or table.dtype != anchor.dtype:
            raise ValueError(
                f"{op}: {name} is {dtype_name(table.dtype)} of shape {tuple(table.shape)}, must be "
                f"{dtype_name(anchor.dtype)} of shape ({rows}, {width}); give each entry a row of the state's dtype"
            )


def check_no_nan(op: str, **tables: Tensor | None) -> None:
    """Floating `[rows, width]` each; where the host may look, none has a NaN. None is passed over."""
    for name, table in tables.items():
        # A sum is NaN if a number is: one pass, and no mask as large as the table.
        if table is None or not host_may_look(table) or not table.detach().sum().isnan():
            continue
        rows = table.detach().isnan().any(1).nonzero()
        if len(rows) > 0:  # infinities of both signs also sum to NaN
            raise ValueError(f"{op}: {name} has a NaN in row {int(rows[0])}, must have none; clean the features")
