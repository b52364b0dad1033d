"""BSkipList one key at a time, beside sortedcontainers; what is no key, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle
import random
import runpy
import sys
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import pytest
import torch

from anabranch.index import BSkipList, Snapshot, host

pytestmark = pytest.mark.cpu
SortedDict = pytest.importorskip("sortedcontainers").SortedDict  # .ci/gpu needs no network
LEAST, MOST = -(2**63), 2**63 - 1
KINDS = ("int64", "uint64", "float64", "pair")


def some_keys(kind: str, n: int = 700) -> list[Any]:
    draw = random.Random(n)
    if kind == "pair":
        return [(draw.randrange(-9, 9), draw.choice([LEAST, MOST, draw.randrange(-99, 99)])) for _ in range(n)]
    if kind == "float64":
        return [-math.inf, math.inf, 5e-324, -5e-324, 0.0] + [draw.gauss(0, 1) for _ in range(n)]
    edges = [0, 1, 2**64 - 1, 2**63] if kind == "uint64" else [0, LEAST, MOST, LEAST + 1, MOST - 1]
    return edges + [draw.randrange(5 * n) for _ in range(n)]


@pytest.fixture(params=KINDS)
def both(request: pytest.FixtureRequest) -> tuple[BSkipList, Any]:
    pairs = [(key, position) for position, key in enumerate(some_keys(request.param))]
    return BSkipList(pairs, key=request.param), SortedDict(pairs)


def test_is_an_ordered_mutable_mapping(both: tuple[BSkipList, Any]) -> None:
    index, expected = both
    assert isinstance(index, MutableMapping)
    assert len(index) == len(expected) and index == expected and bool(index) and not BSkipList()
    assert list(index) == list(expected) and list(reversed(index)) == list(reversed(expected))
    assert (
        list(index.items()) == list(expected.items()) and list(reversed(index.items())) == list(expected.items())[::-1]
    )
    assert list(index.values()) == list(expected.values()) and list(index.keys()) == list(expected.keys())
    assert list(reversed(index.values())) == list(expected.values())[::-1]
    assert list(reversed(index.keys())) == list(expected)[::-1] and index.keys() & {next(iter(index))}
    assert index._validate() == ""


def test_keys_are_found_and_erased(both: tuple[BSkipList, Any]) -> None:
    index, expected = both
    for key in list(expected)[::3]:
        assert key in index and index[key] == expected[key] == index.get(key)
        if expected[key] % 2:
            del index[key], expected[key]
            assert key not in index and index.get(key) is None and index.get(key, 7) == 7
            with pytest.raises(KeyError) as error:
                del index[key]
            assert error.value.args == (key,)
        else:
            assert index.pop(key) == expected.pop(key)
            assert index.pop(key, 5) == 5
            with pytest.raises(KeyError):
                index.pop(key)
            assert index.setdefault(key, 3) == expected.setdefault(key, 3) == index.setdefault(key, 4)
    assert index == expected and index._validate() == ""


def test_ranges_and_positions(both: tuple[BSkipList, Any]) -> None:
    index, expected = both
    bounds = [None, *random.Random(1).sample(list(expected), 4), expected.keys()[0], expected.keys()[-1]]
    for minimum in bounds:
        for maximum in bounds:
            for inclusive in ((True, True), (True, False), (False, True), (False, False)):
                wanted = list(expected.irange(minimum, maximum, inclusive))
                assert list(index.irange(minimum, maximum, inclusive)) == wanted
                assert list(index.irange(minimum, maximum, inclusive, reverse=True)) == wanted[::-1]
    for key in bounds[1:]:
        assert index.bisect_left(key) == expected.bisect_left(key)
        assert index.bisect_right(key) == index.bisect(key) == expected.bisect_right(key)
    size = len(expected)
    for position in (0, 1, size // 2, size - 1, -1, -2, -size):
        assert index.peekitem(position) == expected.peekitem(position)
    for position in (size, -size - 1):
        with pytest.raises(IndexError):
            index.peekitem(position)
        with pytest.raises(IndexError):
            index.popitem(position)
    for position in (-1, 0, 17):
        assert index.popitem(position) == expected.popitem(position)
    assert index == expected


def test_positions_far_from_both_ends() -> None:
    keys = torch.arange(0, 40000, 2)
    index = BSkipList((keys, keys))
    assert [index.peekitem(i)[0] for i in (9999, -9999, 18000, 4096, 4095)] == [19998, 20002, 36000, 8192, 8190]


def test_the_empty_index() -> None:
    index = BSkipList()
    assert len(index) == 0 and list(index) == list(reversed(index)) == [] and index == {}
    with pytest.raises(KeyError):
        index.popitem()
    with pytest.raises(IndexError):
        index.peekitem()


def test_copies_and_pickles(both: tuple[BSkipList, Any]) -> None:
    index, expected = both
    copies = [
        index.copy(),
        copy.copy(index),
        copy.deepcopy(index),
        pickle.loads(pickle.dumps(index)),
        BSkipList(key=index.key),
    ]
    copies[-1].update(index)
    for other in copies:
        assert other == index == expected and other.key == index.key and other._validate() == ""
        other[expected.keys()[0]] = -1
    assert index == expected
    index.clear()
    assert len(index) == 0 and index.memory_bytes == 2048


def test_a_snapshot_is_a_sorted_mapping_that_stays(both: tuple[BSkipList, Any]) -> None:
    index, expected = both
    snapshot = index.snapshot()
    index.clear()
    assert isinstance(snapshot, Snapshot) and snapshot == expected and list(snapshot) == list(expected)
    assert list(reversed(snapshot)) == list(expected)[::-1] and len(snapshot) == len(expected)
    values, items = snapshot.values(), snapshot.items()
    assert list(values) == list(expected.values()) and list(items) == list(expected.items())
    assert list(reversed(values)) == list(values)[::-1] and list(reversed(items)) == list(items)[::-1]
    item = snapshot.peekitem(3)
    assert item in items and item[1] in values and (item[0], None) not in items and None not in values
    low, high = expected.keys()[10], expected.keys()[-10]
    for inclusive in ((True, False), (False, True)):
        assert list(snapshot.irange(low, high, inclusive)) == list(expected.irange(low, high, inclusive))
    assert list(snapshot.irange(low, reverse=True)) == list(expected.irange(low, reverse=True))
    assert (
        snapshot.bisect_left(low) == 10
        and snapshot.bisect(low) == 11
        and snapshot.peekitem(-10) == expected.peekitem(-10)
    )
    assert low in snapshot and "a" not in snapshot and None not in snapshot and math.nan not in snapshot
    with pytest.raises(KeyError):
        snapshot["a"]
    keys, _ = snapshot.to_tensors()
    keys[:] = 0
    assert list(snapshot) == list(expected)


def test_equal_numbers_are_one_key() -> None:
    index = BSkipList({1: 2, 2**62: 3})
    assert index[True] == index[1.0] == index[np.int32(1)] == index[torch.tensor(1)] == 2 and float(2**62) in index
    index[np.int64(5)] = np.int64(7)
    assert index[5] == 7
    floats = BSkipList({0.0: 1, 2.0**53: 2}, key="float64", value="float64")
    assert floats[-0.0] == 1 and math.copysign(1, next(iter(floats))) == 1 and floats[2**53] == 2
    assert 2**53 + 1 not in floats and np.float32(0) in floats and floats[0] == 1
    floats[1] = -0.0
    floats[np.float64(3)] = math.nan
    assert math.copysign(1, floats[1]) == -1 and math.isnan(floats[3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "key", ["a", None, 1.5, 2**64, -(2**63) - 1, math.nan, (1,), (1, 2.5), (1, 2**63), [1], 10**400]
)
def test_what_is_no_key_is_not_found_and_not_stored(kind: str, key: Any) -> None:
    index = BSkipList(key=kind)
    if kind == "float64" and isinstance(key, (int, float)) and abs(key) < 10**300:
        return
    assert key not in index and index.get(key, 3) == 3
    with pytest.raises(KeyError):
        index[key]
    with pytest.raises(KeyError):
        del index[key]
    with pytest.raises((TypeError, ValueError), match="key is"):
        index[key] = 1
    with pytest.raises((TypeError, ValueError), match="key is"):
        index.setdefault(key, 1)
    assert len(index) == 0


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda i: i.__setitem__("a", 1), TypeError, "BSkipList: key is 'a', must be an int of 64 bits;"),
        (lambda i: i.__setitem__(1, "a"), TypeError, "BSkipList: value is 'a', must be an int of 64 bits;"),
        (lambda i: i.__setitem__(2**63, 1), ValueError, "key is 9223372036854775808, must be an int of 64 bits;"),
        (lambda i: i.__setitem__(1, 2**63), ValueError, "value is 9223372036854775808, must be"),
        (lambda i: i.__setitem__(1, 1.0), TypeError, "value is 1.0, must be"),
        (lambda i: i.__setitem__(1.0, 1), TypeError, "key is 1.0, must be"),
        (lambda i: i.irange("a"), TypeError, "BSkipList.irange: minimum is 'a', must be"),
        (lambda i: i.irange(None, 2**63), ValueError, "BSkipList.irange: maximum is 9223372036854775808, must be"),
        (lambda i: i.bisect("a"), TypeError, "BSkipList.bisect_right: maximum is 'a', must be"),
        (lambda i: i[1:5:2], ValueError, "BSkipList: the slice's step is 2, must be left out;"),
        (lambda i: i.range(limit=-1), ValueError, "BSkipList.range: limit is -1, must be at least 0;"),
        (lambda i: BSkipList(key="int32"), ValueError, "BSkipList: key is 'int32', must be one of int64, uint64"),
        (
            lambda i: BSkipList(value="uint64"),
            ValueError,
            "BSkipList: value is 'uint64', must be one of int64, float64",
        ),
        (lambda i: BSkipList(max_bytes=100), ValueError, "BSkipList: max_bytes is 100, must be at least 4096;"),
        (lambda i: BSkipList({math.nan: 1}, key="float64"), ValueError, "BSkipList: key is NaN, must be a number;"),
        (lambda i: hash(i), TypeError, "unhashable"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], text: str) -> None:
    index = BSkipList({1: 2})
    with pytest.raises(error) as raised:
        call(index)
    assert text in str(raised.value)
    assert dict(index.items()) == {1: 2}


def test_a_closed_index_says_so() -> None:
    with BSkipList({1: 2}) as index:
        iterator = iter(index.keys())
        assert not index.closed
    assert index.closed and repr(index) == "<BSkipList, closed>"
    assert list(iterator) == [1]
    keys = torch.tensor([1])
    calls: list[Any] = [
        lambda: index[1], lambda: 1 in index, lambda: len(index), lambda: index.get(1), lambda: list(index),
        lambda: index.__setitem__(1, 2), lambda: index.__delitem__(1), lambda: index.find(keys),
        lambda: index.insert(keys, keys),
        lambda: index.erase(keys), lambda: index.lower_bound(keys), lambda: index.range(), lambda: index.snapshot(),
        lambda: index.bulk_load(keys, keys), lambda: index.clear(), lambda: index.memory_bytes, lambda: index.bisect(1),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match="BSkipList: the index is closed, must be open; make a new one"):
            call()
    index.close()


def test_one_key_too_many() -> None:
    index = BSkipList(max_bytes=6 * 1024)
    with pytest.raises(MemoryError, match=r"memory is full at 6144 bytes, must have room .* larger max_bytes"):
        for key in range(1000):
            index[key] = key
    assert list(index) == list(range(len(index))) and 200 < len(index) < 400 and index._validate() == ""
    del index[0]
    larger = index.copy(max_bytes=1 << 20)
    larger.update((torch.arange(1000), torch.arange(1000)))
    assert len(larger) == 1000
    with pytest.raises(MemoryError):
        larger.copy(max_bytes=4096)


@pytest.mark.parametrize(
    "call",
    [lambda index, key: index[key], lambda index, key: index.__setitem__(1, key), lambda index, key: index.irange(key)],
)
def test_a_key_that_closes_the_index_finds_it_closed(call: Any) -> None:
    class Closing:
        def __index__(self) -> int:
            index.close()
            return 1

    index = BSkipList({1: 2})
    with pytest.raises(ValueError, match="the index is closed"):
        call(index, Closing())


def test_without_the_extension_the_class_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anabranch._host", None)
    namespace = runpy.run_path(host.__file__)
    with pytest.raises(ImportError, match=r"without its module _host .* `pip install .`"):
        namespace["BSkipListBase"](0, 0, 100)


def test_not_made_by_init() -> None:
    with pytest.raises(TypeError, match="not initialised"):
        BSkipList.__new__(BSkipList)[1]
