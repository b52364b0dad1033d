"""`Norm`: the norm that an FFN block reads its input through."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor

from anabranch.core.arguments import check_floating, check_same_device

NormKind = Literal["rms", "layer"]
_KINDS = ("rms", "layer")


@dataclasses.dataclass(frozen=True, eq=False)
class Norm:
    """RMSNorm or LayerNorm over the last dimension, done by the op on the rows that run alone.

    Attributes:
        weight: `[H]` or None for ones; cast to the FFN's dtype.
        bias: `[H]` or None; as weight.
        eps: added to the mean square or variance.
        kind: "rms" or "layer".
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-6
    kind: NormKind = "rms"


def norm_arguments(op: str, x: Tensor, norm: Norm | None) -> tuple[Tensor | None, Tensor | None, int, float]:
    """(weight, bias, kind, eps) as the kernels take them; kind 0 is no norm."""
    if norm is None:
        return None, None, 0, 0.0
    if norm.kind not in _KINDS:
        raise ValueError(f"{op}: norm.kind is {norm.kind!r}, must be 'rms' or 'layer'; for another, normalise x first")
    tensors = {"norm.weight": norm.weight, "norm.bias": norm.bias}
    check_floating(op, **tensors)
    check_same_device(op, "x", x, **tensors)
    return norm.weight, norm.bias, 1 + _KINDS.index(norm.kind), norm.eps
