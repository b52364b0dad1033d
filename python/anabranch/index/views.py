"""Views of an index that change with it: keys, values and items in order, fetched some at a time."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anabranch.index.bskiplist import BSkipList

KEYS, VALUES, ITEMS = 0, 1, 2
_FIRST, _NEXT = 32, 512


def scan(
    index: BSkipList,
    part: int,
    minimum: Any = None,
    maximum: Any = None,
    inclusive: tuple[bool, bool] = (True, True),
    reverse: bool = False,
) -> Iterator[Any]:
    """Keys, values or items in order. The bounds are looked at now, the index whenever a chunk is used up."""
    first = index._chunk(minimum, maximum, *inclusive, _FIRST, reverse, part)
    return _rest(index, part, minimum, maximum, inclusive, reverse, *first)


def _rest(
    index: BSkipList,
    part: int,
    minimum: Any,
    maximum: Any,
    inclusive: tuple[bool, bool],
    reverse: bool,
    chunk: list[Any],
    last: Any,
) -> Iterator[Any]:
    with_minimum, with_maximum = inclusive
    while True:
        yield from chunk
        if last is None:
            return
        if reverse:
            maximum, with_maximum = last, False
        else:
            minimum, with_minimum = last, False
        chunk, last = index._chunk(minimum, maximum, with_minimum, with_maximum, _NEXT, reverse, part)


class BSkipListKeys(KeysView[Any]):
    _mapping: BSkipList

    def __iter__(self) -> Iterator[Any]:
        return scan(self._mapping, KEYS)

    def __reversed__(self) -> Iterator[Any]:
        return scan(self._mapping, KEYS, reverse=True)


class BSkipListValues(ValuesView[Any]):
    _mapping: BSkipList

    def __contains__(self, value: object) -> bool:
        return any(value == other for other in self)

    def __iter__(self) -> Iterator[Any]:
        return scan(self._mapping, VALUES)

    def __reversed__(self) -> Iterator[Any]:
        return scan(self._mapping, VALUES, reverse=True)


class BSkipListItems(ItemsView[Any, Any]):
    _mapping: BSkipList

    def __iter__(self) -> Iterator[Any]:
        return scan(self._mapping, ITEMS)

    def __reversed__(self) -> Iterator[Any]:
        return scan(self._mapping, ITEMS, reverse=True)
