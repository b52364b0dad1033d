"""BSkipList from many Python threads: no lost write, the GIL let go, scans while others write, close and fork."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from anabranch.index import BSkipList

pytestmark = pytest.mark.cpu


def run_threads(*bodies: Callable[[], None]) -> None:
    """Runs them to their end, and raises what one of them raised."""
    errors: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextmanager
def writers(index: BSkipList, count: int = 2) -> Iterator[None]:
    """Meanwhile threads insert and erase odd keys, in batches and one by one; a key's value is its negative."""
    stop = threading.Event()

    def write(seed: int) -> None:
        draw = random.Random(seed)
        while not stop.is_set():
            keys = torch.randint(0, 5000, (3000,), generator=torch.Generator().manual_seed(draw.randrange(99))) * 2 + 1
            index.insert(keys, -keys)
            for key in keys[:100].tolist():
                index.pop(key, None)
                index[key] = -key
            index.erase(keys)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def even() -> BSkipList:
    keys = torch.arange(0, 10000, 2)
    return BSkipList((keys, -keys))


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_no_write_is_lost() -> None:
    index = BSkipList()
    inserted = [0] * 4

    def write(thread: int) -> None:
        draw = random.Random(thread)
        for _ in range(1500):
            key = draw.randrange(1000)
            inserted[thread] += index._insert("BSkipList", key, key)
            index[draw.randrange(1000, 2000) * 4 + thread] = thread
            if draw.random() < 0.3:
                inserted[thread] -= index.pop(draw.randrange(1000), None) is not None

    run_threads(*(lambda thread=thread: write(thread) for thread in range(4)))
    shared = list(index.irange(0, 999))
    assert len(shared) == sum(inserted) and all(index[key] == key for key in shared)
    assert all(value == key % 4 for key, value in index.items() if key >= 4000)
    assert len(index) == len(list(index)) and index._validate() == ""


def test_popitem_gives_each_item_to_one_thread() -> None:
    keys = torch.arange(3000)
    index = BSkipList((keys, keys))
    taken: list[list[int]] = [[], [], []]

    def take(mine: list[int], end: int) -> None:
        while True:
            try:
                mine.append(index.popitem(end)[0])
            except KeyError:
                return

    run_threads(*(lambda mine=mine, end=end: take(mine, end) for mine, end in zip(taken, (0, -1, 0), strict=True)))
    assert sorted(taken[0] + taken[1] + taken[2]) == keys.tolist()


KEYS = np.random.default_rng(0).permutation(200_000)
MORE = KEYS + 200_000
ORDERED = np.arange(1_000_000)
ALL = (None, None, True, True)
# What the public calls do besides lets the GIL go here and there, in numpy.
BATCHES = {
    "insert": lambda index: index._insert_batch("", MORE, KEYS, False, np.empty(len(KEYS), np.uint8), 1),
    "find": lambda index: index._find("", KEYS, np.empty_like(KEYS), np.empty(len(KEYS), bool), 1),
    "lower_bound": lambda index: index._lower_bound(
        "", KEYS, np.empty_like(KEYS), np.empty_like(KEYS), np.empty(len(KEYS), bool), 1
    ),
    "erase": lambda index: index._erase_batch("", KEYS, np.empty(len(KEYS), np.uint8), 1),
    "range": lambda index: index._collect("", *ALL, 2**62, False) and None,
    "snapshot": lambda index: index._collect("", *ALL, 2**62, True) and None,
    "count": lambda index: index._count("", *ALL) and None,
    "select": lambda index: index._select(180_000) and None,
    "bulk_load": lambda index: BSkipList()._bulk_load("", ORDERED, ORDERED, 1),
}


@pytest.mark.parametrize("operation", BATCHES)
def test_others_go_on_during_a_batch(operation: str) -> None:
    index = BSkipList((KEYS, KEYS))
    turns, stop = [0], threading.Event()

    def turn() -> None:
        while not stop.is_set():
            turns[0] += 1
            time.sleep(1e-5)

    thread = threading.Thread(target=turn)
    # Nobody takes the GIL away from a thread for so long: the other one only runs if the call lets it go.
    sys.setswitchinterval(100)
    thread.start()
    before = turns[0]
    # A short call may end before the other thread has a processor.
    others_ran = any(BATCHES[operation](index) or turns[0] > before for _ in range(200))
    stop.set()
    thread.join()
    assert others_ran


