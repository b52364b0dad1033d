"""What `python -m anabranch info` asks of each op: one small call beside torch's own ops, gradients included.

A room lists its own in `<room>/self_test.py`, as `self_tests()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SelfTest:
    """One case, for all the ops that it calls."""

    ops: tuple[str, ...]
    """Names in `torch.ops.anabranch`, the one that users know first."""
    run: Callable[[], float]
    """Calls them on torch's default device and returns the largest error, relative to the largest value."""
    kernels: tuple[str, ...] = ()
    """Stems `<room>/<thing>` of `csrc/<room>/<thing>_<instruction set>.cpp`; none where one code serves every CPU."""
    hopper: str = ""
    """When the kernel of Hopper's tensor cores is taken; empty where the op has none."""
    cpu_only: bool = False
    tolerance: float = 1e-5


def worst_error(ours: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, each relative to the largest expected value of its tensor; shapes must be equal."""
    worst = 0.0
    for a, b in zip(ours, expected, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if b.numel():
            wanted = b.detach().double()
            difference = (a.detach().double() - wanted).abs().max().item()
            scale = max(wanted.abs().max().item(), 1e-30)
            worst = max(worst, difference / scale if difference == difference else float("inf"))
    return worst


def values_and_gradients(function: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    """What `function` returns for copies of the leaves, and their gradients for one fixed upstream."""
    copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = function(*copies)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad(out, copies, upstream)]


def compare(ours: Callable[..., Tensor], expected: Callable[..., Tensor], *leaves: Tensor) -> float:
    """`worst_error` of values and gradients of two functions of the same leaves."""
    return worst_error(values_and_gradients(ours, *leaves), values_and_gradients(expected, *leaves))
