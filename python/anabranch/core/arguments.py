"""What every op does with its arguments before a kernel sees them: checks, autocast, and the name that errors carry."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_FLOATING = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def dtype_name(dtype: torch.dtype) -> str:
    """As the kernels' messages name it: "float32"."""
    return str(dtype).removeprefix("torch.")


def check_floating(op: str, **tensors: Tensor | None) -> None:
    """Raises ValueError for a tensor of another dtype than the four that kernels have; None is passed over."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in _FLOATING:
            raise ValueError(
                f"{op}: {name} is {dtype_name(tensor.dtype)}, must be float32, float64, bfloat16 or float16; "
                "convert it with .to(torch.float32)"
            )


def check_same_dtype(op: str, anchor_name: str, anchor: Tensor, **tensors: Tensor | None) -> None:
    """Raises ValueError for a tensor of another dtype than the anchor's; None is passed over."""
    dtype = anchor.dtype
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != dtype:
            wanted = dtype_name(dtype)
            raise ValueError(
                f"{op}: {name} is {dtype_name(tensor.dtype)}, must be {wanted} like {anchor_name}; "
                f"convert it with .to(torch.{wanted})"
            )


def check_same_device(op: str, anchor_name: str, anchor: Tensor, **tensors: Tensor | None) -> None:
    """Raises ValueError for a tensor on another device than the anchor; None is passed over.

    Not left to the kernels: torch takes a call with one meta tensor for a question about shapes, and its answer is
    memory that nobody has written.
    """
    device = anchor.device
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device}, must be on {device} like {anchor_name}; "
                f"move it with .to({anchor_name}.device)"
            )


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast asks for on this device; None where it is off."""
    # Meta tensors compute nothing, and torch knows no autocast for them.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which torch's ops compute in the dtypes they are given."""
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device.type, enabled=False)


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor in that dtype; None stays None."""
    return None if tensor is None else tensor.to(dtype)


def call_as(op: str, kernel: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """`kernel(*arguments, **keywords)`; a ValueError begins with `op`, the function called, not with a part of it."""
    try:
        return kernel(*arguments, **keywords)
    except ValueError as error:
        raise ValueError(re.sub(r"^[a-z_]+(?=: )", op, str(error))) from None
