"""Valid calls of every op of the temporal room: tests/test_every_op.py checks what torch asks of an op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import anabranch.temporal  # noqa: F401  (registers the fakes and gradients)
from anabranch.cli.peers_temporal import PlainRing
from anabranch.temporal import RecentNeighbors

ops = torch.ops.anabranch


def samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Ops with arguments; the tensors that may get a gradient ask for one."""
    yield from recent_neighbors()
    yield from plain_ring()
    yield from memory_samples(dtype)
    yield from pair_samples(dtype)
    yield from ncache_samples(dtype)
    yield from row_set_samples(dtype)


def recent_neighbors() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    src, dst, time = torch.tensor([0, 3, 3]), torch.tensor([1, 3, 2]), torch.tensor([5, 6, 6])
    queries = torch.tensor([[0, 1], [3, 2], [1, 1]])
    for causal, event_id in ((False, None), (True, torch.tensor([4, 9, 7]))):
        module = RecentNeighbors(5, 3, causal=causal)
        state = (module.rows, module.latest, module.num_events)
        slots = 6 if causal else 3
        yield ops.recent_neighbors_clear, (*state, slots)
        yield ops.recent_neighbors_insert, (*state, src, dst, time, event_id, 3, slots, 0, False)
        yield ops.recent_neighbors_lookup, (module.rows, src, time if causal else None, 3, slots)
        yield (
            ops.recent_neighbors_lookup_and_insert,
            (*state, src, dst, time, event_id, queries, 3, slots, 0, False, causal),
        )


def plain_ring() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The benchmark's ring, which has kernels on the CPU alone."""
    if torch.get_default_device().type != "cpu":
        return
    state = PlainRing(5, 3)
    src, dst, time = torch.tensor([0, 3, 3, 1]), torch.tensor([1, 3, 2, 4]), torch.tensor([5, 6, 6, 7])
    yield ops.plain_ring_clear, (state.records, state.oldest)
    for queries in (torch.tensor([[0, 1], [3, 2], [1, 1], [4, 0]]), torch.empty(4, 0, dtype=torch.int64)):
        yield ops.plain_ring_run, (state.records, state.oldest, src, dst, time, queries, 9, 2)


def memory_samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    index = torch.tensor([3, 0, -1, 3])
    table, values, weights = torch.randn(5, 3, dtype=dtype), torch.randn(4, 3, dtype=dtype), torch.randn(4, dtype=dtype)
    yield ops.ordered_scatter_add, (table, index, values, weights)
    yield ops.ordered_scatter_add, (torch.zeros(5, 1, dtype=torch.int64), index, torch.ones_like(index)[:, None], None)
    yield ops.ordered_scatter, (table.clone(), index, values)
    times, events = torch.tensor([5, 1, 2, 5]), torch.tensor([4, 7, 8, 9])
    yield ops.latest_of_node, (index, times, events)
    yield ops.latest_of_node, (index, times, None)
    rows, last, now = torch.randn(5, 3, 4, dtype=dtype), torch.zeros(5, dtype=torch.int64), torch.tensor([9])
    src, dst = torch.tensor([0, 1, 1, 4]), torch.tensor([2, 1, 0, 3])
    yield ops.random_projections_update, (rows, last, now, src, dst, times, 0.1)


