"""`python -m anabranch bench [room]`: our ops beside their peers and the machine's limit, as table, JSON and SVG.

All contenders of one row run in turn in one process, so that a machine whose speed drifts treats them alike; their
medians are compared. The limit is the larger of FLOPs over measured peak and bytes over measured bandwidth. While
training is measured on a CPU, and in the mixers' room always, freed memory stays with the process
(`machine.freed_memory_kept`).

In the index's and the temporal room contenders time themselves, from warm caches (`bench_index_rows.py`) where nothing
else is said, and the table is followed by the bars that the room is held to.

A JSON file holds one room, named by its key "room": `bench/results` has <machine>.json of the experts,
<machine>-skip.json of the skip room, and so on.
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
from anabranch.cli.bench_index_bars import Bar
from anabranch.cli.bench_rooms import ROOMS
from anabranch.cli.bench_rows import CpuStopwatch, CudaStopwatch, Row, Workload
from anabranch.cli.bench_tables import bar_lines
from anabranch.cli.machine import Limits, device_name, freed_memory_kept, measure_limits, measure_lines

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int64": torch.int64}


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
        if (only := ROOMS[self.room].dtype) is not None:
            return [only]
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
        bars = room.bars(rows)
        for line in bar_lines(bars):
            print(line, flush=True)
        # Far from the first ones, another program was at work during the run and the percentages are worth little.
        after = _limits(settings, device, "limits after")
    finally:
        torch.set_num_threads(before)
    _write(settings, shape, device, {"limits": limits, "limits_after": after}, rows, bars)
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
        lines = measure_lines(device) if ROOMS[settings.room].lines else None
        for dtype, of_dtype in found.items():
            limits[dtype, threads] = Limits(of_dtype.peak, bandwidth, float_peak, lines)
        parts = [f"{dtype} {one.peak / 1e9:.0f} GFLOP/s" for dtype, one in found.items() if dtype != "int64"]
        parts.append(f"{bandwidth / 1e9:.1f} GB/s")
        if lines is not None:
            parts.append(f"{lines / 1e6:.0f} million random lines/s")
        on = f"{threads} threads" if device.type == "cpu" else "GPU"
        print(f"{label}, {on}: {', '.join(parts)}", flush=True)
    return limits


def _rows(settings: Settings, shape: Any, device: torch.device, limits: dict[tuple[str, int], Limits]) -> Iterator[Row]:
    room = ROOMS[settings.room]
    stopwatch = CpuStopwatch() if device.type == "cpu" else CudaStopwatch(device)
    for dtype in DTYPES:
        modes = [mode for mode in room.modes if mode in settings.modes and dtype in settings.dtypes_of(mode)]
        if not modes:
            continue
        loaded = room.load(shape, DTYPES[dtype], device)
        workload: Workload | None = None
        for mode in modes:
            trains = mode in room.with_gradients
            keeps = device.type == "cpu" and (trains or room.memory_kept)
            with freed_memory_kept() if keeps else contextlib.nullcontext():
                all_threads = settings.threads[:1] if mode in room.one_thread else settings.threads
                for threads, tokens in itertools.product(all_threads, settings.tokens_of(mode)):
                    torch.set_num_threads(threads)
                    for workload in loaded.workloads(mode, tokens):
                        for name in settings.without:
                            workload.contenders.pop(name, None)
                        with torch.set_grad_enabled(trains):
                            of_machine = limits[dtype, threads]
                            row = room.measure(workload, dtype, threads, of_machine, stopwatch, settings.repeats)
                        yield row
        del loaded, workload
        gc.collect()  # gigabytes, before the next dtype's


def _write(
    settings: Settings,
    shape: Any,
    device: torch.device,
    limits: dict[str, dict[tuple[str, int], Limits]],
    rows: list[Row],
    bars: list[Bar],
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
            **({"bars": [{**dataclasses.asdict(bar), "holds": bar.holds} for bar in bars]} if bars else {}),
        }
        settings.json.write_text(json.dumps(record, indent=1) + "\n")
    if settings.svg is not None:
        settings.svg.write_text(chart(title, rows, ROOMS[settings.room].peers, ROOMS[settings.room].unit))
