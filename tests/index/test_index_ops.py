"""The index ops against a dict: every op, one and two words a key, every instruction set."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

import pytest
import torch

from anabranch import index
from anabranch.index import (
    IndexStatus,
    bskiplist_bulk_load,
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

LEAST, GREATEST = -(2**63), 2**63 - 1
both_keys = pytest.mark.parametrize("key_words", [1, 2])


def as_keys(keys: torch.Tensor) -> list[Any]:
    """Keys as a dict may have them: ints or pairs."""
    listed = keys.tolist()
    return listed if keys.dim() == 1 else [tuple(key) for key in listed]


def some_keys(n: int, key_words: int, spread: int = 300) -> torch.Tensor:
    if key_words == 1:
        return torch.randint(-spread, spread, (n,))
    return torch.randint(-spread // 20, spread // 20, (n, 2))


def inserted(model: dict[Any, int], keys: list[Any], values: list[int], assign: bool) -> list[int]:
    status = []
    for key, value in zip(keys, values, strict=True):
        status.append(IndexStatus.UNCHANGED if key in model else IndexStatus.CHANGED)
        if assign or key not in model:
            model[key] = value
    return [int(one) for one in status]


def erased(model: dict[Any, int], keys: list[Any]) -> list[int]:
    return [int(model.pop(key, None) is not None) for key in keys]


def check_reads(arena: tuple[torch.Tensor, torch.Tensor], model: dict[Any, int], keys: torch.Tensor) -> None:
    """Every op that reads, at `keys` and in the ranges between them."""
    none = 0 if keys.dim() == 1 else (0, 0)
    probes, order = as_keys(keys), sorted(model)
    values, found = bskiplist_find(*arena, keys)
    assert values.tolist() == [model.get(key, 0) for key in probes]
    assert found.tolist() == [key in model for key in probes]

    at = [bisect_left(order, key) for key in probes]
    found_keys, values, found = bskiplist_lower_bound(*arena, keys)
    assert found.tolist() == [i < len(order) for i in at]
    assert as_keys(found_keys) == [order[i] if i < len(order) else none for i in at]
    assert values.tolist() == [model[order[i]] if i < len(order) else 0 for i in at]

    ends = keys.roll(1, 0)
    slices = [order[i : bisect_right(order, end)] for i, end in zip(at, as_keys(ends), strict=True)]
    assert bskiplist_range_count(*arena, keys, ends).tolist() == [len(part) for part in slices]
    entries = [key for part in slices for key in part]
    bounds = [sum(len(part) for part in slices[:i]) for i in range(len(slices) + 1)]
    for capacity in (len(entries) + 3, len(entries) // 2):
        offsets, entry_keys, entry_values = bskiplist_gather(*arena, keys, ends, capacity)
        rest = capacity - len(entries[:capacity])
        assert offsets.tolist() == bounds
        assert as_keys(entry_keys) == entries[:capacity] + [none] * rest
        assert entry_values.tolist() == [model[key] for key in entries[:capacity]] + [0] * rest


@both_keys
def test_random_batches(key_words: int, cpu_isa: str) -> None:
    arena, model = bskiplist_empty(1000, key_words=key_words), dict[Any, int]()
    for step in range(12):
        keys, values = some_keys(90, key_words), torch.randint(-(2**40), 2**40, (90,))
        if step % 4 == 3:
            assert bskiplist_erase(*arena, keys).tolist() == erased(model, as_keys(keys))
        else:
            status = bskiplist_insert(*arena, keys, values, assign=step % 2 == 0)
            assert status.tolist() == inserted(model, as_keys(keys), values.tolist(), step % 2 == 0)
        bskiplist_validate(*arena)
        check_reads(arena, model, some_keys(40, key_words, 330))


@both_keys
def test_keys_at_both_ends_of_int64(key_words: int) -> None:
    words = torch.tensor([LEAST, LEAST + 1, -1, 0, 1, GREATEST - 1, GREATEST])
    keys = words if key_words == 1 else torch.cartesian_prod(words, words)
    arena, model = bskiplist_empty(60, key_words=key_words), dict[Any, int]()
    values = keys.reshape(len(keys), -1)[:, -1].contiguous()  # values are any int64 too
    status = bskiplist_insert(*arena, keys.flip(0), values.flip(0))
    assert status.tolist() == inserted(model, as_keys(keys.flip(0)), values.flip(0).tolist(), False)
    check_reads(arena, model, keys)
    assert bskiplist_range_count(*arena, keys[:1], keys[-1:]).item() == len(keys)
    assert (bskiplist_erase(*arena, keys) == IndexStatus.CHANGED).all()
    assert bskiplist_range_count(*arena, keys[:1], keys[-1:]).item() == 0


def test_of_equal_keys_in_a_batch_the_first_is_inserted_and_the_last_assigned() -> None:
    keys, values = torch.tensor([4, 2, 4, 2, 4]), torch.arange(1, 6)
    for assign, wanted in ((False, [2, 1]), (True, [4, 5])):
        arena = bskiplist_empty(10)
        assert bskiplist_insert(*arena, keys, values, assign).tolist() == [1, 1, 0, 0, 0]
        assert bskiplist_find(*arena, torch.tensor([2, 4]))[0].tolist() == wanted
        assert bskiplist_erase(*arena, keys).tolist() == [1, 1, 0, 0, 0]


@both_keys
def test_empty_batches(key_words: int) -> None:
    none = torch.empty((0, 2)[:key_words], dtype=torch.int64)
    values = torch.empty(0, dtype=torch.int64)
    arena = bskiplist_empty(10, key_words=key_words)
    bskiplist_bulk_load(*arena, none, values)
    for _ in range(2):  # on an empty index, then on one with a key
        assert bskiplist_insert(*arena, none, values).shape == bskiplist_erase(*arena, none).shape == (0,)
        assert [part.shape for part in bskiplist_find(*arena, none)] == [(0,), (0,)]
        assert [part.shape for part in bskiplist_lower_bound(*arena, none)] == [none.shape, (0,), (0,)]
        assert bskiplist_range_count(*arena, none, none).shape == (0,)
        offsets, keys, found = bskiplist_gather(*arena, none, none, 2)
        assert offsets.tolist() == [0]
        assert not keys.any()
        assert not found.any()
        bskiplist_insert(*arena, torch.ones((1, 2)[:key_words], dtype=torch.int64), torch.ones(1, dtype=torch.int64))


@both_keys
def test_bulk_load_is_as_inserting(key_words: int) -> None:
    keys = torch.unique(some_keys(900, key_words, 10**6 if key_words == 1 else 2000), dim=0)
    values = torch.randint(-99, 99, (len(keys),))
    arena = bskiplist_empty(len(keys), key_words=key_words)
    bskiplist_bulk_load(*arena, keys, values)
    bskiplist_validate(*arena)
    check_reads(arena, dict(zip(as_keys(keys), values.tolist(), strict=True)), keys[::17])


@both_keys
def test_any_strides(key_words: int) -> None:
    keys = torch.stack((some_keys(50, key_words),) * 3, -1)[..., 1]
    values = torch.arange(100)[::2]
    assert not keys.is_contiguous()
    assert not values.is_contiguous()
    arena, model = bskiplist_empty(100, key_words=key_words), dict[Any, int]()
    assert bskiplist_insert(*arena, keys, values).tolist() == inserted(model, as_keys(keys), values.tolist(), False)
    check_reads(arena, model, keys)
    assert bskiplist_erase(*arena, keys).tolist() == erased(model, as_keys(keys))


def test_init_makes_an_index_of_any_memory() -> None:
    nodes, control = torch.full((20, 128), -1), torch.full((160,), -1)
    bskiplist_init(nodes, control, 2)
    bskiplist_validate(nodes, control)
    keys = torch.stack((torch.arange(300), -torch.arange(300)), 1)
    assert bskiplist_insert(nodes, control, keys, keys[:, 0]).all()
    assert bskiplist_find(nodes, control, keys)[0].equal(keys[:, 0])


def test_float_keys() -> None:
    numbers = torch.tensor([-torch.inf, -1e300, -1.5, -5e-324, 0.0, 5e-324, 2.0, 1e300, torch.inf], dtype=torch.float64)
    keys = index.float_keys(numbers)
    assert (keys.diff() > 0).all()
    assert index.float_keys_inverse(keys).equal(numbers)
    assert index.float_keys(torch.tensor(-0.0, dtype=torch.float64)) == index.float_keys(numbers[4])
    compiled = torch.compile(index.float_keys, fullgraph=True, backend="aot_eager")
    assert compiled(numbers).equal(keys)
