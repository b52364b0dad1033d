"""`python -m anabranch bench [room]`: our ops beside their peers and the machine's limit, as table, JSON and SVG.

All contenders of one row run in turn in one process, so that a machine whose speed drifts treats them alike; their
medians are compared. The limit is the larger of FLOPs over measured peak and bytes over measured bandwidth. While
training is measured on a CPU, freed memory stays with the process (`machine.freed_memory_kept`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from anabranch.cli.bench_chart import chart
from anabranch.cli.bench_experts import Experts, Shape
from anabranch.cli.bench_rows import CpuStopwatch, CudaStopwatch, Row, Workload, measure
from anabranch.cli.machine import Limits, device_name, freed_memory_kept, measure_limits

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
MODES = ("forward", "variable_k", "training")

_TOKENS = {
    "cpu": {"forward": [1, 16, 128, 512, 2048], "variable_k": [2048], "training": [128, 512, 2048]},
    "cuda": {
        "forward": [1, 16, 128, 512, 2048, 8192, 32768],
        "variable_k": [2048, 32768],
        "training": [128, 512, 2048, 32768],
    },
    "quick": {"forward": [1, 16], "variable_k": [64], "training": [16]},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure; None means the default of the mode and device: on the CPU float32 is measured forward only."""

    device: str
    modes: list[str]
    dtypes: list[str] | None
    tokens: list[int] | None
    threads: list[int]
    repeats: int
    quick: bool
    json: Path | None
    svg: Path | None

    def dtypes_of(self, mode: str) -> list[str]:
        if self.dtypes is not None:
            return self.dtypes
        return ["bfloat16", "float32"] if mode == "forward" and self.device == "cpu" else ["bfloat16"]

    def tokens_of(self, mode: str) -> list[int]:
        return self.tokens or _TOKENS["quick" if self.quick else self.device][mode]


def run(settings: Settings) -> int:
    """Prints the table row by row, and writes the files that were asked for. Returns 0."""
    device, before = torch.device(settings.device), torch.get_num_threads()
    shape = Shape(8, 128, 96, 2) if settings.quick else Shape()
    torch.manual_seed(0)
    print(f"{device_name(device)}; torch {torch.__version__}; {shape}; median of {settings.repeats}", flush=True)
    try:
        limits = _limits(settings, device, "limits")
        print(header(), flush=True)
        rows = []
        for row in _rows(settings, shape, device, limits):
            print(format_row(row), flush=True)
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
        for dtype, of_dtype in found.items():
            limits[dtype, threads] = Limits(of_dtype.peak, bandwidth)
        peaks = ", ".join(f"{dtype} {of_dtype.peak / 1e9:.0f} GFLOP/s" for dtype, of_dtype in found.items())
        on = f"{threads} threads" if device.type == "cpu" else "GPU"
        print(f"{label}, {on}: {peaks}, {bandwidth / 1e9:.1f} GB/s", flush=True)
    return limits


def _rows(
    settings: Settings, shape: Shape, device: torch.device, limits: dict[tuple[str, int], Limits]
) -> Iterator[Row]:
    stopwatch = CpuStopwatch() if device.type == "cpu" else CudaStopwatch(device)
    for dtype in DTYPES:
        modes = [mode for mode in MODES if mode in settings.modes and dtype in settings.dtypes_of(mode)]
        if not modes:
            continue
        experts = Experts(shape, DTYPES[dtype], device)
        for mode in modes:
            if mode == "training":
                experts.drop_packed()
            keeps = mode == "training" and device.type == "cpu"
            with freed_memory_kept() if keeps else contextlib.nullcontext():
                for threads, tokens in itertools.product(settings.threads, settings.tokens_of(mode)):
                    torch.set_num_threads(threads)
                    for workload in _workloads(experts, mode, tokens):
                        with torch.set_grad_enabled(mode == "training"):
                            row = measure(workload, dtype, threads, limits[dtype, threads], stopwatch, settings.repeats)
                        yield row
        del experts, workload
        gc.collect()  # gigabytes, before the next dtype's


def _workloads(experts: Experts, mode: str, tokens: int) -> Iterator[Workload]:
    if mode == "forward":
        yield experts.forward(tokens)
    elif mode == "variable_k":
        yield experts.variable_k(tokens)
    else:
        yield experts.training(tokens)
        if experts.device.type == "cuda":
            yield experts.backward(tokens)


def header() -> str:
    return (
        f"{'workload':<16} {'dtype':<8} {'thr':>3} {'tokens':>6}   {'packed ms':>9} {'int8 ms':>9} {'unpacked':>9} "
        f"{'spread':>6}   {'x torch':>7} {'x transformers':>14} {'x fixed k':>9} {'x padded':>8}   "
        f"{'limit ms':>8} {'% of limit':>10} {'int8 %':>6}"
    )


def format_row(row: Row) -> str:
    """One line: our times in ms, peers' times over ours, and the limit over ours; "-" where nothing was measured."""
    times = " ".join(f"{_number(row.medians_ms.get(name)):>9}" for name in ("packed", "int8", "unpacked"))
    ratios = " ".join(
        f"{_number(row.ratio(peer)):>{width}}"
        for peer, width in (("torch", 7), ("transformers", 14), ("fixed k", 9), ("padded", 8))
    )
    return (
        f"{row.workload:<16} {row.dtype:<8} {row.threads:>3} {row.tokens:>6}   {times} {row.spreads[row.ours]:>6.0%}   "
        f"{ratios}   {_number(row.limit_ms):>8} {_percent(row.of_limit(row.ours)):>10} "
        f"{_percent(row.of_limit('int8')):>6}" + (f"  eager: {', '.join(row.eager)}" if row.eager else "")
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _write(
    settings: Settings,
    shape: Shape,
    device: torch.device,
    limits: dict[str, dict[tuple[str, int], Limits]],
    rows: list[Row],
) -> None:
    title = f"{device_name(device)}, torch {torch.__version__}"
    if settings.json is not None:
        record = {
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
            "rows": [{**dataclasses.asdict(row), "ours": row.ours, "of_limit": row.of_limit(row.ours)} for row in rows],
        }
        settings.json.write_text(json.dumps(record, indent=1) + "\n")
    if settings.svg is not None:
        settings.svg.write_text(chart(title, rows))
