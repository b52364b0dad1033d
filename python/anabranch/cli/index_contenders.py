"""What the index demo asks of a map, and three that answer: ours, sortedcontainers, and arrays sorted anew."""

from __future__ import annotations

import importlib
import importlib.util
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

    def prefix(self, first: int, last: int, limit: int) -> int:
        """Fetches up to `limit` entries of a range, the first ones; their number."""

    def latest(self, first: int, last: int, count: int) -> list[int]:
        """The last keys of a range, descending."""

    def edit(self, old: Words, new: Words, values: Words) -> None:
        """Takes the old keys away and the new ones in."""


class Index:
    """The B-skiplist: many threads at once."""

    name = "anabranch"

    def __init__(self) -> None:
        self.map = BSkipList()

    def build(self, keys: Words, values: Words) -> None:
        self.map.insert(keys, values)

    def prefix(self, first: int, last: int, limit: int) -> int:
        return len(self.map.range(first, last, limit=limit)[0])

    def latest(self, first: int, last: int, count: int) -> list[int]:
        return list(islice(self.map.irange(first, last, inclusive=(True, False), reverse=True), count))

    def edit(self, old: Words, new: Words, values: Words) -> None:
        self.map.erase(old)
        self.map.insert(new, values)


class SortedDictionary:
    """sortedcontainers: one thread, one key at a time."""

    name = "sortedcontainers"

    def __init__(self) -> None:
        self.map: Any = importlib.import_module("sortedcontainers").SortedDict()

    def build(self, keys: Words, values: Words) -> None:
        self.map.update(zip(keys.tolist(), values.tolist(), strict=True))

    def prefix(self, first: int, last: int, limit: int) -> int:
        found = islice(self.map.irange(first, last, inclusive=(True, False)), limit)
        return len([self.map[key] for key in found])

    def latest(self, first: int, last: int, count: int) -> list[int]:
        return list(islice(self.map.irange(first, last, inclusive=(True, False), reverse=True), count))

    def edit(self, old: Words, new: Words, values: Words) -> None:
        for key in old.tolist():
            del self.map[key]
        for key, value in zip(new.tolist(), values.tolist(), strict=True):
            self.map[key] = value


class SortedArrays:
    """numpy: a binary search in sorted arrays, which every change makes anew."""

    name = "numpy, rebuilt"

    def __init__(self) -> None:
        self.keys = self.values = np.empty(0, np.int64)

    def build(self, keys: Words, values: Words) -> None:
        keys, values = np.concatenate([self.keys, keys]), np.concatenate([self.values, values])
        order = np.argsort(keys, kind="stable")
        self.keys, self.values = keys[order], values[order]

    def prefix(self, first: int, last: int, limit: int) -> int:
        begin, end = np.searchsorted(self.keys, [first, last])
        stretch = slice(begin, min(end, begin + limit))
        return min(len(self.keys[stretch].copy()), len(self.values[stretch].copy()))

    def latest(self, first: int, last: int, count: int) -> list[int]:
        begin, end = np.searchsorted(self.keys, [first, last])
        found: list[int] = self.keys[max(begin, end - count) : end][::-1].tolist()
        return found

    def edit(self, old: Words, new: Words, values: Words) -> None:
        kept = np.ones(len(self.keys), bool)
        kept[np.searchsorted(self.keys, old)] = False
        self.keys, self.values = self.keys[kept], self.values[kept]
        self.build(new, values)


def contenders() -> list[Contender]:
    """All that this machine has, ours first."""
    found: list[Contender] = [Index()]
    if importlib.util.find_spec("sortedcontainers"):
        found.append(SortedDictionary())
    return [*found, SortedArrays()]
