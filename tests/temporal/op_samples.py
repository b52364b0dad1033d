"""Valid calls of every op of the temporal room: tests/test_every_op.py checks what torch asks of an op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from anabranch.temporal import RecentNeighbors

ops = torch.ops.anabranch


def samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Ops with arguments; the tensors that may get a gradient ask for one."""
    yield from recent_neighbors()
    yield from memory_samples(dtype)


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
