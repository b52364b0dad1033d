"""`python -m anabranch bench [room]`: our ops beside their peers and the machine's limit, as table, JSON and SVG.

All contenders of one row run in turn in one process, so that a machine whose speed drifts treats them alike; their
medians are compared. The limit is the larger of FLOPs over measured peak and bytes over measured bandwidth. While
training is measured on a CPU, and in the mixers' room always, freed memory stays with the process
(`machine.freed_memory_kept`).

A JSON file holds one room, named by its key "room": `bench/results` has <machine>.json of the experts,
<machine>-skip.json of the skip room and <machine>-mixers.json of the mixers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from anabranch.cli.bench_chart import chart
from anabranch.cli.bench_rooms import ROOMS
from anabranch.cli.bench_rows import CpuStopwatch, CudaStopwatch, Row, measure
from anabranch.cli.machine import Limits, device_name, freed_memory_kept, measure_limits

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure; None means the default of the room's mode and the device.

    Attributes:
        without: contenders that are left out.
    """

    room: str
    device: str
    modes: list[str]
    dtypes: list[str] | None
    tokens: list[int] | None
    threads: list[int]
    repeats: int
    quick: bool
    without: list[str]
    json: Path | None
    svg: Path | None

    def dtypes_of(self, mode: str) -> list[str]:
        if mode in ROOMS[self.room].float_modes:
            return ["float32"]
        if self.dtypes is not None:
            return self.dtypes
        both = self.device == "cpu" and mode in ROOMS[self.room].both_dtypes
        return ["bfloat16", "float32"] if both else ["bfloat16"]

    def tokens_of(self, mode: str) -> list[int]:
        return self.tokens or ROOMS[self.room].tokens["quick" if self.quick else self.device][mode]


def run(settings: Settings) -> int:
    """Prints the table row by row, and writes the files that were asked for. Returns 0."""
    device, before = torch.device(settings.device), torch.get_num_threads()
    room = ROOMS[settings.room]
    shape = room.quick_shape if settings.quick else room.shape
    torch.manual_seed(0)
    print(f"{device_name(device)}; torch {torch.__version__}; {shape}; median of {settings.repeats}", flush=True)
    try:
        limits = _limits(settings, device, "limits")
        print(room.header(), flush=True)
        rows = []
        for row in _rows(settings, shape, device, limits):
            print(room.format_row(row), flush=True)
            rows.append(row)
        # Far from the first ones, another program was at work during the run and the percentages are worth little.
        after = _limits(settings, device, "limits after")
    finally:
        torch.set_num_threads(before)
    _write(settings, shape, device, {"limits": limits, "limits_after": after}, rows)
    return 0


def _limits(settings: Settings, device: torch.device, label: str) -> dict[tuple[str, int], Limits]:
    """Prints and returns the limits per dtype and number of threads."""
    wanted = {dtype for mode in settings.modes for dtype in settings.dtypes_of(mode)}
    limits: dict[tuple[str, int], Limits] = {}
    for threads in settings.threads:
        torch.set_num_threads(threads)
        found = {dtype: measure_limits(DTYPES[dtype], device) for dtype in DTYPES if dtype in wanted}
        bandwidth = max(of_dtype.bandwidth for of_dtype in found.values())  # knows no dtype: the best one is right
        float_peak = None
        if ROOMS[settings.room].float_peak:
            float_peak = (found.get("float32") or measure_limits(torch.float32, device)).peak
        for dtype, of_dtype in found.items():
            limits[dtype, threads] = Limits(of_dtype.peak, bandwidth, float_peak)
        peaks = ", ".join(f"{dtype} {of_dtype.peak / 1e9:.0f} GFLOP/s" for dtype, of_dtype in found.items())
        on = f"{threads} threads" if device.type == "cpu" else "GPU"
        print(f"{label}, {on}: {peaks}, {bandwidth / 1e9:.1f} GB/s", flush=True)
    return limits


def _rows(settings: Settings, shape: Any, device: torch.device, limits: dict[tuple[str, int], Limits]) -> Iterator[Row]:
    room = ROOMS[settings.room]
    stopwatch = CpuStopwatch() if device.type == "cpu" else CudaStopwatch(device)
    for dtype in DTYPES:
        modes = [mode for mode in room.modes if mode in settings.modes and dtype in settings.dtypes_of(mode)]
        if not modes:
            continue
        loaded = room.load(shape, DTYPES[dtype], device)
        for mode in modes:
            trains = mode in room.with_gradients
            keeps = device.type == "cpu" and (trains or room.memory_kept)
            with freed_memory_kept() if keeps else contextlib.nullcontext():
                for threads, tokens in itertools.product(settings.threads, settings.tokens_of(mode)):
                    torch.set_num_threads(threads)
                    for workload in loaded.workloads(mode, tokens):
                        for name in settings.without:
                            workload.contenders.pop(name, None)
                        with torch.set_grad_enabled(trains):
                            row = measure(workload, dtype, threads, limits[dtype, threads], stopwatch, settings.repeats)
                        yield row
        del loaded, workload
        gc.collect()  # gigabytes, before the next dtype's


def _write(
    settings: Settings,
    shape: Any,
    device: torch.device,
    limits: dict[str, dict[tuple[str, int], Limits]],
    rows: list[Row],
) -> None:
    title = f"{device_name(device)}, torch {torch.__version__}"
    if settings.json is not None:
        record = {
            "room": settings.room,
            "device": device_name(device),
            "torch": torch.__version__,
            "shape": dataclasses.asdict(shape),
            **{
                when: [
                    {"dtype": dtype, "threads": threads, **dataclasses.asdict(one)}
                    for (dtype, threads), one in found.items()
                ]
                for when, found in limits.items()
            },
            "rows": [
                {
                    **dataclasses.asdict(row),
                    "ours": row.ours,
                    "of_limit": row.of_limit(row.ours),
                    "of_ideal": row.of_ideal("dense"),
                    "of_onednn": row.of_ideal("onednn"),
                    "reached": row.reached,
                }
                for row in rows
            ],
        }
        settings.json.write_text(json.dumps(record, indent=1) + "\n")
    if settings.svg is not None:
        settings.svg.write_text(chart(title, rows, ROOMS[settings.room].peers))
