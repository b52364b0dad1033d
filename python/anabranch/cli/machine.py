"""What this machine can do at best, measured: the denominator of every percentage in the benchmarks."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from anabranch.experts import grouped_mm


def cpu_name() -> str:
    """The processor's own name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    """Shortest of `repeats` runs: what the machine can do when nothing disturbs it."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def read_bandwidth() -> float:
    """Bytes per second that all threads read from a gigabyte of memory, by a sum."""
    buffer = torch.ones(1 << 28)
    return buffer.numel() * buffer.element_size() / best_seconds(buffer.sum, 5)


def peak_flops(dtype: torch.dtype) -> float:
    """FLOPs per second of the best large product at hand, ours or torch's, in `dtype` or in float32."""
    best = 0.0
    for kind in {dtype, torch.float32}:
        a, b = torch.randn(1536, 1536).to(kind), torch.randn(1, 1536, 1536).to(kind).mT
        offsets = torch.tensor([0, 1536], dtype=torch.int32)
        for call in (lambda a=a, b=b: a @ b[0], lambda a=a, b=b, o=offsets: grouped_mm(a, b, o)):
            best = max(best, 2 * 1536**3 / best_seconds(call, 4))
    return best
