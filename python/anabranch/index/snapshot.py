"""An index as it was at one moment."""

from __future__ import annotations

import operator
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Snapshot(Mapping[Any, Any]):
    """What `BSkipList.snapshot()` returns: an ordered mapping that never changes, on two sorted arrays.

    Looking a key up costs O(log n), positions cost O(1). Safe from any number of threads.

    Args:
        keys: ascending, `[n]`, or `[n, 2]` where `key` is "pair"; taken over.
        values: `[n]`; taken over.
        key, value: the kinds of both, as `BSkipList` names them.
    """

    def __init__(self, keys: np.ndarray, values: np.ndarray, key: str, value: str) -> None:
        self._keys, self._values = keys, values
        self.key, self.value = key, value
        keys.flags.writeable = values.flags.writeable = False

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return _between(self._key_list, 0, len(self), False)

    def __reversed__(self) -> Iterator[Any]:
        return _between(self._key_list, 0, len(self), True)

    def values(self) -> ValuesView[Any]:
        return _Values(self)

    def items(self) -> ItemsView[Any, Any]:
        return _Items(self)

    def __getitem__(self, key: Any) -> Any:
        position = self._find(key)
        if position is None:
            raise KeyError(key)
        return self._values[position].item()

    def __contains__(self, key: object) -> bool:
        return self._find(key) is not None

    def __repr__(self) -> str:
        return f"<Snapshot of {len(self)} keys, key={self.key!r}, value={self.value!r}>"

    def bisect_left(self, key: Any) -> int:
        """How many keys are less than `key`."""
        return self._position(key, "left")

    def bisect_right(self, key: Any) -> int:
        """How many keys are not greater than `key`."""
        return self._position(key, "right")

    bisect = bisect_right

    def irange(
        self,
        minimum: Any = None,
        maximum: Any = None,
        inclusive: tuple[bool, bool] = (True, True),
        reverse: bool = False,
    ) -> Iterator[Any]:
        """Keys from `minimum` to `maximum` in order, both included or not; None is no bound."""
        begin = 0 if minimum is None else self._position(minimum, "left" if inclusive[0] else "right")
        end = len(self) if maximum is None else self._position(maximum, "right" if inclusive[1] else "left")
        return _between(self._key_list, begin, end, reverse)

    def peekitem(self, index: int = -1) -> tuple[Any, Any]:
        """The item at a position, counted from the end where negative. Raises IndexError where there is none."""
        return self._key(index), self._values[index].item()

    def to_tensors(self) -> tuple[Tensor, Tensor]:
        """Copies of the sorted keys, `[n]` or `[n, 2]`, and their values, `[n]`."""
        return torch.from_numpy(self._keys.copy()), torch.from_numpy(self._values.copy())

    def _key(self, index: int) -> Any:
        key = self._keys[index]
        return tuple(key.tolist()) if self.key == "pair" else key.item()

    def _key_list(self, at: slice) -> list[Any]:
        keys = self._keys[at].tolist()
        return [tuple(pair) for pair in keys] if self.key == "pair" else keys

    def _value_list(self, at: slice) -> list[Any]:
        return self._values[at].tolist()

    def _item_list(self, at: slice) -> list[Any]:
        return list(zip(self._key_list(at), self._value_list(at), strict=True))

    def _find(self, key: object) -> int | None:
        try:
            position = self._position(key, "left")
        except (TypeError, ValueError, OverflowError):
            return None
        return position if position < len(self) and self._key(position) == key else None

    def _position(self, key: Any, side: Any) -> int:
        if self.key == "float64":
            number = float(key)
            if number != number:
                raise ValueError("Snapshot: key is NaN, must be a number; drop it or give it a number of its own")
            return int(np.searchsorted(self._keys, number, side))
        if self.key != "pair":
            return _among(self._keys, key, side)
        first, second = key
        begin, end = _among(self._keys[:, 0], first, "left"), _among(self._keys[:, 0], first, "right")
        return begin + _among(self._keys[begin:end, 1], second, side)


class _Values(ValuesView[Any]):
    _mapping: Snapshot

    def __contains__(self, value: object) -> bool:
        return any(value == other for other in self)

    def __iter__(self) -> Iterator[Any]:
        return _between(self._mapping._value_list, 0, len(self), False)

    def __reversed__(self) -> Iterator[Any]:
        return _between(self._mapping._value_list, 0, len(self), True)


class _Items(ItemsView[Any, Any]):
    _mapping: Snapshot

    def __iter__(self) -> Iterator[Any]:
        return _between(self._mapping._item_list, 0, len(self), False)

    def __reversed__(self) -> Iterator[Any]:
        return _between(self._mapping._item_list, 0, len(self), True)


def _between(listed: Callable[[slice], list[Any]], begin: int, end: int, reverse: bool) -> Iterator[Any]:
    """What `listed` gives for the positions from begin to end, some at a time."""
    stretch = 1024
    starts = range(begin, end, stretch)
    for start in reversed(starts) if reverse else starts:
        entries = listed(slice(start, min(start + stretch, end)))
        yield from reversed(entries) if reverse else entries


def _among(keys: np.ndarray, key: Any, side: Any) -> int:
    """Where `key`, any integer, stands among sorted int64 or uint64."""
    number = int(key) if isinstance(key, float) and key.is_integer() else operator.index(key)
    limits = np.iinfo(keys.dtype)
    if number < limits.min:
        return 0
    return len(keys) if number > limits.max else int(np.searchsorted(keys, keys.dtype.type(number), side))
