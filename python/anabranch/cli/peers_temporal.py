"""What the temporal room is compared with: a plain sequential ring, torch's search for common neighbours, and PyTorch
Geometric where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anabranch.core.library import cpu_only, ops
from anabranch.temporal import RecentNeighbors

cpu_only("use RecentNeighbors, which has kernels for it", "plain_ring_clear", "plain_ring_run")


class Edges(NamedTuple):
    """Events int64 `[E]`, and for each the nodes to look up, int64 `[E, Q]`."""

    src: Tensor
    dst: Tensor
    time: Tensor
    queries: Tensor

    def batches(self, size: int) -> list[Edges]:
        return [Edges(*columns) for columns in zip(*(column.split(size) for column in self), strict=True)]


class Ours:
    """`RecentNeighbors`: every batch is one call that looks up and inserts."""

    def __init__(self, num_nodes: int, k: int, device: torch.device) -> None:
        self.recent = RecentNeighbors(num_nodes, k, device=device)

    def insert(self, edges: Edges) -> None:
        self.recent.insert(edges.src, edges.dst, edges.time)

    def prepared(self, edges: Edges, batch: int) -> Callable[[], object]:
        """What runs these edges, batch after batch: look up, then insert."""
        batches = edges.batches(batch)

        def run() -> None:
            for part in batches:
                self.recent.lookup_and_insert(*part)

        return run


class PlainRing:
    """The loop of include/anabranch/temporal/plain_ring.hpp on one thread; records of 16 bytes, ids of 32 bits.

    Args:
        called: a batch is one call with results of its own, as it is for `Ours`. Otherwise all batches are one call,
            in C++, and their results overwrite each other.
    """

    def __init__(self, num_nodes: int, k: int, called: bool = True) -> None:
        self.called = called
        self.records = torch.empty(num_nodes, k, 2, dtype=torch.int64, device="cpu")
        self.oldest = torch.empty(num_nodes, dtype=torch.int32, device="cpu")
        self.num_events = 0
        ops.plain_ring_clear(self.records, self.oldest)

    def insert(self, edges: Edges) -> None:
        self.run(edges._replace(queries=edges.queries[:, :0]), max(len(edges.src), 1))

    def run(self, edges: Edges, batch: int) -> Tensor:
        """Records int64 `[batch, Q, k, 2]` of the last batch: its lookups, oldest first."""
        found: Tensor = ops.plain_ring_run(self.records, self.oldest, *edges, self.num_events, batch)
        self.num_events += len(edges.src)
        return found

    def prepared(self, edges: Edges, batch: int) -> Callable[[], object]:
        batches = edges.batches(batch) if self.called else [edges]

        def run() -> None:
            for part in batches:
                self.run(part, batch)

        return run


class PygLoader:
    """PyG's LastNeighborLoader; it gets the distinct nodes of a batch, as its data loader hands them over."""

    FILL = 10_000  # edges at once, to fill it

    def __init__(self, num_nodes: int, k: int, device: torch.device) -> None:
        self.loader = pyg_tgn().LastNeighborLoader(num_nodes, k, device=device)

    def insert(self, edges: Edges) -> None:
        for part in edges.batches(self.FILL):
            self.loader.insert(part.src, part.dst)

    def prepared(self, edges: Edges, batch: int) -> Callable[[], object]:
        batches = [(part.src, part.dst, part.queries.unique()) for part in edges.batches(batch)]

        def run() -> None:
            for src, dst, nodes in batches:
                self.loader(nodes)
                self.loader.insert(src, dst)

        return run


def pyg_tgn() -> Any:
    """PyG's module of TGN; ImportError where it is not installed."""
    return importlib.import_module("torch_geometric.nn.models.tgn")


def has_pyg() -> bool:
    try:
        pyg_tgn()
    except ImportError:
        return False
    return True


def pyg_memory(num_nodes: int, raw_size: int, memory_size: int, time_size: int) -> nn.Module:
    """PyG's TGNMemory as its example makes it: identity messages, the last one counts."""
    tgn = pyg_tgn()
    message = tgn.IdentityMessage(raw_size, memory_size, time_size)
    memory: nn.Module = tgn.TGNMemory(num_nodes, raw_size, memory_size, time_size, message, tgn.LastAggregator())
    return memory


def common_neighbor_sum(
    x: Tensor, row_offsets: Tensor, column_ids: Tensor, edges: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    """What `row_set_sum` gives, by torch: each neighbour of one node is searched for among the edges of the other.

    Args:
        edges: int64, `row * N + column` of every entry of the graph, ascending.
    """
    num_nodes, degree = len(row_offsets) - 1, row_offsets.diff()
    shorter = degree[left] <= degree[right]
    left, right = torch.where(shorter, left, right), torch.where(shorter, right, left)
    lengths = degree[left]
    pair = torch.repeat_interleave(lengths)
    place = torch.arange(len(pair), device=x.device) + (row_offsets[left] - lengths.cumsum(0) + lengths)[pair]
    nodes = column_ids[place]
    wanted = right[pair] * num_nodes + nodes
    there = edges[torch.searchsorted(edges, wanted).clamp_(max=len(edges) - 1)] == wanted
    return x.new_zeros(len(left), x.shape[1]).index_add_(0, pair[there], x[nodes[there]])


@torch.library.register_fake("anabranch::plain_ring_clear")
def _(records: Tensor, oldest: Tensor) -> None:
    return None


@torch.library.register_fake("anabranch::plain_ring_run")
def _(records: Tensor, oldest: Tensor, src: Tensor, dst: Tensor, time: Tensor, queries: Tensor, *rest: int) -> Tensor:
    batch = rest[1]
    return records.new_empty(min(batch, src.shape[0]), queries.shape[1], records.shape[1], 2)
