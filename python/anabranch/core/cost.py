"""`CostMeter`: what was really executed, counted from the plans themselves."""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Cost:
    """Executed against dense work of one op call, or a sum of calls.

    Attributes:
        calls: number of op calls.
        executed_rows: rows that ran; dense_rows: every row in every group, as without a plan.
        executed_flops, dense_flops: the products' FLOPs for those rows, forward only.
        executed_bytes, dense_bytes: bytes of weights that had to be read (touched groups only against all).
    """

    calls: int = 0
    executed_rows: int = 0
    dense_rows: int = 0
    executed_flops: int = 0
    dense_flops: int = 0
    executed_bytes: int = 0
    dense_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Cost(*(a + b for a, b in zip(ours, theirs, strict=True)))


@dataclasses.dataclass(frozen=True)
class Call:
    """One recorded op call. The counts stay tensors on the plan's device until someone asks for them.

    Attributes:
        group_offsets: int32; rows of group g are `group_offsets[g] .. group_offsets[g + 1]`.
        groups: the groups that multiply.
        dense_rows: rows without a plan.
        flops_per_row, bytes_per_group: of each of `groups`, or one number for all. Where groups share one matrix, the
            bytes of the first group that has rows are all that is read.
    """

    op: str
    module: str
    group_offsets: Tensor
    groups: range
    dense_rows: int
    flops_per_row: int | tuple[int, ...]
    bytes_per_group: int | tuple[int, ...]
    shared: bool

    def cost(self) -> Cost:
        """Reads the counts: on a GPU this waits for the stream."""
        sizes = self.group_offsets[self.groups.start : self.groups.stop + 1].diff().tolist()
        flops, nbytes = (
            [number] * len(self.groups) if isinstance(number, int) else list(number)
            for number in (self.flops_per_row, self.bytes_per_group)
        )
        touched = [number for number, size in zip(nbytes, sizes, strict=True) if size > 0]
        return Cost(
            calls=1,
            executed_rows=sum(sizes),
            dense_rows=self.dense_rows,
            executed_flops=sum(number * size for number, size in zip(flops, sizes, strict=True)),
            dense_flops=self.dense_rows * max(flops, default=0),
            executed_bytes=max(touched, default=0) if self.shared else sum(touched),
            dense_bytes=max(nbytes, default=0) if self.shared else sum(nbytes),
        )


class CostMeter:
    """Counts executed and dense rows, FLOPs and weight bytes of the calls made while it is active.

    Counted is what multiplies by weights: `expert_ffn`, `grouped_lora`, `PackedExperts` and `grouped_mm`, and with them
    `DynamicMoE` and the transformers integration; `gated_ffn`, `prefix_ffn`, `PackedFfn` (the rows that run, and, in a
    call of its own, rows that skip into a branch with weights) and `lowrank_residual`. `gather`, `scatter_add`,
    `segment_reduce` and the builders of plans are not: they move rows and read no weights. `grouped_mm` knows its rows
    and not where they came from, so its dense work is every row of x, ones that a `gather` repeated too, times every
    matrix.

    Give it a model to name the modules that made the calls::

        with CostMeter(model) as meter:
            model(x)
        print(meter.total(), meter.by_module())

    Recording keeps references to the plan's offsets and reads nothing, so it adds no host sync; `total`, `by_module`
    and `calls` read. Meters may be nested; each sees all calls made inside it. Calls inside a compiled region are not
    seen: measure in eager mode, the plans are the same. A backward is not counted, but what it computes again under
    gradient checkpointing is, as another call. Not shared between threads.
    """

    _active: ClassVar[list[CostMeter]] = []

    def __init__(self, model: torch.nn.Module | None = None) -> None:
        self.recorded: list[Call] = []
        self._names = {} if model is None else {module: name for name, module in model.named_modules()}
        self._stack: list[str] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> CostMeter:
        def enter(module: torch.nn.Module, _: Any) -> None:
            self._stack.append(self._names.get(module, ""))

        def leave(module: torch.nn.Module, _: Any, __: Any) -> None:
            self._stack.pop()

        for module in self._names:
            self._hooks.append(module.register_forward_pre_hook(enter))
            self._hooks.append(module.register_forward_hook(leave, always_call=True))
        CostMeter._active.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        CostMeter._active.remove(self)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._stack.clear()

    def calls(self) -> list[tuple[str, str, Cost]]:
        """(module, op, cost) of every call, in order."""
        return [(call.module, call.op, call.cost()) for call in self.recorded]

    def by_module(self) -> dict[str, Cost]:
        """Cost per module name; "" holds what ran outside any named module."""
        costs: dict[str, Cost] = {}
        for call in self.recorded:
            costs[call.module] = costs.get(call.module, Cost()) + call.cost()
        return costs

    def total(self) -> Cost:
        """Cost of all recorded calls."""
        return sum((call.cost() for call in self.recorded), Cost())


def record(
    op: str,
    *,
    group_offsets: Tensor,
    groups: range,
    dense_rows: int,
    flops_per_row: int | tuple[int, ...],
    bytes_per_group: int | tuple[int, ...],
    shared: bool = False,
) -> None:
    """Tells every active meter of one call; the arguments are `Call`'s. Called by ops; costs nothing where no meter is
    active."""
    if not CostMeter._active or torch.compiler.is_compiling():
        return
    for meter in CostMeter._active:
        module = meter._stack[-1] if meter._stack else ""
        offsets = group_offsets.detach()
        meter.recorded.append(Call(op, module, offsets, groups, dense_rows, flops_per_row, bytes_per_group, shared))
