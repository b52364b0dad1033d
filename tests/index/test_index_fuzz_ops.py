"""The index ops on arbitrary calls: right against a dict, and never worse than a ValueError on damaged memory."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.index import IndexStatus, bskiplist_empty, bskiplist_insert, bskiplist_validate

ops = torch.ops.anabranch
pytestmark = pytest.mark.cpu
LEAST, GREATEST = -(2**63), 2**63 - 1
fuzz = partial(settings, deadline=None, derandomize=True)
word = st.integers(-8, 8) | st.integers(-300, 300) | st.sampled_from([LEAST, LEAST + 1, GREATEST - 1, GREATEST])
any_word = st.integers(LEAST, GREATEST)


def tensor_of(keys: list[Any], key_words: int) -> torch.Tensor:
    return torch.tensor(keys, dtype=torch.int64).reshape((len(keys), 2)[:key_words])


def listed(keys: torch.Tensor) -> list[Any]:
    return keys.tolist() if keys.dim() == 1 else [tuple(key) for key in keys.tolist()]


def batches(key: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Of keys as they come, or many side by side: leaves must split and merge."""
    run = st.builds(lambda start, n, step: (start, n, step), st.integers(-300, 300), st.integers(0, 200), st.just(1))
    return st.lists(key, max_size=30) | run


