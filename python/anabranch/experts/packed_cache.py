"""`PackedCache`: a module's packed weights, kept in step with the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from anabranch.core.library import ops
from anabranch.experts.packed import PackedExperts, pack_experts


class PackedCache:
    """A module's packed weights, made when they are wanted and made again when the weights have changed.

    A pickle or a copy of it is empty: the packed order is this machine's, and the copy's weights are others.
    """

    def __init__(self, weight_dtype: torch.dtype | None) -> None:
        self.weight_dtype = weight_dtype
        self.packed: PackedExperts | None = None
        self._made_from: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedCache, (self.weight_dtype,)

    def applies(self, gate_up_proj: Tensor) -> bool:
        """Whether a call now may use packed weights: no gradient, no autocast, on the CPU, not being compiled."""
        return (
            gate_up_proj.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )

    def get(
        self,
        gate_up_proj: Tensor,
        down_proj: Tensor,
        gate_up_bias: Tensor | None,
        down_bias: Tensor | None,
        *,
        gated: bool = True,
        transposed: bool = False,
    ) -> PackedExperts:
        """`pack_experts` of these, from the last call where nothing has changed since."""
        tensors = (gate_up_proj, down_proj, gate_up_bias, down_bias)
        state = (*(None if tensor is None else _identity(tensor) for tensor in tensors), ops.cpu_isa())
        if self.packed is None or state != self._made_from:
            self.packed = None  # frees the old copy before the new one is made
            self.packed = pack_experts(
                gate_up_proj,
                down_proj,
                gate_up_bias=gate_up_bias,
                down_bias=down_bias,
                gated=gated,
                transposed=transposed,
                weight_dtype=self.weight_dtype,
            )
            self._made_from = state
        return self.packed


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal to an earlier one only where the tensor's elements have not been written in between."""
    # Not the address alone: after new weights have taken the place of old ones, later ones may lie where the old lay.
    # While the weak reference is kept, no other storage compares equal to it.
    storage = StorageWeakRef(tensor.untyped_storage())
    version = None if tensor.is_inference() else tensor._version
    return storage, tensor.data_ptr(), version, tensor.dtype, tensor.shape, tensor.stride()
