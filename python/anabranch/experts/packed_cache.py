"""`WeightCache`, `PackedCache`: what was made of a module's weights, kept in step with the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from anabranch.core.library import ops
from anabranch.experts.packed import PackedExperts, pack_experts

_SAMPLES = 16  # elements of each tensor that are looked at in each call
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_steps: list[int] = []  # how many steps all optimizers have made since the first copy; empty before there is one


class WeightCache:
    """What weights were made into, in the first call that wants it and again when they have changed.

    A change is seen by
    - the tensors themselves: another storage, dtype, shape or version (assigned, moved, written in place);
    - a step of any `torch.optim.Optimizer` anywhere: fused ones do not count versions;
    - `drop`, which modules call whenever they run with gradients on: whatever trains them then, the copy is gone;
    - on the CPU, 16 elements of each tensor, spread from the first to the last and compared in every call: a write
      through `.data` or numpy that changes a whole tensor (`weight.data.mul_(2)`, `init.normal_(weight.data)`).

    **Not seen**: a write through `.data`, numpy or a custom kernel to a part of a tensor that misses these elements, on
    a GPU any such write, if no call with gradients lies between; nor steps that a CUDA graph replays. `drop` then.

    A pickle or a copy of it is empty: a packed order is this machine's, and the copy's weights are others.
    """

    def __init__(self) -> None:
        self.made: Any = None
        self._made_from: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def drop(self) -> None:
        """Frees the copy; the next `get` makes it again."""
        self.made, self._made_from = None, ()

    def get(self, tensors: tuple[Tensor | None, ...], make: Callable[[], Any]) -> Any:
        """`make()`, from the last call where none of the tensors has changed since."""
        if not _steps:
            _steps.append(0)
            register_optimizer_step_post_hook(_stepped)
        state = (*(None if tensor is None else _identity(tensor) for tensor in tensors), _steps[0], ops.cpu_isa())
        if self.made is None or state != self._made_from:
            self.drop()  # frees the old copy before the new one is made
            self.made = make()
            self._made_from = state
        return self.made


class PackedCache(WeightCache):
    """A module's packed experts, made when they are wanted and made again when the weights have changed."""

    def __init__(self, weight_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.weight_dtype = weight_dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedCache, (self.weight_dtype,)

    @property
    def packed(self) -> PackedExperts | None:
        """The copy, where there is one."""
        made: PackedExperts | None = self.made
        return made

    def applies(self, gate_up_proj: Tensor) -> bool:
        """Whether a call now may use packed weights: no gradient, no autocast, on the CPU, not being compiled.

        A call with gradients frees them: what trains the weights may do so in ways that cannot be seen.
        """
        if torch.compiler.is_compiling():
            return False
        if torch.is_grad_enabled():
            self.drop()
            return False
        return gate_up_proj.device.type == "cpu" and not torch.is_autocast_enabled("cpu")

    def get_experts(
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

        def make() -> PackedExperts:
            return pack_experts(
                gate_up_proj,
                down_proj,
                gate_up_bias=gate_up_bias,
                down_bias=down_bias,
                gated=gated,
                transposed=transposed,
                weight_dtype=self.weight_dtype,
            )

        packed: PackedExperts = self.get((gate_up_proj, down_proj, gate_up_bias, down_bias), make)
        return packed


def _stepped(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[Any, Any]) -> None:
    if not torch.compiler.is_compiling():  # a compiled step counts versions
        _steps[0] += 1


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal to an earlier one only where the tensor's elements have not been written in between, as far as is seen."""
    # Not the address alone: after new weights have taken the place of old ones, later ones may lie where the old lay.
    # While the weak reference is kept, no other storage compares equal to it.
    storage = StorageWeakRef(tensor.untyped_storage())
    version = None if tensor.is_inference() else tensor._version
    return storage, tensor.data_ptr(), version, tensor.dtype, tensor.shape, tensor.stride(), _sample(tensor)


def _sample(tensor: Tensor) -> list[int] | None:
    """Some elements of a tensor on the CPU, as bits: a NaN equals itself."""
    if tensor.device.type != "cpu" or not tensor.numel():
        return None
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    count = min(_SAMPLES, last + 1)
    spread = tensor.detach().as_strided((count,), (max(1, last // max(1, count - 1)),), tensor.storage_offset())
    values: list[int] = spread.view(_BITS[tensor.element_size()]).tolist()
    return values
