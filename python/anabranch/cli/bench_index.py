"""The workloads of `python -m anabranch bench index`: single operations, kinds of keys, batches, and a mapping's items.

Single operations are those of include/anabranch/index/workloads.hpp and are timed where they run, in C++, beside
std::map behind a shared mutex; one run has all of them. The least that an operation takes is to fetch one cache line
from a random place, and of a scan the bytes of its entries; bulk_load reads and writes every key and value once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from anabranch.cli.bench_index_batches import Batches
from anabranch.cli.bench_index_mapping import mapping_workloads
from anabranch.cli.bench_index_rows import Rate
from anabranch.cli.bench_rows import Workload
from anabranch.core.library import ops

# In the order of index_works and IndexKeys (workloads.hpp).
WORKS = ("load", "find", "find zipf", "YCSB A", "YCSB E", "paper's A", "window")
KINDS = ("random", "sequential", "odd", "multiples", "timestamps")
MAPS = ("index", "std::map")
_SCAN_BYTES = round(0.95 * 50.5 * 16)  # of an operation of YCSB E: 95 % are scans of 1 to 100 entries


@dataclasses.dataclass(frozen=True)
class IndexShape:
    """Keys of a small batch; probes of a batch of lookups at most; single calls that are timed in Python; kinds of keys
    beside random ones."""

    batch: int = 1000
    probes: int = 1_000_000
    calls: int = 200_000
    kinds: tuple[str, ...] = KINDS[1:]


class Throughput:
    """Runs of all works on one map. Each contender takes its number from the run of its round, so that the maps take
    turns and no run is made twice."""

    def __init__(self, map: int, kind: int, num_keys: int) -> None:
        self._arguments = (map, kind, num_keys, torch.get_num_threads())
        self._runs: list[Tensor] = []

    def contender(self, work: int) -> Callable[[], Rate]:
        rounds = itertools.count()

        def measured() -> Rate:
            round_ = next(rounds)
            if round_ == len(self._runs):
                self._runs.append(ops.bskiplist_throughput(*self._arguments))
            per_second, _, p99_ns, bytes_per_key = self._runs[round_][work].tolist()
            return Rate(per_second, p99_ns, bytes_per_key)

        return measured


class Index:
    """The room; `tokens` are keys in the map."""

    def __init__(self, shape: IndexShape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.device = shape, device

    def workloads(self, mode: str, tokens: int) -> Iterator[Workload]:
        """Those of one mode. On a GPU there are the batches alone."""
        if mode == "batches":
            yield from Batches(self.shape.batch, self.shape.probes, tokens, self.device).workloads()
        elif self.device.type != "cpu":
            return
        elif mode == "operations":
            yield from _operations(0, ("index", "std::map"), tokens)
        elif mode == "keys":
            for kind in self.shape.kinds:
                yield from _operations(KINDS.index(kind), ("index",), tokens)
        else:
            yield from mapping_workloads(tokens, self.shape.calls)


def _operations(kind: int, maps: tuple[str, ...], tokens: int) -> Iterator[Workload]:
    runs = {name: Throughput(MAPS.index(name), kind, tokens) for name in maps}
    for work, name in enumerate(WORKS):
        yield Workload(
            name if kind == 0 else f"{name} {KINDS[kind]}",
            tokens,
            tokens,
            {map_: run.contender(work) for map_, run in runs.items()},
            0,
            _SCAN_BYTES if name == "YCSB E" else 0,
            lines=2 if name == "window" else 1,
        )
