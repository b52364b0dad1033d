"""float64 as keys of an index: int64 in the same order."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.core.arguments import dtype_name

_ALL_BUT_SIGN = 2**63 - 1


def float_keys(x: Tensor) -> Tensor:
    """int64 keys in the order of the float64 numbers x, from -infinity to infinity; -0.0 is 0.0.

    Args:
        x: float64, any shape.

    Returns:
        int64, the shape of x.

    Raises:
        ValueError: another dtype; NaN, which has no place in the order. In a compiled graph nobody looks: NaN becomes a
            key beyond the infinity of its sign.

    Cost:
        Elementwise; looking for NaN waits for a GPU.
    """
    op = "float_keys"
    if x.dtype != torch.float64:
        raise ValueError(f"{op}: x is {dtype_name(x.dtype)}, must be float64; convert it with .to(torch.float64)")
    if not torch.compiler.is_compiling() and x.device.type != "meta" and bool(x.isnan().any()):
        raise ValueError(f"{op}: x holds NaN, must hold numbers; drop it or give it a number of its own")
    return _flipped((x + 0.0).view(torch.int64))


def float_keys_inverse(keys: Tensor) -> Tensor:
    """The float64 numbers that `float_keys` made these int64 keys of.

    Args:
        keys: int64, any shape.

    Returns:
        float64, the shape of keys.

    Raises:
        ValueError: another dtype.

    Cost:
        One read, one write.
    """
    if keys.dtype != torch.int64:
        raise ValueError(
            f"float_keys_inverse: keys is {dtype_name(keys.dtype)}, must be int64; convert it with .to(torch.int64)"
        )
    return _flipped(keys).view(torch.float64)


def _flipped(bits: Tensor) -> Tensor:
    """Negative numbers ascend as their bits descend. Its own inverse."""
    return bits ^ ((bits >> 63) & _ALL_BUT_SIGN)
