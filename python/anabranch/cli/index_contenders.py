"""What the index demo asks of a map, and three that answer: ours, sortedcontainers, and arrays sorted anew."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from itertools import islice
from typing import Any, Protocol

import numpy as np

from anabranch.cli.index_corpus import Words
from anabranch.index import BSkipList


class Contender(Protocol):
    """A map from keys to values, both int64. Ranges are half open."""

    name: str

    def build(self, keys: Words, values: Words) -> None:
        """Takes entries on top of those that are there, in no order."""

    def prefix(self, first: int, last: int, limit: int) -> tuple[Any, Any]:
        """Up to `limit` entries of a range, the first ones: keys and values, each a sequence of its own kind."""

    def latest(self, first: int, last: int, count: int) -> list[int]:
        """The last keys of a range, descending."""

    def edit(self, old: Words, new: Words, values: Words) -> None:
        """Takes the old keys away and the new ones in."""

    def memory_bytes(self) -> int:
        """Of all entries, with what is spare between them."""


class Index:
    """The B-skiplist: many threads at once."""

    name = "anabranch"

    def __init__(self) -> None:
        self.map = BSkipList()

    def build(self, keys: Words, values: Words) -> None:
        self.map.insert(keys, values)

    def prefix(self, first: int, last: int, limit: int) -> tuple[Any, Any]:
        return self.map.range(first, last, limit=limit)

    def latest(self, first: int, last: int, count: int) -> list[int]:
        return list(islice(self.map.irange(first, last, inclusive=(True, False), reverse=True), count))

    def edit(self, old: Words, new: Words, values: Words) -> None:
        self.map.erase(old)
        self.map.insert(new, values)

    def memory_bytes(self) -> int:
        return self.map.memory_bytes


class SortedDictionary:
    """sortedcontainers: one thread, one key at a time."""

    name = "sortedcontainers"

    def __init__(self) -> None:
        self.map: Any = importlib.import_module("sortedcontainers").SortedDict()

    def build(self, keys: Words, values: Words) -> None:
        self.map.update(zip(keys.tolist(), values.tolist(), strict=True))

    def prefix(self, first: int, last: int, limit: int) -> tuple[Any, Any]:
        found = list(islice(self.map.irange(first, last, inclusive=(True, False)), limit))
        return found, [self.map[key] for key in found]

    def latest(self, first: int, last: int, count: int) -> list[int]:
        return list(islice(self.map.irange(first, last, inclusive=(True, False), reverse=True), count))

    def edit(self, old: Words, new: Words, values: Words) -> None:
        for key in old.tolist():
            del self.map[key]
        for key, value in zip(new.tolist(), values.tolist(), strict=True):
            self.map[key] = value

    def memory_bytes(self) -> int:
        """Of the dictionary, the integers, and a pointer a key in the sorted lists; their spare room is not counted."""
        integers = sum(map(sys.getsizeof, self.map.keys())) + sum(map(sys.getsizeof, self.map.values()))
        return sys.getsizeof(self.map) + integers + 8 * len(self.map)


class SortedArrays:
    """numpy: a binary search in sorted arrays, which every change makes anew."""

    name = "numpy, rebuilt"

    def __init__(self) -> None:
        self.keys = self.values = np.empty(0, np.int64)

    def build(self, keys: Words, values: Words) -> None:
        keys, values = np.concatenate([self.keys, keys]), np.concatenate([self.values, values])
        order = np.argsort(keys, kind="stable")
        self.keys, self.values = keys[order], values[order]

    def prefix(self, first: int, last: int, limit: int) -> tuple[Any, Any]:
        begin, end = np.searchsorted(self.keys, [first, last])
        stretch = slice(begin, min(end, begin + limit))
        return self.keys[stretch].copy(), self.values[stretch].copy()

    def latest(self, first: int, last: int, count: int) -> list[int]:
        begin, end = np.searchsorted(self.keys, [first, last])
        found: list[int] = self.keys[max(begin, end - count) : end][::-1].tolist()
        return found

    def edit(self, old: Words, new: Words, values: Words) -> None:
        kept = np.ones(len(self.keys), bool)
        kept[np.searchsorted(self.keys, old)] = False
        self.keys, self.values = self.keys[kept], self.values[kept]
        self.build(new, values)

    def memory_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


def contenders() -> list[type[Contender]]:
    """All that this machine has, ours first."""
    if importlib.util.find_spec("sortedcontainers"):
        return [Index, SortedArrays, SortedDictionary]
    return [Index, SortedArrays]
