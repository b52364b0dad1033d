"""`python -m anabranch bench [room ...]`: our ops beside their peers and the machine's limit, as tables and files.

All contenders of one row run in turn in one process, so that a machine whose speed drifts treats them alike; their
medians are compared. The limit is the larger of FLOPs over measured peak and bytes over measured bandwidth. While
training is measured on a CPU, and in the mixers' room always, freed memory stays with the process
(`machine.freed_memory_kept`).

In the index's and the temporal room contenders time themselves, from warm caches (`bench_index_rows.py`) where nothing
else is said, and the table is followed by the bars that the room is held to.

Interrupted, a benchmark writes what it has: whole rows, and that it was interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import sys
import time
from collections.abc import Iterator

import torch

from anabranch.cli.arguments import PROGRAM
from anabranch.cli.bench_chart import chart
from anabranch.cli.bench_compare import compare
from anabranch.cli.bench_limits import DTYPES, FoundLimits, Limiter
from anabranch.cli.bench_page import page
from anabranch.cli.bench_peers import absent_line, absent_peers
from anabranch.cli.bench_record import Record, RoomRecord, new_record, read_record, to_json
from anabranch.cli.bench_rooms import ROOMS
from anabranch.cli.bench_rows import CpuStopwatch, CudaStopwatch, Row, Workload
from anabranch.cli.bench_settings import Settings
from anabranch.cli.bench_tables import bar_lines
from anabranch.cli.machine import freed_memory_kept
from anabranch.cli.output import INTERRUPTED, PIPE_CLOSED, write_files
from anabranch.cli.progress import StatusLine


def run(settings: Settings) -> int:
    """Prints the tables row by row, and writes the files that were asked for.

    Returns:
        0; 1 where something is further from the limit than in the file compared with; 130 after Ctrl-C, 141 where
        nobody reads the tables any more.
    """
    old = None if settings.compare is None else read_record(settings.compare)
    device, before = torch.device(settings.device), torch.get_num_threads()
    record = new_record(device, absent_peers(settings.rooms, settings.quick, settings.device), settings.quick)
    start, status = time.monotonic(), 0
    try:
        _measure_rooms(settings, device, record)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        status = PIPE_CLOSED
    finally:
        torch.set_num_threads(before)
    record.seconds, record.interrupted = time.monotonic() - start, status != 0
    record.rooms = [room for room in record.rooms if room.rows]
    paths = _write(settings, record) if record.rooms else []
    if status == PIPE_CLOSED:
        raise BrokenPipeError
    if status == INTERRUPTED:
        held = f"{', '.join(paths)}: what there is" if paths else "nothing was written"
        print(f"{PROGRAM} bench: interrupted; {held}", file=sys.stderr)
        return status
    for path in paths:
        print(f"wrote {path}", flush=True)
    if old is None:
        return 0
    lines, regressed = compare(old, record)
    print(*lines, sep="\n", flush=True)
    return int(regressed)


def _measure_rooms(settings: Settings, device: torch.device, record: Record) -> None:
    print(f"{record.machine['device']}; torch {torch.__version__}", flush=True)
    if line := absent_line(record.absent):
        print(line, flush=True)
    limiter, status = Limiter(settings, device), StatusLine()
    limits = limiter.now("limits")
    for position, name in enumerate(settings.rooms, 1):
        room, repeats = ROOMS[name], settings.repeats_of(name)
        shape = settings.shape_of(name)
        of_room = RoomRecord(name, room.unit, dataclasses.asdict(shape), repeats, limits)
        record.rooms.append(of_room)
        torch.manual_seed(0)
        status.line(f"{name}, room {position} of {len(settings.rooms)}")
        print(f"\n{name}: {shape}; median of {repeats}\n{room.header()}", flush=True)
        for row in measured_rows(settings, name, device, limits, status):
            of_room.rows.append(row)
            of_room.bars = room.bars(of_room.rows)
            status.clear()
            print(room.format_row(row), flush=True)
        status.clear()
        for text in bar_lines(of_room.bars):
            print(text, flush=True)
        # Far from the first ones, another program was at work during the run and the percentages are worth little.
        last = position == len(settings.rooms)
        limits = limiter.now("limits after") if last else limiter.recent("limits")
        of_room.limits_after = limits
    for of_room in record.rooms:
        if of_room.limits_after == of_room.limits:  # too short for limits of its own
            of_room.limits_after = limits


def measured_rows(
    settings: Settings, name: str, device: torch.device, limits: FoundLimits, status: StatusLine
) -> Iterator[Row]:
    """The rows of one room, each as soon as it is measured. Leaves the number of threads changed."""
    room, repeats = ROOMS[name], settings.repeats_of(name)
    stopwatch = CpuStopwatch() if device.type == "cpu" else CudaStopwatch(device)
    for dtype in DTYPES:
        modes = [mode for mode in settings.modes_of(name) if dtype in settings.dtypes_of(name, mode)]
        if not modes:
            continue
        status.show(f"{name}: {dtype}")
        loaded = room.load(settings.shape_of(name), DTYPES[dtype], device)
        workload: Workload | None = None
        for mode in modes:
            trains = mode in room.with_gradients
            keeps = device.type == "cpu" and (trains or room.memory_kept)
            with freed_memory_kept() if keeps else contextlib.nullcontext():
                all_threads = settings.threads[:1] if mode in room.one_thread else settings.threads
                for threads, tokens in itertools.product(all_threads, settings.tokens_of(name, mode)):
                    torch.set_num_threads(threads)
                    status.show(f"{name}: {mode}, {dtype}, {tokens} {room.unit}, threads {threads}")
                    for workload in loaded.workloads(mode, tokens):
                        for peer in settings.without:
                            workload.contenders.pop(peer, None)
                        with torch.set_grad_enabled(trains):
                            row = room.measure(workload, dtype, threads, limits[dtype, threads], stopwatch, repeats)
                        yield row
        del loaded, workload
        gc.collect()  # gigabytes, before the next dtype's


def _write(settings: Settings, record: Record) -> list[str]:
    """Writes all files or none; returns their names."""
    files, text = {}, to_json(record)
    if settings.json is not None:
        files[settings.json] = text
    if (folder := settings.out) is not None:
        files |= {folder / "bench.json": text, folder / "bench.html": page(record)}
        title = f"{record.machine['device']}, torch {record.versions['torch']}"
        for room in record.rooms:
            files[folder / f"{room.room}.svg"] = chart(title, room.rows, ROOMS[room.room].peers, room.unit)
    write_files(files)
    return [str(path) for path in files]
