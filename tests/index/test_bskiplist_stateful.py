"""Sequences of operations that hypothesis chooses, beside sortedcontainers: small key ranges, and the ends of int64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from anabranch.index import BSkipList

pytestmark = pytest.mark.cpu
SortedDict = pytest.importorskip("sortedcontainers").SortedDict  # .ci/gpu needs no network
LEAST, MOST = -(2**63), 2**63 - 1
INTS = st.one_of(st.integers(-150, 150), st.integers(LEAST, LEAST + 3), st.integers(MOST - 3, MOST))
VALUES = st.integers(LEAST, MOST)


class Comparison(RuleBasedStateMachine):
    """Subclasses say what keys are, and what becomes of many integers as keys."""

    kind = "int64"

    def __init__(self) -> None:
        super().__init__()
        self.index, self.expected = BSkipList(key=self.kind), SortedDict()

    def key(self, number: int) -> Any:
        return number

    def arrays(self, begin: int, count: int, step: int) -> tuple[list[Any], np.ndarray]:
        keys = [self.key(begin + step * i) for i in range(count)]
        return keys, np.array(keys, np.int64 if self.kind != "float64" else np.float64)

    @rule(number=INTS, value=VALUES)
    def assign(self, number: int, value: int) -> None:
        self.index[self.key(number)] = self.expected[self.key(number)] = value

    @rule(number=INTS, value=VALUES)
    def set_default(self, number: int, value: int) -> None:
        key = self.key(number)
        assert self.index.setdefault(key, value) == self.expected.setdefault(key, value)

    @rule(number=INTS)
    def pop(self, number: int) -> None:
        key = self.key(number)
        assert (key in self.index) == (key in self.expected)
        assert self.index.pop(key, None) == self.expected.pop(key, None)

    @rule(last=st.booleans())
    def pop_item(self, last: bool) -> None:
        if self.expected:
            assert self.index.popitem(-last) == self.expected.popitem(-last)

    @rule(
        begin=st.integers(-150, 150),
        count=st.integers(1, 250),
        step=st.sampled_from([-3, -1, 1, 2]),
        assign=st.booleans(),
    )
    def insert_many(self, begin: int, count: int, step: int, assign: bool) -> None:
        keys, array = self.arrays(begin, count, step)
        values = np.arange(count) + begin
        if assign:
            self.index.update((array, values))
            self.expected.update(zip(keys, values.tolist(), strict=True))
            return
        inserted = [key not in self.expected for key in keys]
        assert self.index.insert(array, values).tolist() == inserted
        for key, value in zip(keys, values.tolist(), strict=True):
            self.expected.setdefault(key, value)

    @rule(begin=st.integers(-150, 150), count=st.integers(1, 250), step=st.sampled_from([-1, 1, 2]))
    def erase_many(self, begin: int, count: int, step: int) -> None:
        keys, array = self.arrays(begin, count, step)
        erased = [self.expected.pop(key, None) is not None for key in keys]
        assert self.index.erase(array).tolist() == erased

    @rule(numbers=st.lists(INTS, min_size=2, max_size=2), inclusive=st.tuples(st.booleans(), st.booleans()))
    def look_between(self, numbers: list[int], inclusive: tuple[bool, bool]) -> None:
        low, high = sorted(self.key(number) for number in numbers)
        wanted = list(self.expected.irange(low, high, inclusive))
        assert list(self.index.irange(low, high, inclusive)) == wanted
        assert list(self.index.irange(low, high, inclusive, reverse=True)) == wanted[::-1]
        assert self.index.range(low, high, inclusive)[1].tolist() == [self.expected[key] for key in wanted]
        assert self.index.bisect_left(low) == self.expected.bisect_left(low)
        assert self.index.bisect_right(high) == self.expected.bisect_right(high)

    @rule()
    def reload(self) -> None:
        self.index = self.index.copy()

    @invariant()
    def is_the_same(self) -> None:
        assert len(self.index) == len(self.expected)
        assert list(self.index.items()) == list(self.expected.items())
        assert self.index._validate() == ""


class FloatComparison(Comparison):
    kind = "float64"

    def key(self, number: int) -> float:
        return number / 8


class PairComparison(Comparison):
    kind = "pair"

    def key(self, number: int) -> tuple[int, int]:
        return (number, -1) if abs(number) > 1000 else (number // 7, number % 7)


TestIntegers, TestFloats, TestPairs = (machine.TestCase for machine in (Comparison, FloatComparison, PairComparison))
TestIntegers.settings = TestFloats.settings = TestPairs.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None
)