def test_scans_while_others_write(even: BSkipList) -> None:
    permanent = list(range(0, 10000, 2))
    with writers(even):
        for _ in range(5):
            for found in (list(even), list(reversed(even))[::-1], even.range()[0].tolist()):
                assert found == sorted(set(found)) and [key for key in found if key % 2 == 0] == permanent
            assert all(value == -key for key, value in even.items())
            assert even.find(torch.tensor(permanent))[1].all()
    assert even._validate() == ""


def test_snapshots_are_of_one_moment() -> None:
    """Each key follows the one before it, so a snapshot is the beginning of a sequence and one stretch of it."""
    index = BSkipList()
    stop = threading.Event()

    def slide() -> None:
        front = 0
        while not stop.is_set():
            front += 1
            index[front] = front
            index.pop(front - 500, None)

    def look() -> None:
        try:
            for _ in range(60):
                snapshot = index.snapshot()
                keys = list(snapshot)
                assert keys == list(range(keys[0], keys[-1] + 1)) if keys else True
                assert len(keys) <= 501 and list(snapshot.values()) == keys
        finally:
            stop.set()

    run_threads(slide, look)


def test_close_while_others_are_inside() -> None:
    for attempt in range(8):
        keys = torch.arange(20_000)
        index = BSkipList((keys, keys))
        started = threading.Barrier(4)

        def use(operation: Callable[[], object], started: threading.Barrier = started) -> None:
            started.wait()
            with pytest.raises(ValueError, match="the index is closed"):
                while True:
                    operation()

        def close(index: BSkipList = index, attempt: int = attempt, started: threading.Barrier = started) -> None:
            started.wait()
            time.sleep(0.002 * attempt)
            index.close()

        run_threads(
            close,
            lambda index=index, keys=keys, use=use: use(lambda: index.insert(keys, keys)),
            lambda index=index, use=use: use(lambda: sum(index)),
            lambda index=index, keys=keys, use=use: use(lambda: (index.get(5), index.find(keys))),
        )
        assert index.closed


def test_clear_while_others_write(even: BSkipList) -> None:
    with writers(even):
        for _ in range(20):
            even.clear()
            assert all(key % 2 for key in even)
    assert even._validate() == ""


def test_save_while_others_write(even: BSkipList, tmp_path: os.PathLike[str]) -> None:
    with writers(even):
        for _ in range(5):
            even.save(os.path.join(tmp_path, "index"))
            loaded = BSkipList.load(os.path.join(tmp_path, "index"))
            assert [key for key in loaded if key % 2 == 0] == list(range(0, 10000, 2))


def test_fork_while_others_write(even: BSkipList) -> None:
    other = BSkipList({1: 1})
    with writers(even, 3):
        for _ in range(15):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = child_checks(even, other)
                finally:
                    os._exit(code)
            deadline = time.monotonic() + 20
            while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.001)
            if ended == (0, 0):
                os.kill(child, 9)
                os.waitpid(child, 0)
            assert ended == (child, 0), "a child hung" if ended == (0, 0) else "a child found its index damaged"
            assert even.find(torch.arange(0, 10000, 2))[1].all()
    assert even._validate() == "" and other == {1: 1}


def child_checks(even: BSkipList, other: BSkipList) -> int:
    """In a child, where no other thread is: the index is valid, and all of its calls come to an end."""
    if even._validate() or other._validate():
        return 2
    keys = list(even.snapshot())
    if len(keys) != len(even) or [key for key in keys if key % 2 == 0] != list(range(0, 10000, 2)):
        return 3
    even[-5] = other[-5] = 7
    more = torch.arange(20001, 26001)
    even.insert(more, more)
    if not even.find(more)[1].all() or even.pop(-5) != 7 or not even.erase(more).all() or even._validate():
        return 4
    even.close()
    return 0
