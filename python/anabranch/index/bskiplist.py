"""BSkipList: an ordered map of 64-bit keys and values for many threads."""

from __future__ import annotations

import os
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any

from torch import Tensor

from anabranch.index import files, views
from anabranch.index.arrays import KEYS, VALUES, is_array
from anabranch.index.batches import BatchedIndex
from anabranch.index.snapshot import Snapshot

_MISSING = object()
_NODE_BYTES = 1024
_ALL = (None, None, True, True)


class BSkipList(BatchedIndex):
    """An ordered `MutableMapping` from 64-bit keys to 64-bit values, with the vocabulary of sortedcontainers.

        index = BSkipList({7: 49, 3: 9})
        index[5] = 25
        list(index.irange(3, 5))                 # [3, 5]
        keys, values = index[3:7]                # tensors, 3 <= key < 7
        values, found = index.find(torch.tensor([3, 4]))

    Args:
        data: a mapping, pairs, or a tuple of arrays (keys, values).
        key: "int64", "uint64", "float64" (from -inf to inf; -0.0 is 0.0; NaN is refused) or "pair" (tuples of two
            int64, ordered by the first; arrays of them are `[n, 2]`).
        value: "int64" or "float64".
        max_bytes: bound of the nodes' memory, in steps of 1024 bytes and from 4096 on; by default the machine's
            memory is the bound. Random keys take about 20 bytes each.

    Raises:
        ValueError: an argument, a key or a value is not what it must be, or the index is closed. Nothing has changed.
        TypeError: a key or value that is stored has another type. One that is looked for is not found, as in a dict.
        MemoryError: `max_bytes` is used up. The index is valid and as it was; a batch says what was applied.

    Any number of threads may use one index at once; each operation on one key is atomic. Iteration is weakly
    consistent: in order, no key twice, and all keys that are there from its beginning to its end; `snapshot()` is
    exact. A fork leaves parent and child with an index each.

    Cost: O(log n) a key; positions but for the ends (`peekitem(i)`, `bisect`) read the leaves before them, O(n / 60).

    After Luo et al., "Bridging Cache-Friendliness and Concurrency: A Locality-Optimized In-Memory B-Skiplist" (ICPP
    2025, arXiv 2507.21492).
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self, data: Any = (), *, key: str = "int64", value: str = "int64", max_bytes: int | None = None
    ) -> None:
        if key not in KEYS:
            raise ValueError(f"BSkipList: key is {key!r}, must be one of {', '.join(KEYS)}; choose the keys' kind")
        if value not in VALUES:
            raise ValueError(
                f"BSkipList: value is {value!r}, must be one of {', '.join(VALUES)}; choose the values' kind"
            )
        if max_bytes is not None and max_bytes < 4 * _NODE_BYTES:
            raise ValueError(f"BSkipList: max_bytes is {max_bytes}, must be at least 4096; give it room for some nodes")
        nodes = 1 << 27 if max_bytes is None else min(max_bytes // _NODE_BYTES, 1 << 32)
        super().__init__(list(KEYS).index(key), list(VALUES).index(value), nodes)
        self.key, self.value, self.max_bytes = key, value, max_bytes
        self.update(data)

    def __iter__(self) -> Iterator[Any]:
        return views.scan(self, views.KEYS)

    def __reversed__(self) -> Iterator[Any]:
        return views.scan(self, views.KEYS, reverse=True)

    def keys(self) -> KeysView[Any]:
        return views.BSkipListKeys(self)

    def values(self) -> ValuesView[Any]:
        return views.BSkipListValues(self)

    def items(self) -> ItemsView[Any, Any]:
        return views.BSkipListItems(self)

    def irange(
        self,
        minimum: Any = None,
        maximum: Any = None,
        inclusive: tuple[bool, bool] = (True, True),
        reverse: bool = False,
    ) -> Iterator[Any]:
        """Keys from `minimum` to `maximum` in order, both included or not; None is no bound."""
        return views.scan(self, views.KEYS, minimum, maximum, inclusive, reverse)

    def bisect_left(self, key: Any) -> int:
        """How many keys are less than `key`. Reads the leaves before it."""
        return self._count("BSkipList.bisect_left", None, key, True, False)

    def bisect_right(self, key: Any) -> int:
        """How many keys are not greater than `key`. Reads the leaves before it."""
        return self._count("BSkipList.bisect_right", None, key, True, True)

    bisect = bisect_right

    def peekitem(self, index: int = -1) -> tuple[Any, Any]:
        """The item at a position, counted from the end where negative.

        The ends cost O(log n), others the leaves before them. Raises IndexError where there is no such item.
        """
        item = self._item(index)
        if item is None:
            raise IndexError(f"BSkipList.peekitem: index {index} is out of range")
        return item

    def popitem(self, index: int = -1) -> tuple[Any, Any]:
        """Removes and returns the item at a position, by default the last one; KeyError where there is none."""
        while (item := self._item(index)) is not None:
            value = self._extract(item[0], _MISSING)
            if value is not _MISSING:
                return item[0], value
        if len(self) == 0:
            raise KeyError("BSkipList.popitem: the index is empty")
        raise IndexError(f"BSkipList.popitem: index {index} is out of range")

    def pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Removes the key and returns its value; without it `default`, or KeyError."""
        value = self._extract(key, default)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def setdefault(self, key: Any, default: Any) -> Any:
        """The key's value; `default`, stored under it, where it had none."""
        while not self._insert("BSkipList.setdefault", key, default):
            value = self.get(key, _MISSING)
            if value is not _MISSING:
                return value
        return default

    def update(self, data: Any = ()) -> None:
        """Assigns what a mapping, pairs, or a tuple of arrays (keys, values) hold; of equal keys the last one stays."""
        if isinstance(data, (BSkipList, Snapshot)) and (data.key, data.value) == (self.key, self.value):
            data = (data.snapshot() if isinstance(data, BSkipList) else data).to_tensors()
        if isinstance(data, tuple) and len(data) == 2 and is_array(data[0]):
            self._write("BSkipList.update", *data, assign=True)
            return
        pairs: Iterable[tuple[Any, Any]] = data.items() if isinstance(data, (Mapping, BSkipList)) else data
        for key, value in pairs:
            self[key] = value

    def clear(self) -> None:
        """Makes the index empty at once and gives its memory back."""
        self._clear()

    def snapshot(self) -> Snapshot:
        """The index as it is now, for reading at leisure. Writers wait while it is copied, 16 or 24 bytes a key."""
        keys, values = self._sorted("BSkipList.snapshot", *_ALL, None, exact=True)
        return Snapshot(keys, values, self.key, self.value)

    def copy(self, *, max_bytes: int | None = None) -> BSkipList:
        """An index of the same keys and values, by default with the same `max_bytes`."""
        return self._loaded(self._content(), self.max_bytes if max_bytes is None else max_bytes)

    def __copy__(self) -> BSkipList:
        return self.copy()

    def __deepcopy__(self, memo: object) -> BSkipList:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), files.to_bytes(self._content()), self.max_bytes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index as it is now to one file, checksummed and renamed into place (files.py has the format).

        Writers wait while it is copied, not while it is written. Raises OSError, `path` being as it was.
        """
        files.save(path, self._content())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, max_bytes: int | None = None) -> BSkipList:
        """The index of a file. Raises OSError, or ValueError for a file that is not intact or too new."""
        content = files.load(path)
        try:
            return cls._loaded(content, max_bytes)
        except ValueError as error:
            raise ValueError(
                f"BSkipList: {os.fspath(path)} is no index, must be intact; look for a copy ({error})"
            ) from None

    @classmethod
    def _loaded(cls, content: files.Content, max_bytes: int | None) -> BSkipList:
        keys, values, key, value = content
        index = cls(key=key, value=value, max_bytes=max_bytes)
        index.bulk_load(keys, values)
        return index

    def _content(self) -> files.Content:
        return *self._sorted("BSkipList.snapshot", *_ALL, None, exact=True), self.key, self.value

    def _slice(self, bounds: slice) -> tuple[Tensor, Tensor]:
        if bounds.step is not None:
            raise ValueError(f"BSkipList: the slice's step is {bounds.step}, must be left out; slice the result")
        return self.range(bounds.start, bounds.stop)

    def _item(self, index: int) -> Any:
        few = 1024
        size = len(self)
        if index >= 0 and size - few <= index < size:
            index -= size
        if index >= 0:
            return self._select(index)
        if index < -few:
            return self._select(size + index) if size + index >= 0 else None
        items, _ = self._chunk(*_ALL, -index, True, views.ITEMS)
        return items[-1] if len(items) == -index else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Mapping, BSkipList)):
            return NotImplemented
        return len(self) == len(other) and dict(self.items()) == dict(other.items())

    def __repr__(self) -> str:
        if self.closed:
            return "<BSkipList, closed>"
        return f"<BSkipList of {len(self)} keys, key={self.key!r}, value={self.value!r}>"

    def __enter__(self) -> BSkipList:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _unpickle(cls: type[BSkipList], data: bytes, max_bytes: int | None) -> BSkipList:
    return cls._loaded(files.from_bytes(data), max_bytes)


MutableMapping.register(BSkipList)
