"""A plain model of the last k events: lists of all that ever happened to a node, in Python."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

Entry = tuple[int, int, int]  # neighbor, time, event id


class RecentModel:
    """All entries of every node by (time, event id), equal ones in order of arrival."""

    def __init__(self, k: int, direction: str = "both") -> None:
        self.k, self.direction = k, direction
        self.keys: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.neighbors: dict[int, list[int]] = defaultdict(list)

    def insert(self, src: int, dst: int, time: int, event_id: int) -> None:
        ends = {"both": [(src, dst), (dst, src)], "out": [(src, dst)], "in": [(dst, src)]}[self.direction]
        for node, neighbor in dict.fromkeys(ends):
            keys = self.keys[node]
            at = len(keys) if not keys or keys[-1] <= (time, event_id) else bisect_right(keys, (time, event_id))
            keys.insert(at, (time, event_id))
            self.neighbors[node].insert(at, neighbor)

    def last(self, node: int, before: int | None = None) -> list[Entry]:
        """The last k entries, of those before a time where one is given, with -1 in front."""
        keys = self.keys[node]
        end = len(keys) if before is None else bisect_left(keys, (before, -1))
        begin = max(0, end - self.k)
        found = [(n, *key) for n, key in zip(self.neighbors[node][begin:end], keys[begin:end], strict=True)]
        return [(-1, -1, -1)] * (self.k - len(found)) + found

    def batch(self, events: list[list[int]], queries: list[list[int]], causal: bool) -> list[list[Entry]]:
        """What lookup_and_insert finds: one list for each query of each event (src, dst, time, event id)."""
        found = []
        if not causal:
            found = [self.last(node) for nodes in queries for node in nodes]
        for event, nodes in zip(events, queries, strict=True):
            if causal:
                found += [self.last(node, before=event[2]) for node in nodes]
            self.insert(*event)
        return found


def last_before(events: Tensor, queries: Tensor, bounds: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """For a stream in order `[E, 3]` of src, dst, time, numbered from 0: the last k of a node's events below a number.

    queries int64 `[E, Q]`; bounds `[E]`: the events of row i are those with numbers below bounds[i]. All at once, by a
    search in the entries sorted by (node, number): a second definition of what the ring does one by one.
    """
    size = len(events)
    numbers = torch.arange(size)
    src, dst, time = events.unbind(1)
    two = src != dst
    nodes, neighbors = torch.cat([src, dst[two]]), torch.cat([dst, src[two]])
    number = torch.cat([numbers, numbers[two]])
    keys, order = (nodes * size + number).sort()
    ends = torch.searchsorted(keys, (queries * size + bounds[:, None]).clamp_max(int(keys[-1]) + 1))
    begins = torch.searchsorted(keys, queries * size)
    at = ends[..., None] - k + torch.arange(k)
    missing = at < begins[..., None]
    picked = order[at.clamp(0, len(order) - 1)]
    lists = neighbors[picked], time[number[picked]], number[picked]
    return tuple(one.masked_fill(missing, -1) for one in lists)  # type: ignore[return-value]


def entries(found: tuple[Tensor, Tensor, Tensor]) -> list[list[Entry]]:
    """One list of entries for every query."""
    k = found[0].shape[-1]
    columns = [one.reshape(-1, k).tolist() for one in found]
    return [list(zip(*lists, strict=True)) for lists in zip(*columns, strict=True)]


def college_messages() -> Tensor:
    """UCI's private messages, int64 `[59835, 3]`: src, dst and time in seconds, sorted; skips where there are none."""
    root = Path(__file__).parents[2]
    path = Path(os.environ.get("ANABRANCH_DATA", root.parent / "shared" / "data")) / "uci" / "CollegeMsg.txt"
    if not path.exists():
        pytest.skip(f"{path} is not there; set ANABRANCH_DATA to the folder of the data sets")
    rows = [[int(word) for word in line.split()] for line in path.read_text().splitlines()]
    return torch.tensor(rows, dtype=torch.int64)
