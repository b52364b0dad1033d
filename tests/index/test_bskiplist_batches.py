"""BSkipList by arrays: torch and numpy, every kind of key, strides, threads, a full index, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from anabranch.index import BSkipList, IndexFullError

pytestmark = pytest.mark.cpu
DTYPES = {"int64": torch.int64, "uint64": torch.uint64, "float64": torch.float64, "pair": torch.int64}


def distinct_keys(kind: str, n: int) -> torch.Tensor:
    keys = torch.randperm(4 * n)[:n]
    if kind == "pair":
        return torch.stack([keys % 5 - 2, keys - 2 * n], 1)
    if kind == "uint64":
        return (keys - 2 * n).view(torch.uint64)  # about 2^64 and about 0
    return (keys - 2 * n).to(DTYPES[kind])


def as_keys(keys: torch.Tensor) -> list[Any]:
    return [tuple(row) for row in keys.tolist()] if keys.dim() == 2 else keys.tolist()


@pytest.mark.parametrize("numpy", [False, True])
@pytest.mark.parametrize("kind", DTYPES)
def test_batches_do_what_single_keys_do(kind: str, numpy: bool) -> None:
    n = 3000
    keys, given = distinct_keys(kind, n), torch.arange(n)
    names = as_keys(keys)
    half = n // 2
    expected = dict(zip(names[:half], range(half), strict=True))
    convert = (lambda t: t.numpy()) if numpy else (lambda t: t)
    index = BSkipList(key=kind)
    assert index.insert(convert(keys[:half]), convert(given[:half])).all()
    again = index.insert(convert(keys), convert(given + 7))
    assert isinstance(again, np.ndarray if numpy else torch.Tensor) and not again[:half].any() and again[half:].all()
    expected |= dict(zip(names[half:], range(half + 7, n + 7), strict=True))
    values, found = index.find(convert(keys))
    assert values.tolist() == list(expected.values()) and found.all() and index == expected

    assert index.erase(convert(keys[::2])).all() and not index.erase(convert(keys[::2])).any()
    values, found = index.find(convert(keys))
    assert found.tolist() == [False, True] * half and not values[::2].any()
    rest = {name: expected[name] for name in names[1::2]}
    assert index == rest and index._validate() == ""

    ordered = sorted(rest)
    found_keys, values, found = index.lower_bound(convert(keys))
    for name, key, value, there in zip(names, as_keys(torch.as_tensor(found_keys)), values, found, strict=True):
        wanted = next((other for other in ordered if other >= name), None) if not there or name not in rest else name
        assert there == (wanted is not None)
        zero = (0, 0) if kind == "pair" else 0
        assert (key, value) == ((wanted, rest[wanted]) if there else (zero, 0))


@pytest.mark.parametrize("kind", DTYPES)
def test_ranges_are_tensors(kind: str) -> None:
    keys = distinct_keys(kind, 9000)
    index = BSkipList((keys, torch.arange(9000)), key=kind)
    ordered = sorted(as_keys(keys))
    low, high = ordered[100], ordered[-100]
    every, values = index.range()
    assert as_keys(every) == ordered and every.dtype == DTYPES[kind] and index.find(every)[0].equal(values)
    for chosen, wanted in [
        (index[low:high], ordered[100:-100]),
        (index[:high], ordered[:-100]),
        (index[low:], ordered[100:]),
        (index.range(low, high, (False, True)), ordered[101:-99]),
        (index.range(low, limit=5000), ordered[100:5100]),
        (index.range(low, limit=3), ordered[100:103]),
        (index.range(limit=0), []),
        (index.range(high, low), []),
        (index.range(low, low), []),
        (index.range(low, low, (True, True)), [low]),
    ]:
        assert as_keys(chosen[0]) == wanted and chosen[1].tolist() == index.find(chosen[0])[0].tolist()


def test_equal_keys_of_a_batch_go_in_order() -> None:
    index = BSkipList()
    keys = torch.tensor([5, 3, 5, 5])
    assert index.insert(keys, torch.tensor([1, 2, 3, 4])).tolist() == [True, True, False, False] and index[5] == 1
    index.update((keys, torch.tensor([1, 2, 3, 4])))
    assert index[5] == 4
    assert index.erase(keys).tolist() == [True, True, False, False]


def test_any_strides_and_no_keys() -> None:
    pairs = torch.arange(40).view(10, 4)
    index = BSkipList((pairs[:, 1], pairs.T[2]))
    assert dict(index.items()) == {int(row[1]): int(row[2]) for row in pairs}
    backwards = pairs.numpy()[::-1, 1]
    assert index.find(backwards)[0].tolist() == pairs[:, 2].flip(0).tolist()
    by_pair = BSkipList((pairs[:, 1:3], pairs[:, 0]), key="pair")
    assert list(by_pair) == [(int(row[1]), int(row[2])) for row in pairs]
    none = torch.empty(0, dtype=torch.int64)
    assert index.insert(none, none).shape == index.erase(none).shape == index.find(none)[1].shape == (0,)
    frozen = np.arange(3)
    frozen.flags.writeable = False
    assert index.find(frozen)[1].shape == (3,)


def test_values_of_float64_keep_every_bit() -> None:
    values = torch.tensor([-0.0, float("nan"), float("inf"), 5e-324], dtype=torch.float64)
    index = BSkipList((torch.arange(4), values), value="float64")
    assert index.find(torch.arange(4))[0].view(torch.int64).equal(values.view(torch.int64)) and index[3] == 5e-324
    assert index.range()[1].view(torch.int64).equal(values.view(torch.int64))


def test_results_are_the_same_for_every_thread_count() -> None:
    keys, values = torch.randint(30000, (60000,)), torch.arange(60000)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        index = BSkipList()
        inserted = index.insert(keys, values)
        index.update((keys, values))
        erased = index.erase(keys[:20000])
        results.append([inserted, erased, *index.range(), *index.find(keys), *index.lower_bound(keys)])
        assert index._validate() == ""
        loaded = BSkipList()
        loaded.bulk_load(*index.range())
        assert loaded == index and loaded._validate() == ""
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_that_fills_the_index_says_what_was_applied(threads: int) -> None:
    index = BSkipList({-1: -1}, max_bytes=64 * 1024)
    keys = torch.randperm(20000)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(IndexFullError, match=r"BSkipList.insert: memory is full, \d+ of 20000 keys") as error:
            index.insert(keys, keys * 2)
    finally:
        torch.set_num_threads(before)
    applied = error.value.applied
    assert isinstance(error.value, MemoryError) and f" {int(applied.sum())} of" in str(error.value)
    assert index == {-1: -1} | {int(key): 2 * int(key) for key in keys[applied]} and index._validate() == ""
    assert index.find(keys)[1].equal(applied) and applied.sum() > 1500
    index.erase(keys[applied])
    assert index == {-1: -1}
    with pytest.raises(IndexFullError) as error:
        index.update((keys.numpy(), keys.numpy()))
    assert isinstance(error.value.applied, np.ndarray)


def test_bulk_load_takes_all_or_nothing() -> None:
    keys = torch.arange(0, 2000, 2)
    index = BSkipList()
    for bad, position in ((keys.flip(0), 1), (keys // 4, 1), (torch.cat([keys, keys[-1:]]), 1000)):
        with pytest.raises(ValueError, match=rf"BSkipList.bulk_load: keys\[{position}\] is not greater"):
            index.bulk_load(bad, bad)
    assert len(index) == 0
    index.bulk_load(keys, keys)
    assert len(index) == 1000 and index._validate() == ""
    with pytest.raises(ValueError, match=r"BSkipList.bulk_load: the index has keys, must be empty; clear"):
        index.bulk_load(keys, keys)
    small = BSkipList(max_bytes=8192)
    with pytest.raises(MemoryError, match=r"BSkipList.bulk_load: memory is full"):
        small.bulk_load(keys, keys)
    assert len(small) == 0 and small._validate() == ""


ONES = torch.ones(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1, 2, 3], ONES), "keys is list, must be a torch tensor or numpy array; convert it"),
        ((ONES.int(), ONES), "keys is int32, must be int64; convert it with .to(torch.int64)"),
        ((ONES.numpy().astype(">i8"), ONES), "keys is >i8, must be int64; convert it with .astype('int64')"),
        ((ONES, ONES.double()), "values is float64, must be int64; convert it"),
        ((ONES, ONES[:2]), "values has 2 entries, must have 3 like keys; give one for each"),
        ((ONES.view(3, 1), ONES), "keys has shape (3, 1), must have one dimension; reshape it"),
        ((ONES[0], ONES), "keys has shape (), must have one dimension; reshape it"),
        ((ONES.to("meta"), ONES), "keys is on meta, must be on cpu; move it with .cpu()"),
        ((ONES, ONES.to("meta")), "values is on meta, must be on cpu; move it with .cpu()"),
        ((ONES.to_sparse(), ONES), "keys is torch.sparse_coo, must be a dense tensor; convert it"),
    ],
)
def test_bad_arrays(arguments: tuple[Any, Any], text: str) -> None:
    index = BSkipList({1: 2})
    for op in ("insert", "bulk_load"):
        with pytest.raises(ValueError) as error:
            getattr(index, op)(*arguments)
        assert f"BSkipList.{op}: {text}" in str(error.value)
    with pytest.raises(ValueError) as error:
        index.update(arguments if not isinstance(arguments[0], list) else (ONES, arguments[0]))
    assert "BSkipList.update: " in str(error.value)
    if text.startswith("keys"):
        for op in ("find", "erase", "lower_bound"):
            with pytest.raises(ValueError) as error:
                getattr(index, op)(arguments[0])
            assert f"BSkipList.{op}: {text}" in str(error.value)
    assert index == {1: 2}


def test_bad_keys_of_other_kinds() -> None:
    floats = BSkipList(key="float64")
    keys = torch.tensor([1.0, float("nan")], dtype=torch.float64)
    for call in (
        lambda: floats.find(keys),
        lambda: floats.insert(keys, ONES[:2]),
        lambda: floats.erase(keys),
        lambda: floats.lower_bound(keys),
        lambda: floats.bulk_load(keys, ONES[:2]),
    ):
        with pytest.raises(ValueError, match=r"BSkipList.\w+: keys\[1\] is NaN, must be a number; drop it"):
            call()
    assert len(floats) == 0
    with pytest.raises(ValueError, match=r"keys has shape \(3,\), must have shape \(n, 2\); reshape it"):
        BSkipList(key="pair").find(ONES)
