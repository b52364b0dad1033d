"""Rows of `bench index` and `bench temporal`: contenders that time themselves."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

from anabranch.cli.bench_rows import Row, Stopwatch, Workload
from anabranch.cli.machine import Limits

OPERATIONS = 1_000_000  # that `medians_ms` and `limit_ms` of these rows are about


@dataclasses.dataclass(frozen=True)
class Rate:
    """What a contender measured of itself.

    Attributes:
        per_second: operations, keys of batches, events or pairs.
        p99_ns: of single operations. bytes_per_key: memory of the whole. None where that was not measured.
    """

    per_second: float
    p99_ns: float | None = None
    bytes_per_key: float | None = None


@dataclasses.dataclass(frozen=True)
class IndexRow(Row):
    """A row whose times are those of a million operations.

    Attributes:
        tokens: keys in the map; events or pairs of a batch.
        p99_ns, bytes_per_key: medians per contender, as in `Rate`.
    """

    p99_ns: dict[str, float] = dataclasses.field(default_factory=dict)
    bytes_per_key: dict[str, float] = dataclasses.field(default_factory=dict)

    def millions(self, contender: str) -> float:
        """Million operations a second."""
        return 1e-3 * OPERATIONS / self.medians_ms[contender]


def timed(call: Callable[[], object], operations: int, device: torch.device | None = None) -> Rate:
    """Times one call that does so many operations; of a GPU, until it is done."""
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = call()
    if on_gpu:
        torch.cuda.synchronize(device)
    elapsed = time.perf_counter() - start
    del result  # freeing it is no part of the call
    return Rate(operations / elapsed)


def measure_rates(
    workload: Workload, dtype: str, threads: int, limits: Limits, stopwatch: Stopwatch, repeats: int
) -> IndexRow:
    """Lets the contenders measure themselves in turn, `repeats` times. An index is warm: each call meets the caches as
    the one before left them, so the stopwatch, which empties them, is not used."""
    rates: dict[str, list[Rate]] = {name: [] for name in workload.contenders}
    for _ in range(repeats):
        for name, contender in workload.contenders.items():
            rate = contender()
            assert isinstance(rate, Rate)
            rates[name].append(rate)
    times = {name: [1e3 * OPERATIONS / rate.per_second for rate in of_one] for name, of_one in rates.items()}
    medians = {name: statistics.median(of_one) for name, of_one in times.items()}
    return IndexRow(
        workload.name,
        dtype,
        threads,
        workload.tokens,
        OPERATIONS,
        medians,
        {name: (max(of_one) - min(of_one)) / medians[name] for name, of_one in times.items()},
        OPERATIONS * limits.milliseconds(workload.flops, workload.nbytes, lines=workload.lines),
        None,
        flops=OPERATIONS * workload.flops,
        nbytes=OPERATIONS * workload.nbytes,
        lines=OPERATIONS * workload.lines,
        p99_ns=_medians({name: [rate.p99_ns for rate in of_one] for name, of_one in rates.items()}),
        bytes_per_key=_medians({name: [rate.bytes_per_key for rate in of_one] for name, of_one in rates.items()}),
    )


def _medians(found: dict[str, list[float | None]]) -> dict[str, float]:
    return {
        name: statistics.median(number for number in of_one if number is not None)
        for name, of_one in found.items()
        if None not in of_one
    }
