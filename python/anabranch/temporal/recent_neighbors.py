"""`RecentNeighbors`: the last k events of every node of an edge stream, exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from anabranch.core.arguments import call_as
from anabranch.core.library import ops
from anabranch.temporal.recent_rows import RecentEvents, row_words
from anabranch.temporal.whole_state import WholeState, described, has_values, largest_id

_DIRECTIONS = {"both": 0, "out": 1, "in": 2}


class RecentNeighbors(WholeState):
    """The last k events of every node, by (time, event id), whatever the batches they came in.

    Later events have greater times; of equal times, greater ids; of equal ids too, they came later. A self-loop is one
    event of its node. These are the lists that TGN (arXiv 2006.10637, section 3) and TGAT attend to.

    Args:
        num_nodes: rows; nodes are 0 to num_nodes - 1. `grow` adds some.
        k: events to keep for a node.
        direction: an event src -> dst goes to the rows of "both", to that of src alone, which gets dst ("out"), or to
            that of dst alone, which gets src ("in").
        causal: lookups may ask for the events before a time. Rows are then twice as long.
        allow_late: an event may come after others of later times and takes its place among them. Otherwise times must
            not decrease, within a batch and between batches; a decrease raises ValueError on the CPU. On a GPU, where
            the host does not look at values, late events are always taken.
        device: of the buffers.

    State, which goes where the module goes (`.to`, `state_dict`, pickle, deepcopy, `share_memory`):
        rows: int64 `[num_nodes, words]`: neighbors, times and event ids of k events (2k if causal), then the number of
            events of the node. 256 bytes a node for k = 10.
        latest: int64 `[1]`: the newest time so far.
        num_events: int64 `[1]`: how many events were inserted.
        layout: int64 `[3]`: k, the slots of a row and the direction, so that a saved state is not taken for another.

    Results and state are the same bit for bit for every number of threads, and on the CPU and a GPU. No call waits for
    a GPU. Nothing here is differentiable. On a GPU values are not checked: an event with a node out of range is
    as if it were not in the batch, and a lookup of one finds nothing.
    """

    rows: Tensor
    latest: Tensor
    num_events: Tensor
    layout: Tensor

    def __init__(
        self,
        num_nodes: int,
        k: int,
        *,
        direction: Literal["both", "out", "in"] = "both",
        causal: bool = False,
        allow_late: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        op = "RecentNeighbors"
        if num_nodes < 0:
            raise ValueError(f"{op}: num_nodes is {num_nodes}, must be at least 0; give the number of rows")
        if not 1 <= k <= 2**20:
            raise ValueError(f"{op}: k is {k}, must be 1 to 2^20; give the length of a list")
        if direction not in _DIRECTIONS:
            raise ValueError(
                f"{op}: direction is {direction!r}, must be 'both', 'out' or 'in'; say which rows an event goes to"
            )
        self.k = k
        self.direction = direction
        self.causal = causal
        self.allow_late = allow_late
        self._capacity = 2 * k if causal else k
        self._direction = _DIRECTIONS[direction]
        self.register_buffer(
            "rows", torch.empty(num_nodes, row_words(self._capacity), dtype=torch.int64, device=device)
        )
        self.register_buffer("latest", torch.empty(1, dtype=torch.int64, device=device))
        self.register_buffer("num_events", torch.empty(1, dtype=torch.int64, device=device))
        self.register_buffer("layout", torch.tensor([k, self._capacity, self._direction], device=device))
        self.reset()

    @property
    def num_nodes(self) -> int:
        return self.rows.shape[0]

    def forward(self, nodes: Tensor, time: Tensor | None = None) -> RecentEvents:
        """`lookup`."""
        return self.lookup(nodes, time)

    def insert(self, src: Tensor, dst: Tensor, time: Tensor, event_id: Tensor | None = None) -> None:
        """Takes a batch of events, as if they came one by one.

        Args:
            src, dst: int64 `[E]`, nodes.
            time: int64 `[E]`; any numbers, nanoseconds too. They must not decrease unless `allow_late`.
            event_id: int64 `[E]`, at least 0; without it events get the numbers `num_events`, `num_events + 1`, ...

        Raises:
            ValueError: shapes, dtypes or devices that do not fit; on the CPU also nodes without a row, negative ids,
                and times that decrease. Nothing has been written then.

        Cost:
            Reads and writes a row for each end, 256 bytes for k = 10. On a GPU two launches for up to 16384 ends, and
            n^2 / 64 loads for n of them.
        """
        buffers: Any = self._buffers  # not self.rows: Module.__getattr__ takes longer than the op has to spare
        rows = buffers["rows"]
        call_as(
            "insert",
            ops.recent_neighbors_insert,
            rows,
            buffers["latest"],
            buffers["num_events"],
            src,
            dst,
            time,
            event_id,
            self.k,
            self._capacity,
            self._direction,
            self.allow_late,
        )

    def lookup(self, nodes: Tensor, time: Tensor | None = None) -> RecentEvents:
        """The last k events of nodes, or the last k of those strictly before a time.

        Args:
            nodes: int64 `[...]`.
            time: int64 as nodes; only where the module is causal. Exact for times not before the newest event of the
                node; for older times the result is the last k before it of what is still there.

        Returns:
            int64 `[..., k]` each: neighbors, times and event_ids, oldest first, -1 in front where there are fewer.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit; time without `causal`; on the CPU also nodes without
                a row.

        Cost:
            Reads a row and writes 24 * k bytes for each node.
        """
        buffers: Any = self._buffers
        rows = buffers["rows"]
        if time is not None and time.shape != nodes.shape:
            raise ValueError(
                f"lookup: time has shape {tuple(time.shape)}, must be {tuple(nodes.shape)} like nodes; "
                "give each node a time"
            )
        flat_time = None if time is None else time.reshape(-1)
        found = call_as(
            "lookup", ops.recent_neighbors_lookup, rows, nodes.reshape(-1), flat_time, self.k, self._capacity
        )
        if nodes.dim() != 1:
            found = [one.view(*nodes.shape, self.k) for one in found]
        return RecentEvents._make(found)

    def lookup_and_insert(
        self, src: Tensor, dst: Tensor, time: Tensor, queries: Tensor, event_id: Tensor | None = None
    ) -> RecentEvents:
        """`lookup` and `insert` of a batch in one pass.

        Args:
            src, dst, time, event_id: as for `insert`.
            queries: int64 `[E, Q]`: nodes to look up for each event, such as its ends and a negative.

        Returns:
            int64 `[E, Q, k]` each, as from `lookup`: what was there before the batch. Where the module is causal: for
            the queries of event i, the events strictly before time[i], those earlier in the batch included.

        Raises:
            ValueError: as insert and lookup; nothing has been written then.

        Cost:
            Of both, and a row that is looked up and written comes from memory once.
        """
        buffers: Any = self._buffers  # not self.rows: Module.__getattr__ takes longer than the op has to spare
        rows = buffers["rows"]
        found = call_as(
            "lookup_and_insert",
            ops.recent_neighbors_lookup_and_insert,
            rows,
            buffers["latest"],
            buffers["num_events"],
            src,
            dst,
            time,
            event_id,
            queries,
            self.k,
            self._capacity,
            self._direction,
            self.allow_late,
            self.causal,
        )
        return RecentEvents._make(found)

    def degrees(self) -> Tensor:
        """int64 `[num_nodes]`: how many events each node ever had, those lost included; a self-loop is one."""
        return self.rows[:, 3 * self._capacity].clone()

    def reset(self) -> None:
        """Forgets all events."""
        ops.recent_neighbors_clear(self.rows, self.latest, self.num_events, self._capacity)

    def grow(self, num_nodes: int) -> None:
        """Adds nodes without events, up to `num_nodes` in all, by copying the rows.

        Raises:
            ValueError: fewer nodes than there are; rows in shared memory, where other processes would keep the old.
        """
        if num_nodes < self.num_nodes:
            raise ValueError(
                f"grow: num_nodes is {num_nodes}, must be at least {self.num_nodes} as it is; make a new module"
            )
        if num_nodes == self.num_nodes:
            return
        if self.rows.device.type == "cpu" and self.rows.is_shared():
            raise ValueError("grow: the rows are in shared memory, must be private; grow before share_memory()")
        rows = self.rows.new_empty(num_nodes, self.rows.shape[1])
        counters = self.latest.new_empty(2)
        ops.recent_neighbors_clear(rows, counters[:1], counters[1:], self._capacity)
        rows[: self.num_nodes].copy_(self.rows)
        self.rows = rows

    def extra_repr(self) -> str:
        return (
            f"num_nodes={self.num_nodes}, k={self.k}, direction={self.direction!r}, causal={self.causal}, "
            f"allow_late={self.allow_late}"
        )

    def state_problems(self, given: Mapping[str, Any]) -> Iterator[str]:
        problems = list(super().state_problems(given))
        yield from problems
        layout, own, rows = given["layout"], [self.k, self._capacity, self._direction], given["rows"]
        if not problems and has_values(layout) and layout.tolist() != own:
            yield f"layout is {described(layout)}, must be {own}; make the module with k, causal and direction of that"
        elif not problems and (node := largest_id({"rows": rows[:, : self._capacity]}, "rows")) >= self.num_nodes:
            yield f"rows holds node {node}, must be below {self.num_nodes}; the state is damaged"
