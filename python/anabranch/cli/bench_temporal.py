"""The workloads of `python -m anabranch bench temporal`: recent neighbours, NAT's step and its parts, memories.

Contenders time themselves and give rates (`bench_index_rows.py`), after a round to warm up. The least that they take is
their arithmetic, or to move every byte once; an edge of a ring also fetches three rows from random places, as many as
random lines at best. A ring of few nodes lies in the caches, where none of this is a limit, and has none.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from anabranch.cli import peers_temporal as peers
from anabranch.cli.bench_index_rows import IndexRow, Rate, measure_rates, timed
from anabranch.cli.bench_rows import Contenders, CpuStopwatch, CudaStopwatch, Stopwatch, Workload
from anabranch.cli.bench_temporal_nat import NatSteps
from anabranch.cli.bench_temporal_parts import Parts
from anabranch.cli.machine import Limits
from anabranch.cli.peers_temporal import Edges
from anabranch.cli.temporal_stream import generated_stream
from anabranch.temporal import EdgeList, load_edges

FEW = 100_000  # nodes; below, the rows of a ring lie in the caches
_PYG_SHARE = 20  # PyG's loader runs this part of the edges: it takes so much longer


@dataclasses.dataclass(frozen=True)
class TemporalShape:
    """What is measured.

    Attributes:
        nodes, few_nodes: of the rings; k: events that they keep of a node.
        edges: that a ring is filled with, and half of which a contender runs in one measurement.
        seen, events: of the stream of NAT and the memories: that are taken in first, and that are measured.
        uci: use CollegeMsg.txt where `uci_file` finds it; otherwise a stream is generated.
        features: numbers of the edge features, all 0, that the release of NAT needs.
    """

    nodes: int = 1_000_000
    few_nodes: int = 9_000
    k: int = 10
    edges: int = 1_000_000
    seen: int = 20_000
    events: int = 4_000
    uci: bool = True
    features: int = 100


class Temporal:
    """The room; `tokens` are events, or pairs, of a batch."""

    def __init__(self, shape: TemporalShape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.device = shape, device
        self._rings: dict[int, Rings] = {}
        self._parts: Parts | None = None
        self._steps: NatSteps | None = None

    def workloads(self, mode: str, tokens: int) -> Iterator[Workload]:
        if mode == "ring":
            for nodes in (self.shape.nodes, self.shape.few_nodes):
                if nodes not in self._rings:
                    self._rings[nodes] = Rings(nodes, self.shape.k, self.shape.edges, self.device)
                yield self._rings[nodes].workload(tokens)
            return
        self._rings.clear()  # gigabytes
        if self._steps is None:
            stopwatch = CpuStopwatch() if self.device.type == "cpu" else CudaStopwatch(self.device)
            name, edges = stream(self.shape)
            edges = edges.to(self.device)
            self._steps = NatSteps(name, edges, self.shape.seen, self.shape.events, self.shape.features)
            self._parts = Parts(self._steps, stopwatch)
        assert self._parts is not None
        if mode == "nat":
            yield from self._steps.workloads(tokens)
        elif mode == "pairs":
            yield from self._parts.pairs(tokens)
            yield self._parts.row_sets(tokens)
        elif mode == "cache":
            yield self._parts.cache_update(tokens)
        else:
            yield self._parts.memory(tokens)


def measure_warm(
    workload: Workload, dtype: str, threads: int, limits: Limits, stopwatch: Stopwatch, repeats: int
) -> IndexRow:
    """`measure_rates` after a round that does not count: the first results of a size are made of fresh pages."""
    for contender in workload.contenders.values():
        contender()
    return measure_rates(workload, dtype, threads, limits, stopwatch, repeats)


def uci_file() -> Path:
    """In the folder that ANABRANCH_DATA names, or where the data lie beside this project's folder."""
    return Path(os.environ.get("ANABRANCH_DATA", "../shared/data")) / "uci" / "CollegeMsg.txt"


def stream(shape: TemporalShape) -> tuple[str, EdgeList]:
    """UCI's messages, or as many generated events of as many people; a name and the events."""
    if shape.uci and uci_file().exists():
        return "UCI", load_edges(uci_file())
    events = shape.seen + shape.events
    return "generated", generated_stream(max(events, 60_000) if shape.uci else events, 1_900, 0)


class Rings:
    """Recent neighbours of so many nodes: an endless stream, and every structure filled with a round of it."""

    def __init__(self, nodes: int, k: int, edges: int, device: torch.device) -> None:
        self.nodes, self.k, self.edges, self.device = nodes, k, edges, device
        generator = torch.Generator().manual_seed(nodes)
        drawn = torch.rand(edges, 3, generator=generator, dtype=torch.float64)
        # Of a million nodes evenly, of few nodes some more often, as real streams have it.
        ends = ((drawn if nodes >= FEW else drawn * drawn) * nodes).long().to(device)
        self._ends = (ends[:, 0].contiguous(), ends[:, 1].contiguous(), ends)
        self._at: dict[str, int] = {}
        self._structures: dict[str, peers.Ours | peers.PlainRing | peers.PygLoader] = {
            "temporal": peers.Ours(nodes, k, device)
        }
        if device.type == "cpu":
            self._structures["ring"] = peers.PlainRing(nodes, k)
            self._structures["ring C++"] = peers.PlainRing(nodes, k, called=False)
        if peers.has_pyg():
            self._structures["PyG"] = peers.PygLoader(nodes, k, device)
        for name, structure in self._structures.items():
            structure.insert(self._next(name, edges))

    def workload(self, batch: int) -> Workload:
        contenders: Contenders = {name: self._contender(name, batch) for name in self._structures}
        row = 8 * (3 * self.k + 1 + 7) // 64 * 64
        lines, nbytes = (3, 5 * row + 3 * 24 * self.k) if self.nodes >= FEW else (0, 0)
        named = f"ring {self.nodes // 10**6}M nodes" if self.nodes % 10**6 == 0 else f"ring {self.nodes / 1e3:g}k nodes"
        return Workload(named, batch, batch, contenders, 0, nbytes, lines=lines)

    def _contender(self, name: str, batch: int) -> Callable[[], Rate]:
        def call() -> Rate:
            wanted = self.edges // 2 // (_PYG_SHARE if name == "PyG" else 1)
            part = self._next(name, max(wanted // batch, 1) * batch)
            return timed(self._structures[name].prepared(part, batch), len(part.src), self.device)

        return call

    def _next(self, name: str, size: int) -> Edges:
        """The next edges for a structure; the stream begins again where it ends, time goes on."""
        at = self._at.get(name, 0)
        self._at[name] = at + size
        numbers = torch.arange(at, at + size, device=self.device)
        src, dst, queries = (column[numbers % self.edges] for column in self._ends)
        return Edges(src, dst, numbers // 2, queries)