def keys_of(batch: Any, key_words: int) -> list[Any]:
    if isinstance(batch, list):
        return batch
    numbers = range(batch[0], batch[0] + batch[1], batch[2])
    return list(numbers) if key_words == 1 else [(number // 40, number) for number in numbers]


@fuzz(max_examples=150)
@given(st.integers(1, 2), st.integers(2, 40), st.data())
def test_calls_against_a_dict(key_words: int, rows: int, data: st.DataObject) -> None:
    nodes, control = torch.empty(rows, 128, dtype=torch.int64), torch.empty(160, dtype=torch.int64)
    ops.bskiplist_init(nodes, control, key_words)
    arena, model = (nodes, control), dict[Any, int]()
    key = word if key_words == 1 else st.tuples(word, word)
    for _ in range(data.draw(st.integers(1, 6))):
        keys = keys_of(data.draw(batches(key)), key_words)
        given_keys = tensor_of(keys, key_words)
        op = data.draw(st.sampled_from(["insert", "assign", "insert", "erase", "bulk_load"]))
        values = [data.draw(any_word)] * len(keys) if len(keys) > 5 else [data.draw(any_word) for _ in keys]
        given_values = torch.tensor(values, dtype=torch.int64)
        if op == "erase":
            wanted = [int(model.pop(one, None) is not None) for one in keys]
            assert ops.bskiplist_erase(*arena, given_keys).tolist() == wanted
        elif op == "bulk_load":
            load(arena, model, given_keys, given_values)
        else:
            status = ops.bskiplist_insert(*arena, given_keys, given_values, op == "assign").tolist()
            for one, value, said in zip(keys, values, status, strict=True):
                assert said in (
                    (IndexStatus.UNCHANGED,) if one in model else (IndexStatus.CHANGED, IndexStatus.REFUSED)
                )
                if said == IndexStatus.CHANGED or (op == "assign" and one in model):
                    model[one] = value
        bskiplist_validate(*arena)
    assert_same(arena, model, data.draw(st.lists(key, min_size=1, max_size=12)), data.draw(st.integers(0, 99)))


def load(
    arena: tuple[torch.Tensor, torch.Tensor], model: dict[Any, int], keys: torch.Tensor, values: torch.Tensor
) -> None:
    """Loads all of it or, with a ValueError, nothing; it must load where the index was never used and has the room."""
    pairs = listed(keys)
    ascends = all(a < b for a, b in pairwise(pairs))
    try:
        ops.bskiplist_bulk_load(*arena, keys, values)
    except ValueError:
        leaf_keys = 60 // keys.dim() if keys.dim() == 1 else 40
        assert model or not ascends or arena[1][8] > 2 or len(pairs) > leaf_keys
    else:
        assert ascends
        assert not model
        model.update(zip(pairs, values.tolist(), strict=True))


def assert_same(
    arena: tuple[torch.Tensor, torch.Tensor], model: dict[Any, int], probes: list[Any], capacity: int
) -> None:
    order, keys = sorted(model), tensor_of(probes, arena[1][1].item())
    values, found = ops.bskiplist_find(*arena, keys)
    assert found.tolist() == [one in model for one in probes]
    assert values.tolist() == [model.get(one, 0) for one in probes]
    found_keys, values, found = ops.bskiplist_lower_bound(*arena, keys)
    at = [bisect_left(order, one) for one in probes]
    assert found.tolist() == [i < len(order) for i in at]
    there = [order[i] for i in at if i < len(order)]
    assert listed(found_keys[found]) == there
    assert values[found].tolist() == [model[one] for one in there]
    ends = probes[1:] + probes[:1]
    parts = [order[i : bisect_right(order, end)] for i, end in zip(at, ends, strict=True)]
    given_ends = tensor_of(ends, keys.dim())
    assert ops.bskiplist_range_count(*arena, keys, given_ends).tolist() == [len(part) for part in parts]
    entries = [one for part in parts for one in part]
    offsets, entry_keys, entry_values = ops.bskiplist_gather(*arena, keys, given_ends, capacity)
    assert offsets.tolist() == [sum(map(len, parts[:i])) for i in range(len(parts) + 1)]
    count = min(capacity, len(entries))
    assert listed(entry_keys[:count]) == entries[:count]
    assert entry_values.tolist() == [model[one] for one in entries[:count]] + [0] * (capacity - count)


def some_index(key_words: int) -> tuple[torch.Tensor, torch.Tensor]:
    arena = bskiplist_empty(500, key_words=key_words)
    keys = torch.arange(0, 900, 3)
    keys = keys if key_words == 1 else torch.stack((keys // 50, keys), 1)
    bskiplist_insert(*arena, keys, torch.arange(300))
    return arena


def every_call(arena: tuple[torch.Tensor, torch.Tensor], key_words: int) -> int:
    """Calls each op; how many accepted the memory. Anything but an answer or a ValueError is a failure."""
    keys = torch.arange(-6, 900, 31)
    keys = keys if key_words == 1 else torch.stack((keys // 50, keys), 1)
    values = torch.arange(len(keys))
    accepted = 0
    for op, arguments in (
        (ops.bskiplist_find, (keys,)),
        (ops.bskiplist_lower_bound, (keys,)),
        (ops.bskiplist_range_count, (keys, keys + 40)),
        (ops.bskiplist_gather, (keys, keys + 40, 60)),
        (ops.bskiplist_insert, (keys, values, True)),
        (ops.bskiplist_erase, (keys,)),
        (ops.bskiplist_bulk_load, (keys, values)),
    ):
        try:
            op(*arena, *arguments)
        except ValueError:
            continue
        accepted += 1
    return accepted


@fuzz(max_examples=150)
@given(st.integers(1, 2), st.sampled_from([0, 1, 2, 3, 8, 16]), any_word | word)
def test_words_of_control_that_lead_out_of_memory(key_words: int, at: int, value: int) -> None:
    nodes, control = some_index(key_words)
    before, used = int(control[at]), int(control[8])
    control[at] = value
    is_sound = value == before
    if at == 8:
        is_sound = 2 <= value <= len(nodes)
    elif at == 16:
        is_sound = value % 2**32 < used
    if not is_sound:
        assert every_call((nodes, control), key_words) == 0
    elif value == before:
        assert every_call((nodes, control), key_words) == 6  # all but bulk_load
    # What is left is a number of nodes that could be true: only bskiplist_validate can tell.


@fuzz(max_examples=60)
@given(st.integers(1, 2), st.randoms(use_true_random=False))
def test_a_control_of_random_words_is_refused(key_words: int, random: Any) -> None:
    nodes, control = some_index(key_words)
    control.copy_(torch.tensor([random.randrange(LEAST, GREATEST) for _ in range(160)]))
    assert every_call((nodes, control), key_words) == 0
    with pytest.raises(ValueError, match="control is not that of an index"):
        bskiplist_validate(nodes, control)


@fuzz(max_examples=100)
@given(st.integers(1, 2), st.lists(st.tuples(st.integers(0, 99), st.integers(8, 127), any_word), max_size=5))
def test_leaves_of_any_keys_are_answered(key_words: int, changes: list[tuple[int, int, int]]) -> None:
    """Links are believed (bskiplist_validate is for those); keys and values may be anything."""
    arena = some_index(key_words)
    used = int(arena[1][8])
    for node, at, value in changes:
        if 0 < node < used and int(arena[0][node, 1]) >> 32 == 0:
            arena[0][node, at] = value
    assert every_call(arena, key_words) == 6  # all but bulk_load


@fuzz(max_examples=150)
@given(st.integers(1, 2), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 127), any_word | word), max_size=4))
def test_validate_looks_at_any_memory(key_words: int, changes: list[tuple[int, int, int]]) -> None:
    nodes, control = some_index(key_words)
    for node, at, value in changes:
        if node < len(nodes):
            nodes[node, at] = value
    try:
        bskiplist_validate(nodes, control)
    except ValueError:
        assert changes
    else:
        every_call((nodes, control), key_words)  # what is whole can be used


@fuzz(max_examples=60)
@given(st.integers(1, 2), st.integers(0, 2**32))
def test_validate_looks_at_random_memory(key_words: int, seed: int) -> None:
    nodes, control = some_index(key_words)
    generator = torch.Generator().manual_seed(seed)
    nodes.copy_(torch.randint(LEAST, GREATEST, nodes.shape, generator=generator))
    if seed % 2:
        nodes[:, 0] = 0
        nodes[:, 1] = torch.randint(0, 40, (len(nodes),), generator=generator)
        nodes[:, 2] = torch.randint(0, len(nodes), (len(nodes),), generator=generator)
    with pytest.raises(ValueError, match="the index is damaged"):
        bskiplist_validate(nodes, control)
