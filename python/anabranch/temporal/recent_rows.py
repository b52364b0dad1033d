"""What torch knows of the ops of `RecentNeighbors`: how long rows are, what lookups give, shapes without values.

Tensors of different devices are refused by the kernels, and here where one of them is a meta tensor: torch takes such a
call for a question about shapes. So nothing is looked at before a call, which for a batch of a hundred events would
take a tenth of its time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from anabranch.core.arguments import check_same_device


class RecentEvents(NamedTuple):
    """The last k events of nodes, int64 `[..., k]` each, oldest first; -1 in front where there are fewer.

    Times may be negative: where an entry is missing, `neighbors < 0`.

    Attributes:
        neighbors: the other ends.
        times: of the events.
        event_ids: of the events.
    """

    neighbors: Tensor
    times: Tensor
    event_ids: Tensor


def row_words(capacity: int) -> int:
    """As include/anabranch/temporal/recent_neighbors.hpp has it: three arrays and a count, in whole lines."""
    return (3 * capacity + 1 + 7) // 8 * 8


@torch.library.register_fake("anabranch::recent_neighbors_clear")
def _(rows: Tensor, latest: Tensor, num_events: Tensor, capacity: int) -> None:
    check_same_device("recent_neighbors_clear", "rows", rows, latest=latest, num_events=num_events)


@torch.library.register_fake("anabranch::recent_neighbors_insert")
def _(
    rows: Tensor,
    latest: Tensor,
    num_events: Tensor,
    src: Tensor,
    dst: Tensor,
    time: Tensor,
    event_id: Tensor | None,
    k: int,
    capacity: int,
    direction: int,
    allow_late: bool,
) -> None:
    batch = {"src": src, "dst": dst, "time": time, "event_id": event_id}
    check_same_device("recent_neighbors_insert", "rows", rows, latest=latest, num_events=num_events, **batch)


@torch.library.register_fake("anabranch::recent_neighbors_lookup")
def _(rows: Tensor, nodes: Tensor, time: Tensor | None, k: int, capacity: int) -> tuple[Tensor, ...]:
    check_same_device("recent_neighbors_lookup", "rows", rows, nodes=nodes, time=time)
    return tuple(rows.new_empty(nodes.shape[0], k) for _ in range(3))


@torch.library.register_fake("anabranch::recent_neighbors_lookup_and_insert")
def _(
    rows: Tensor,
    latest: Tensor,
    num_events: Tensor,
    src: Tensor,
    dst: Tensor,
    time: Tensor,
    event_id: Tensor | None,
    queries: Tensor,
    k: int,
    capacity: int,
    direction: int,
    allow_late: bool,
    causal: bool,
) -> tuple[Tensor, ...]:
    batch = {"src": src, "dst": dst, "time": time, "event_id": event_id, "queries": queries}
    op = "recent_neighbors_lookup_and_insert"
    check_same_device(op, "rows", rows, latest=latest, num_events=num_events, **batch)
    return tuple(rows.new_empty(*queries.shape, k) for _ in range(3))
