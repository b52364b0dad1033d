"""One row of a benchmark: contenders timed in turn, beside the limit of the machine."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Protocol

import torch

from anabranch.cli.machine import Limits, last_cache_bytes

Contenders = dict[str, Callable[[], object]]

# Ours that rows are about, the preferred one first.
OURS = ("packed", "unpacked", "step", "index", "ops", "temporal")
_GRAPH_TOKENS = 512  # up to here a GPU waits for launches, not for kernels


@dataclasses.dataclass(frozen=True)
class Target:
    """What a row is to reach.

    Attributes:
        of: what our time is taken over: "limit", "token" (in nanoseconds) or the name of another contender.
        must, goal: the most that this may be, and what is wished for; None where there is none.
    """

    of: str
    must: float | None
    goal: float | None = None


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is to be timed, and the least work that it takes.

    Attributes:
        pairs: (token, expert) pairs routed, or rows that run. contenders: what each one calls, by name.
        flops, nbytes: arithmetic, and bytes of weights and rows that must move at least once.
        int8_nbytes: the same with int8 weights; None where int8 does not take part.
        kept: share of the dense work that runs; None where that is not what the workload is about.
        calls: how often a contender does its work in one call, for work too short to be timed alone.
        float_flops: arithmetic that is float32 whatever the dtype, besides `flops`.
        target: what our time is held to, if anything.
        lines: cache lines that come from random places.
    """

    name: str
    tokens: int
    pairs: int
    contenders: Contenders
    flops: int
    nbytes: int
    int8_nbytes: int | None = None
    kept: float | None = None
    calls: int = 1
    float_flops: int = 0
    target: Target | None = None
    lines: int = 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        medians_ms, spreads: per contender; a spread is (longest - shortest) / median. A contender that is not installed
            or does not apply is missing.
        limit_ms: of the dtype's own bytes; int8_limit_ms: of int8 weights, at the same arithmetic peak.
        kept, target: as the workload's; floor_ms: the least time to move its bytes.
        eager: on a GPU, contenders that ran without a graph in a row that otherwise replays graphs.
        flops, nbytes, int8_nbytes, lines: the least work of the times above, as the workload's; those in float32 count
            as many of the dtype's as take the same time at best.
    """

    workload: str
    dtype: str
    threads: int
    tokens: int
    pairs: int
    medians_ms: dict[str, float]
    spreads: dict[str, float]
    limit_ms: float
    int8_limit_ms: float | None
    eager: list[str] = dataclasses.field(default_factory=list)
    kept: float | None = None
    floor_ms: float | None = None
    target: Target | None = None
    flops: float = 0.0
    nbytes: float = 0.0
    int8_nbytes: float | None = None
    lines: float = 0.0

    @property
    def ours(self) -> str:
        """Name of our variant that ratios and limits are of: packed weights where there are any, never int8."""
        return next(name for name in OURS if name in self.medians_ms)

    @property
    def reached(self) -> float | None:
        """What the target is about; None without one, or without the contender that it names."""
        if self.target is None:
            return None
        ours = self.medians_ms[self.ours]
        if self.target.of == "token":
            return 1e6 * ours / self.tokens
        other = self.limit_ms if self.target.of == "limit" else self.medians_ms.get(self.target.of)
        return ours / other if other else None

    def ratio(self, peer: str) -> float | None:
        """The peer's time over ours, above 1 where we are faster; None where the peer did not run."""
        return self.medians_ms[peer] / self.medians_ms[self.ours] if peer in self.medians_ms else None

    def of_limit(self, contender: str) -> float | None:
        """The limit over the contender's time, 1 at the limit."""
        if contender not in self.medians_ms:
            return None
        limit = self.limit_ms if contender != "int8" or self.int8_limit_ms is None else self.int8_limit_ms
        return limit / self.medians_ms[contender]

    def of_ideal(self, dense: str) -> float | None:
        """Our time over the larger of `kept` times the dense contender's and the floor: 1 is ideal; None without."""
        if dense not in self.medians_ms or self.kept is None or self.floor_ms is None:
            return None
        return self.medians_ms[self.ours] / max(self.kept * self.medians_ms[dense], self.floor_ms)


class Stopwatch(Protocol):
    """How calls are timed on one kind of device."""

    def prepare(self, call: Callable[[], object], small: bool) -> tuple[Callable[[], object], bool]:
        """The call as it is to be repeated, and whether a small one stayed eager where a graph was wanted."""

    def milliseconds(self, call: Callable[[], object]) -> float:
        """Time of one call."""


class CpuStopwatch:
    """Wall time from a cold cache: twice its bytes are read before each call, as other layers' weights would be."""

    def __init__(self) -> None:
        self._others = torch.ones(max(2 * last_cache_bytes(), 64 << 20) // 4)

    def prepare(self, call: Callable[[], object], small: bool) -> tuple[Callable[[], object], bool]:
        return call, False

    def milliseconds(self, call: Callable[[], object]) -> float:
        self._others.sum()
        start = time.perf_counter()
        result = call()
        elapsed = 1e3 * (time.perf_counter() - start)
        del result  # freeing it is no part of the call
        return elapsed


class CudaStopwatch:
    """Events around the call on the current stream, after a write of several times the L2 cache; a graph for few
    tokens without gradients.

    The write also keeps the GPU busy while the host launches what is timed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = torch.empty(512 << 20, dtype=torch.uint8, device=device)

    def prepare(self, call: Callable[[], object], small: bool) -> tuple[Callable[[], object], bool]:
        if not small:
            return call, False
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            call()  # libraries set themselves up outside the capture
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                call()
        except RuntimeError:  # a peer that reads sizes on the host
            torch.cuda.synchronize(self._device)
            return call, True
        return graph.replay, False

    def milliseconds(self, call: Callable[[], object]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flush.zero_()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(self._device)
        return begin.elapsed_time(end)


def measure(workload: Workload, dtype: str, threads: int, limits: Limits, stopwatch: Stopwatch, repeats: int) -> Row:
    """Times the contenders in turn, `repeats` rounds after one to warm up, so that drift meets all of them alike."""
    small = workload.tokens <= _GRAPH_TOKENS and not torch.is_grad_enabled()
    prepared = {name: stopwatch.prepare(call, small) for name, call in workload.contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in prepared}
    for round_ in range(repeats + 1):
        for name, (call, _) in prepared.items():
            elapsed = stopwatch.milliseconds(call)
            if round_:
                times[name].append(elapsed / workload.calls)
    medians = {name: statistics.median(of_one) for name, of_one in times.items()}
    return Row(
        workload.name,
        dtype,
        threads,
        workload.tokens,
        workload.pairs,
        medians,
        {name: (max(of_one) - min(of_one)) / medians[name] for name, of_one in times.items()},
        limits.milliseconds(workload.flops, workload.nbytes, workload.float_flops),
        None if "int8" not in medians else limits.milliseconds(workload.flops, workload.int8_nbytes or 0),
        [name for name, (_, eager) in prepared.items() if eager],
        workload.kept,
        None if workload.kept is None else limits.milliseconds(0, workload.nbytes),
        workload.target,
        flops=workload.flops + limits.in_dtype(workload.float_flops),
        nbytes=workload.nbytes,
        int8_nbytes=workload.int8_nbytes,
        lines=workload.lines,
    )
