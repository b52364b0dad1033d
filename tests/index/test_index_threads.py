"""The index ops with several threads, and where their memory ends."""

from __future__ import annotations

import threading

import pytest
import torch

from anabranch.index import (
    IndexStatus,
    bskiplist_empty,
    bskiplist_erase,
    bskiplist_find,
    bskiplist_gather,
    bskiplist_init,
    bskiplist_insert,
    bskiplist_lower_bound,
    bskiplist_range_count,
    bskiplist_validate,
)

both_keys = pytest.mark.parametrize("key_words", [1, 2])


def some_keys(n: int, key_words: int, spread: int) -> torch.Tensor:
    if key_words == 1:
        return torch.randint(-spread, spread, (n,))
    return torch.randint(-spread // 20, spread // 20, (n, 2))


@pytest.mark.cpu
@both_keys
def test_every_number_of_threads_gives_the_same(key_words: int) -> None:
    batches = [some_keys(20_000, key_words, 40_000) for _ in range(4)]
    values, before = torch.arange(20_000), torch.get_num_threads()

    def everything() -> list[torch.Tensor]:
        arena = bskiplist_empty(80_000, key_words=key_words)
        results = [bskiplist_insert(*arena, batches[0], values), bskiplist_insert(*arena, batches[1], values, True)]
        results += [bskiplist_erase(*arena, batches[2]), *bskiplist_find(*arena, batches[3])]
        results += [bskiplist_range_count(*arena, batches[0][:500], batches[1][:500])]
        results += [*bskiplist_lower_bound(*arena, batches[3]), *bskiplist_gather(*arena, batches[0], batches[0], 9000)]
        bskiplist_validate(*arena)
        return results

    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(2)
        assert all(a.equal(b) for a, b in zip(alone, everything(), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.cpu
@both_keys
@pytest.mark.parametrize("threads", [1, 2])
def test_a_full_index_refuses_keys_and_stays_whole(key_words: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        nodes, control = torch.empty(20, 128, dtype=torch.int64), torch.empty(160, dtype=torch.int64)
        bskiplist_init(nodes, control, key_words)
        keys = torch.unique(some_keys(10_000, key_words, 10**7 if key_words == 1 else 10**5), dim=0)
        keys, values = keys[torch.randperm(len(keys))], torch.arange(len(keys))
        status = bskiplist_insert(nodes, control, keys, values)
    finally:
        torch.set_num_threads(before)
    bskiplist_validate(nodes, control)
    refused = status == IndexStatus.REFUSED
    assert 0 < refused.sum() < len(keys)
    found = bskiplist_find(nodes, control, keys)[1]
    assert found.equal(~refused)
    # What is there can still be changed, and erasing makes room again.
    there = keys[~refused]
    assert not bskiplist_insert(nodes, control, there, values[: len(there)], assign=True).any()
    assert bskiplist_erase(nodes, control, there).all()
    assert (bskiplist_insert(nodes, control, keys[refused][:60], values[:60]) != IndexStatus.REFUSED).all()
    bskiplist_validate(nodes, control)


def inside_out(n: int) -> torch.Tensor:
    """Each key between the two before it: leaves fill from the middle."""
    steps = torch.arange(n)
    return torch.where(steps % 2 == 0, steps // 2, n - steps // 2)


@pytest.mark.parametrize("key_words", [1, 2])
@pytest.mark.parametrize("capacity", [0, 1, 61, 3000])
def test_there_is_room_for_capacity_keys_in_any_order(key_words: int, capacity: int) -> None:
    in_order = torch.arange(capacity)
    for order in (in_order, in_order.flip(0), torch.randperm(capacity), inside_out(capacity)):
        arena = bskiplist_empty(capacity, key_words=key_words)
        # One by one: a batch would be sorted.
        for key in order.split(1) if capacity < 100 else order.split(7):
            keys = key if key_words == 1 else torch.stack((key // 50, key), 1)
            assert (bskiplist_insert(*arena, keys, key) == IndexStatus.CHANGED).all()
        bskiplist_validate(*arena)


@pytest.mark.cpu
def test_gather_misses_no_key_that_stays_while_others_write() -> None:
    arena = bskiplist_empty(4000)
    permanent, passing = torch.arange(0, 2000, 2), torch.arange(1, 2000, 2)
    bskiplist_insert(*arena, permanent, permanent)
    first, last = torch.arange(0, 2000, 50), torch.arange(49, 2000, 50)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            bskiplist_insert(*arena, passing, passing)
            bskiplist_erase(*arena, passing)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(150):
            offsets, keys, values = bskiplist_gather(*arena, first, last, 2000)
            end = int(offsets[-1])
            assert keys[:end].equal(values[:end])
            assert (keys[:end].diff() > 0).all()
            assert keys[:end][keys[:end] % 2 == 0].equal(permanent)
            assert not keys[end:].any()
            ranges = torch.repeat_interleave(torch.arange(len(first)), offsets.diff())
            assert ranges.equal(keys[:end] // 50)
    finally:
        done.set()
        writer.join()
    bskiplist_validate(*arena)
