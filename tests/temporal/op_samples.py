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
