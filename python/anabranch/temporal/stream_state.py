"""What the modules that keep a state of nodes share: checks of a batch of events, and a state loaded whole or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anabranch.core.arguments import check_same_device, dtype_name


def check_nodes(op: str, num_nodes: int, anchor: Tensor, **nodes: Tensor) -> None:
    """int64 `[n]` each, on the anchor's device and, where the host may look (eager, on the CPU), in range."""
    check_same_device(op, "the state", anchor, **nodes)
    for name, ids in nodes.items():
        if ids.dtype != torch.int64 or ids.dim() != 1:
            raise ValueError(
                f"{op}: {name} is {dtype_name(ids.dtype)} of shape {tuple(ids.shape)}, must be int64 of one dimension; "
                "convert it with .long().flatten()"
            )
        if ids.shape[0] == 0 or ids.device.type != "cpu" or torch.compiler.is_compiling():
            continue
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"{op}: {name} has {low if low < 0 else high}, must be in [0, {num_nodes}); "
                "make the state for more nodes or check the ids"
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


class WholeState(nn.Module):
    """A module whose buffers are loaded all or none: torch would load some beside others that it refuses."""

    def _problem_of(self, name: str, given: Tensor, own: Tensor) -> str:
        """Why a saved buffer cannot take this one's place; nothing where it can."""
        if given.shape == own.shape and given.dtype == own.dtype:
            return ""
        return (
            f"is {given.dtype} of shape {tuple(given.shape)}, must be {own.dtype} of shape {tuple(own.shape)}; "
            "make the module with the sizes of the saved one"
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, own in self._buffers.items():
            given = state_dict.get(prefix + name)
            if own is not None and given is not None and (problem := self._problem_of(name, given, own)):
                error_msgs.append(f"{prefix}{name} {problem}.")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