def pair_samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Rows that share keys with each other and with themselves, an empty slot and an empty row."""
    keys = torch.tensor([[5, 7, 9, 5], [7, -1, 1 << 40, 9], [5, 5, 5, -1], [-1] * 4])
    codes = torch.tensor([1, 2, 2, 4], dtype=torch.int32)
    z = torch.randn(4, 4, 3).to(dtype).requires_grad_()
    left, right = torch.tensor([0, 0, 2, 3, 1]), torch.tensor([1, 2, 2, 0, 0])
    yield ops.pair_join, (keys, z, codes, left, right)
    dz_joined = torch.randn(5, 8, 3).to(dtype).requires_grad_()
    yield ops.pair_join_backward, (dz_joined, keys, codes, left, right)
    weight, table = torch.randn(5, 3).to(dtype).requires_grad_(), torch.randn(64, 5).to(dtype).requires_grad_()
    for activation in (0, 1):
        yield ops.pair_encode, (keys, z, codes, left, right, weight, table, activation)
        tensors = (torch.randn(5, 5).to(dtype), keys, z.detach(), codes, left, right, weight.detach(), table.detach())
        yield ops.pair_encode_backward, (*tensors, activation, 7)


def ncache_samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """A cache of 5 nodes with 1 + 3 + 2 slots that saw some events, and reads of all of it."""
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    nodes, slots, size = 5, [3, 2], 2
    keys, event_ids, times = (torch.full((nodes, 6), -1) for _ in range(3))
    states = torch.zeros(nodes, 6, size, dtype=dtype)
    cache = (keys, event_ids, times, states)
    src, dst, time, ids = torch.tensor([[0, 1, 2, 3], [1, 2, 0, 3], [3, 3, 8, 9], [0, 1, 2, 3]])
    for first in (0, 2):
        part = slice(first, first + 2)
        rows = ops.ncache_gather(*cache, torch.cat([src[part], dst[part]]))
        ops.ncache_update(*cache, src[part], dst[part], time[part], ids[part], *rows, slots, 0.9, 1)
    states.copy_(torch.randn(states.shape))
    batch = (src, dst, time + 9, ids + 4)
    rows = ops.ncache_gather(*cache, torch.cat([src, dst]))
    yield ops.ncache_update, (*(one.clone() for one in cache), *batch, *rows, slots, 0.9, 1)
    query = torch.tensor([4, 0, 3, 0])
    yield ops.ncache_gather, (*cache, query)
    for edge_width in (3, None):
        tables = [torch.randn(nodes, 2).to(dtype), None if edge_width is None else torch.randn(8, edge_width).to(dtype)]
        shapes = [(2,), (2,), (6, 4 + (edge_width or 0)), (6,), (6, size), (6,)]
        parameters = [torch.randn(shape, dtype=sums) for shape in shapes]
        floats = [states.clone(), *(one for one in tables if one is not None), *parameters]
        for one in floats:
            one.requires_grad_()
        arguments = (*cache[:3], floats[0], query, *tables, *parameters, 2, 0.5)
        yield ops.ncache_read, arguments
        z, *read = (one.detach() for one in ops.ncache_read(*arguments))
        dz = torch.randn(z.shape).to(dtype)
        fixed = [None if one is None else one.detach() for one in (*tables, *parameters)]
        yield ops.ncache_read_backward, (dz, query, *read, *fixed, 2, 0.5, 0b111111111)


def row_set_samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """A graph of five nodes, the last without neighbours; equal ends and a pair that is an edge."""
    graph = (torch.tensor([0, 4, 7, 9, 11, 11]), torch.tensor([0, 1, 2, 3, 0, 2, 3, 0, 1, 0, 1]))
    pairs = (torch.tensor([0, 1, 2, 0, 4]), torch.tensor([1, 1, 3, 2, 0]))
    for mode, exclude, capacity in ((0, False, None), (1, True, 2), (2, False, 1), (0, False, 4)):
        sets = (*graph, *pairs, mode, exclude)
        x, dout = (torch.randn(5, 3).to(dtype).requires_grad_() for _ in range(2))
        weights = None if capacity is None else torch.randn(5, capacity).to(dtype).requires_grad_()
        yield ops.row_set_sum, (x, *sets, weights, 7)
        yield ops.row_set_sum_backward, (dout, *sets, weights, 7)
        if capacity is not None:
            yield ops.row_set_dot, (dout, x, *sets, capacity, 7)
    if dtype != torch.float64:
        yield ops.row_set, (*graph, *pairs, 1, False, 2, 7)
