"""What this machine can do at best, measured: the denominator of every percentage in the benchmarks."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from anabranch.core.library import ops

_PEAK_SECONDS, _READ_REPEATS = 0.3, 20
_LINES, _LINE_REPEATS = 2_000_000, 5
_MEGABYTE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """What bounds every op: FLOPs per second of one dtype, and bytes per second.

    Attributes:
        float_peak: FLOPs per second of float32; None: those of the dtype.
        lines: cache lines per second from random places; None where that was not measured.
    """

    peak: float
    bandwidth: float
    float_peak: float | None = None
    lines: float | None = None

    def milliseconds(self, flops: float, nbytes: float, float_flops: float = 0, lines: float = 0) -> float:
        """The least time for this much work: the slower of arithmetic and memory, perfectly overlapped.

        Args:
            float_flops: those in float32, which are done after or before the others.
            lines: cache lines from random places.
        """
        arithmetic = (flops + self.in_dtype(float_flops)) / self.peak
        return 1e3 * max(arithmetic, nbytes / self.bandwidth, lines / self.lines if self.lines else 0.0)

    def in_dtype(self, float_flops: float) -> float:
        """As many FLOPs of the dtype as take the time of these in float32."""
        return float_flops * self.peak / (self.float_peak or self.peak)


def measure_limits(dtype: torch.dtype, device: torch.device) -> Limits:
    """Limits of the device; of a CPU those of as many threads as torch uses now. Integers have float32's peak.

    CPU: multiply-adds between registers and a streaming read (`include/anabranch/core/peak.hpp` says how), no product
    of ours. GPU: torch's own product of two matrices of 8192 x 8192, because only tensor cores reach the peak, and
    bytes read plus written by a copy of 1 GB.
    """
    dtype = dtype if dtype.is_floating_point else torch.float32
    if device.type == "cuda":
        return Limits(_matmul_flops(dtype, device), _copy_bandwidth(device))
    size = max(512 * _MEGABYTE, 4 * last_cache_bytes())
    peak = ops.peak_flops(dtype in (torch.bfloat16, torch.float16), _PEAK_SECONDS)
    return Limits(peak, ops.read_bandwidth(size, _READ_REPEATS))


def measure_lines(device: torch.device) -> float:
    """Cache lines per second from random places in a gigabyte, or in four times the last cache.

    CPU: as many as the cores can have under way (`random_line_rate` in `include/anabranch/core/peak.hpp`). GPU: torch's
    own gather of rows of 64 bytes.
    """
    size = max(1024 * _MEGABYTE, 4 * last_cache_bytes())
    if device.type == "cpu":
        return ops.random_line_rate(size, _LINES, _LINE_REPEATS)
    rows = torch.zeros(size // 64, 16, dtype=torch.int32, device=device)
    chosen = torch.randint(len(rows), (8 * _LINES,), device=device)
    return len(chosen) / _cuda_seconds(lambda: rows.index_select(0, chosen), device, 10)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Makes the C library keep what this process frees, as tcmalloc and jemalloc do, where that is glibc's to do.

    Otherwise every gradient and temporary of a megabyte or more is made of fresh pages, and a benchmark of training
    measures how fast the system clears them: 0.3 s for the weight gradients of the default shape in a virtual machine,
    against 0.1 s of arithmetic. It treats all contenders alike. Weights that are packed meanwhile may miss huge pages.
    """
    trim_threshold, mmap_max = -1, -4  # glibc's M_TRIM_THRESHOLD and M_MMAP_MAX
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)
    try:
        yield
    finally:  # glibc's defaults
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(trim_threshold, 128 * 1024)
        libc.malloc_trim(0)


def last_cache_bytes() -> int:
    """Bytes of all last-level caches together, 0 where Linux does not say."""
    caches: dict[str, int] = {}
    for folder in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3"):
        size = (folder / "size").read_text().strip()  # like 32768K
        caches[(folder / "shared_cpu_list").read_text()] = int(size.rstrip("K")) * 1024
    return sum(caches.values())


def device_name(device: torch.device) -> str:
    """The processor's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cuda_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Shortest of `repeats` runs after one to warm up."""
    best = float("inf")
    for repeat in range(repeats + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        if repeat:
            best = min(best, begin.elapsed_time(end) / 1e3)
    return best


def _matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    size = 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _cuda_seconds(lambda: torch.mm(a, b, out=out), device, 10)


def _copy_bandwidth(device: torch.device) -> float:
    source = torch.empty(1024 * _MEGABYTE, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _cuda_seconds(lambda: target.copy_(source), device, 10)
