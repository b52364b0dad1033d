"""`bskiplist_*`: an ordered map from keys to values whose memory is two tensors.

`nodes` int64 `[capacity, 128]` and `control` int64 `[160]` hold the whole index, without a pointer: they may be copied,
saved, shared between processes and moved to a GPU. `BSkipListModule` keeps such a pair; these functions are for whoever
keeps it elsewhere. Keys are int64 `[n]`, or `[n, 2]` for an index of two words a key, ordered by the first, then by the
second. Values are int64. Every int64 is a legal key and a legal value. Nothing here has a gradient.

On the CPU any number of threads and processes may call any of these on one index at once: single keys are
linearizable, and a batch is as if its keys came one by one. On a GPU an index takes one call at a time. In a compiled
graph calls keep their order.

Source: Luo, Hao, Wheatman, Pandey, Xu, "Bridging Cache-Friendliness and Concurrency: A Locality-Optimized In-Memory
B-Skiplist", ICPP 2025, arXiv 2507.21492; what differs from it is in include/anabranch/index/tree.hpp.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor

from anabranch.core.library import ops
from anabranch.index.storage import check_tensors


class IndexStatus(enum.IntEnum):
    """What a call that writes says of each key."""

    UNCHANGED = 0  # insert: the key was there already; erase: it was not
    CHANGED = 1  # inserted or erased
    REFUSED = 2  # no memory for another node: the index is as if this key had not been in the batch


def bskiplist_find(nodes: Tensor, control: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The values of keys.

    Args:
        keys: int64 `[n]` or `[n, 2]`, any strides.

    Returns:
        values int64 `[n]`, 0 where the key is not there, and found bool `[n]`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; on the CPU also a control that is not that of nodes.

    Cost:
        About nine cache lines a key from memory, fetched for many keys at once. On the CPU threads share the batch.
    """
    check_tensors("bskiplist_find", nodes, control, keys=keys)
    return ops.bskiplist_find(nodes, control, keys)


def bskiplist_lower_bound(nodes: Tensor, control: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each key the first entry that is not less.

    Args:
        nodes, control, keys: as bskiplist_find.

    Returns:
        found_keys int64 as keys, values int64 `[n]`, and found bool `[n]`; 0 where there is none.

    Raises:
        ValueError: as bskiplist_find.

    Cost:
        As bskiplist_find.
    """
    check_tensors("bskiplist_lower_bound", nodes, control, keys=keys)
    return ops.bskiplist_lower_bound(nodes, control, keys)


def bskiplist_range_count(nodes: Tensor, control: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """How many keys lie in each range `[first, last]`, both ends included; 0 where last is less than first.

    Args:
        first, last: int64 `[n]` or `[n, 2]`, of one shape.

    Returns:
        int64 `[n]`. While others write, every key that is there from beginning to end is counted, and none twice.

    Raises:
        As bskiplist_find.

    Cost:
        A search, and reading the keys of the range: 8 or 16 bytes each, and a line for each leaf.
    """
    check_tensors("bskiplist_range_count", nodes, control, first=first, last=last)
    return ops.bskiplist_range_count(nodes, control, first, last)


def bskiplist_gather(
    nodes: Tensor, control: Tensor, first: Tensor, last: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of each range `[first, last]`, both ends included, one range after another.

    Args:
        first, last: int64 `[n]` or `[n, 2]`, of one shape.
        capacity: entries there is room for.

    Returns:
        offsets int64 `[n + 1]`: range i has the entries `offsets[i] .. offsets[i + 1]`. They are true counts: where
        `offsets[-1]` is above capacity, entries from capacity on were left out.
        keys int64 `[capacity]` or `[capacity, 2]`, values int64 `[capacity]`; 0 past the last entry.
        Each range is as one scan of it: ascending, with every key that is there from beginning to end.

    Raises:
        ValueError: as bskiplist_find; a negative capacity.

    Cost:
        Twice a bskiplist_range_count, and 16 or 24 bytes an entry read and written. Where others write in the ranges
        three times in a row, it makes them wait.
    """
    op = "bskiplist_gather"
    check_tensors(op, nodes, control, first=first, last=last)
    if capacity < 0:
        raise ValueError(f"{op}: capacity is {capacity}, must be at least 0; pass the entries there shall be room for")
    return ops.bskiplist_gather(nodes, control, first, last, capacity)


def bskiplist_insert(nodes: Tensor, control: Tensor, keys: Tensor, values: Tensor, assign: bool = False) -> Tensor:
    """Inserts keys as if one by one: of equal ones the first is inserted.

    Args:
        nodes, control: written in place.
        keys: int64 `[n]` or `[n, 2]`, not in the memory of the index.
        values: int64 `[n]`, likewise.
        assign: whether a key that is there gets the new value; of equal keys the last one's stays.

    Returns:
        int8 `[n]`, an `IndexStatus` for each key: CHANGED if it was inserted, UNCHANGED if it was there, REFUSED where
        nodes are used up. The index stays whole; which keys are refused depends on the threads, all else does not,
        save the places of nodes in memory.

    Raises:
        ValueError: as bskiplist_find; keys or values in the memory of the index.

    Cost:
        A sort of the batch (none if it ascends), a search and up to 16 bytes moved for each key behind it in its leaf.
    """
    check_tensors("bskiplist_insert", nodes, control, keys=keys, values=values)
    return ops.bskiplist_insert(nodes, control, keys, values, assign)


def bskiplist_erase(nodes: Tensor, control: Tensor, keys: Tensor) -> Tensor:
    """Erases keys. Nodes that become nearly empty are merged, and used again by later inserts.

    Args:
        nodes, control, keys: as bskiplist_find.

    Returns:
        int8 `[n]`, an `IndexStatus` for each key: CHANGED if it was erased, UNCHANGED if it was not there or an equal
        one of the batch came first.

    Raises:
        ValueError: as bskiplist_insert.

    Cost:
        As bskiplist_insert.
    """
    check_tensors("bskiplist_erase", nodes, control, keys=keys)
    return ops.bskiplist_erase(nodes, control, keys)


@torch.library.register_fake("anabranch::bskiplist_find")
def _(nodes: Tensor, control: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    n = keys.shape[0]
    return keys.new_empty(n), keys.new_empty(n, dtype=torch.bool)


@torch.library.register_fake("anabranch::bskiplist_lower_bound")
def _(nodes: Tensor, control: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = keys.shape[0]
    return keys.new_empty(keys.shape), keys.new_empty(n), keys.new_empty(n, dtype=torch.bool)


@torch.library.register_fake("anabranch::bskiplist_range_count")
def _(nodes: Tensor, control: Tensor, first: Tensor, last: Tensor) -> Tensor:
    return first.new_empty(first.shape[0])


@torch.library.register_fake("anabranch::bskiplist_gather")
def _(nodes: Tensor, control: Tensor, first: Tensor, last: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    keys = first.new_empty((capacity, *first.shape[1:]))
    return first.new_empty(first.shape[0] + 1), keys, first.new_empty(capacity)


@torch.library.register_fake("anabranch::bskiplist_insert")
def _(nodes: Tensor, control: Tensor, keys: Tensor, values: Tensor, assign: bool) -> Tensor:
    return keys.new_empty(keys.shape[0], dtype=torch.int8)


@torch.library.register_fake("anabranch::bskiplist_erase")
def _(nodes: Tensor, control: Tensor, keys: Tensor) -> Tensor:
    return keys.new_empty(keys.shape[0], dtype=torch.int8)
