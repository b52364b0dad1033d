"""The machine's limits during a benchmark: measured as it begins, as it ends, and between when they have grown old."""

from __future__ import annotations

import time

import torch

from anabranch.cli.bench_rooms import ROOMS
from anabranch.cli.bench_settings import Settings
from anabranch.cli.machine import Limits, measure_limits, measure_lines

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int64": torch.int64}
FoundLimits = dict[tuple[str, int], Limits]
"""By dtype and number of threads."""
_FRESH_SECONDS = 120.0


class Limiter:
    """Measures limits and prints them: of every dtype and number of threads that the settings have."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self._threads, self._device = settings.threads, device
        wanted = {
            dtype
            for room in settings.rooms
            for mode in settings.modes_of(room)
            for dtype in settings.dtypes_of(room, mode)
        }
        self._dtypes = [dtype for dtype in DTYPES if dtype in wanted]
        self._lines = any(ROOMS[room].lines for room in settings.rooms)
        self._last: tuple[float, FoundLimits] | None = None

    def recent(self, label: str) -> FoundLimits:
        """The last ones, or new ones where those are minutes old: the speed of a shared machine drifts."""
        if self._last is not None and time.monotonic() - self._last[0] < _FRESH_SECONDS:
            return self._last[1]
        return self.now(label)

    def now(self, label: str) -> FoundLimits:
        limits: FoundLimits = {}
        before = torch.get_num_threads()
        try:
            for threads in self._threads:
                torch.set_num_threads(threads)
                limits |= self._of_threads(threads, label)
        finally:
            torch.set_num_threads(before)
        self._last = time.monotonic(), limits
        return limits

    def _of_threads(self, threads: int, label: str) -> FoundLimits:
        measured = dict.fromkeys(["float32", *self._dtypes])
        found = {dtype: measure_limits(DTYPES[dtype], self._device) for dtype in measured if dtype != "int64"}
        found["int64"] = found["float32"]  # integers have float32's peak
        bandwidth = max(of_dtype.bandwidth for of_dtype in found.values())  # knows no dtype: the best one is right
        lines = measure_lines(self._device) if self._lines else None
        parts = [f"{dtype} {one.peak / 1e9:.0f} GFLOP/s" for dtype, one in found.items() if dtype != "int64"]
        parts.append(f"{bandwidth / 1e9:.1f} GB/s")
        if lines is not None:
            parts.append(f"{lines / 1e6:.0f} million random lines/s")
        on = f"{threads} thread{'s' if threads > 1 else ''}" if self._device.type == "cpu" else "GPU"
        print(f"{label}, {on}: {', '.join(parts)}", flush=True)
        float_peak = found["float32"].peak
        return {(dtype, threads): Limits(found[dtype].peak, bandwidth, float_peak, lines) for dtype in self._dtypes}
