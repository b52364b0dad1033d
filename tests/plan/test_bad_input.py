"""Every op of the plan room on arbitrary input: right where the input is valid, else a ValueError and nothing touched.

Whether input is valid, and what then comes out, is worked out here once more in plain Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch import Plan, plan

ops = torch.ops.anabranch
pytestmark = pytest.mark.cpu  # a GPU's ops do not look at values
MESSAGE = re.compile(r"^[a-z_]+: .+, must .+", re.DOTALL)

fuzz = partial(settings, deadline=None, derandomize=True)
extreme = st.sampled_from([-(2**31), -1, 2**31 - 1])
# Mostly valid: a plan of random parts hardly ever is.
offset_lists = st.lists(st.integers(0, 2), max_size=4).map(
    lambda sizes: [sum(sizes[:i]) for i in range(len(sizes) + 1)]
)
offset_lists |= st.lists(st.integers(-1, 6) | extreme, max_size=5)
id_lists = st.lists(st.integers(0, 3), max_size=8) | st.lists(st.integers(-1, 6) | extreme, max_size=8)


def int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def offsets_are_valid(offsets: list[int], capacity: int) -> bool:
    return len(offsets) > 0 and offsets[0] == 0 and offsets == sorted(offsets) and offsets[-1] <= capacity


def ids_are_valid(ids: list[int], count: int, bound: int) -> bool:
    return all(0 <= i < bound for i in ids[:count])


def outcome(valid: bool, op: Callable[..., Any], *arguments: Any) -> Any:
    """The result of valid input. Other input must raise a ValueError of the usual form. Neither changes an argument."""
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    before = [tensor.clone() for tensor in tensors]
    result = None
    if valid:
        result = op(*arguments)
    else:
        with pytest.raises(ValueError, match=MESSAGE):
            op(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    return result


def assert_parts(
    parts: tuple[torch.Tensor, ...], entries: list[tuple[int, int, int]], keys: int, capacity: int
) -> None:
    """Offsets, values and sources of entries (key, value, source), which are sorted by key; -1 past their end."""
    offsets, values, sources = (part.tolist() for part in parts)
    assert offsets == [sum(key < bound for key, _, _ in entries) for bound in range(keys + 1)]
    unused = [-1] * (capacity - len(entries))
    assert values == [value for _, value, _ in entries] + unused
    assert sources == [source for _, _, source in entries] + unused


@fuzz(max_examples=200)
@given(st.lists(st.lists(st.integers(0, 3) | st.integers(-2, 5), min_size=2, max_size=2), max_size=5), st.data())
def test_from_top_k(rows: list[list[int]], data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.int64, torch.int32, torch.int64, torch.int16, torch.float32, torch.bool]))
    num_groups = data.draw(st.integers(-1, 5) | st.just(2**31 - 1))
    dims = data.draw(st.sampled_from([2, 2, 2, 1, 3]))
    shape = {1: (len(rows) * 2,), 2: (len(rows), 2), 3: (len(rows), 1, 2)}[dims]
    indices = torch.tensor(rows, dtype=torch.int64).reshape(shape).to(dtype)
    flat = indices.flatten().tolist()
    valid = dtype in (torch.int64, torch.int32) and dims == 2 and 0 <= num_groups < 2**31 - 1
    valid = valid and ids_are_valid(flat, len(flat), num_groups + 1)
    parts = outcome(valid, ops.plan_from_top_k, indices, num_groups)
    if valid:
        entries = sorted((group, p // 2, p) for p, group in enumerate(flat) if group < num_groups)
        assert_parts(parts, entries, num_groups, len(flat))


@fuzz(max_examples=100)
@given(st.lists(st.booleans(), max_size=12), st.integers(1, 3), st.integers(-1, 14), st.booleans())
def test_from_mask(bits: list[bool], groups: int, capacity: int, as_bool: bool) -> None:
    bits = bits[: len(bits) // groups * groups]
    mask = torch.tensor(bits, dtype=torch.bool if as_bool else torch.uint8).reshape(-1, groups)
    valid = as_bool and sum(bits) <= capacity
    parts = outcome(valid, ops.plan_from_mask, mask, capacity)
    if valid:
        entries = sorted((p % groups, p // groups, p) for p, bit in enumerate(bits) if bit)
        assert_parts(parts, entries, groups, capacity)


@fuzz(max_examples=200)
@given(id_lists, id_lists, st.integers(-1, 6), st.integers(-1, 6), st.booleans())
def test_from_pairs(items: list[int], groups: list[int], num_items: int, num_groups: int, same: bool) -> None:
    if same:
        items, groups = (ids[: min(len(items), len(groups))] for ids in (items, groups))
    valid = len(items) == len(groups) and min(num_items, num_groups) >= 0
    valid = valid and ids_are_valid(items, len(items), num_items) and ids_are_valid(groups, len(groups), num_groups + 1)
    arguments = (int32(items), int32(groups), num_items, num_groups)
    parts = outcome(valid, ops.plan_from_pairs, *arguments)
    public = partial(plan.from_pairs, num_items=num_items, num_groups=num_groups)
    outcome(valid, public, *(torch.tensor(ids, dtype=torch.int64) for ids in (items, groups)))
    if valid:
        pairs = zip(groups, items, range(len(items)), strict=True)
        assert_parts(parts, sorted(entry for entry in pairs if entry[0] < num_groups), num_groups, len(items))


@fuzz(max_examples=200)
@given(offset_lists, id_lists, st.integers(-1, 6))
def test_transpose(offsets: list[int], ids: list[int], num_items: int) -> None:
    valid = num_items >= 0 and offsets_are_valid(offsets, len(ids)) and ids_are_valid(ids, offsets[-1], num_items)
    parts = outcome(valid, ops.plan_transpose, int32(offsets), int32(ids), num_items)
    if valid:
        group_of = [g for g in range(len(offsets) - 1) for _ in range(offsets[g], offsets[g + 1])]
        entries = sorted((ids[e], e, group_of[e]) for e in range(offsets[-1]))
        assert_parts(parts, [(item, group, e) for item, e, group in entries], num_items, len(ids))


@fuzz(max_examples=200)
@given(id_lists, st.integers(0, 7), st.integers(-3, 7), st.integers(-1, 1))
def test_select_and_its_backward(ids: list[int], num_values: int, bound: int, extra: int) -> None:
    values = torch.randn(num_values)
    valid = all(i < num_values for i in ids)
    found = outcome(valid, ops.plan_select, values, int32(ids))
    if valid:
        assert found.tolist() == [values[i].item() if i >= 0 else 0 for i in ids]
    grad = torch.randn(max(len(ids) + extra, 0))
    valid = bound >= 0 and len(grad) == len(ids) and all(i < bound for i in ids)
    found = outcome(valid, ops.plan_select_backward, grad, int32(ids), bound)
    kept = [i for i in ids if i >= 0]
    if valid and len(set(kept)) == len(kept):  # no plan has an id twice; which one would win is not defined
        assert found.tolist() == [grad[ids.index(v)].item() if v in ids else 0 for v in range(bound)]


def rows_of(data: st.DataObject, count: int) -> tuple[torch.Tensor, bool]:
    """Rows for an op that wants `count` of them, as matrix, in a floating dtype; and whether they are that."""
    have = max(0, count + data.draw(st.sampled_from([0, 0, 0, 0, -1, 1])))
    dtype = data.draw(st.sampled_from([torch.float32] * 4 + [torch.float64, torch.int64]))
    dims = data.draw(st.sampled_from([2, 2, 2, 2, 1, 3]))
    shape = (have, 3, 1)[:dims]
    return torch.arange(have * (3 if dims > 1 else 1)).reshape(shape).to(dtype), dims == 2 and dtype != torch.int64


def weights_of(data: st.DataObject, values: torch.Tensor, count: int) -> tuple[torch.Tensor | None, bool]:
    if data.draw(st.booleans()):
        return None, True
    have = max(0, count + data.draw(st.sampled_from([0, 0, 0, 0, -1, 1])))
    weights = torch.arange(1, have + 1).to(data.draw(st.sampled_from([values.dtype, torch.float32])))
    return weights, have == count and weights.dtype == values.dtype


@fuzz(max_examples=200)
@given(offset_lists, id_lists, st.data())
def test_gather_and_row_dot(offsets: list[int], ids: list[int], data: st.DataObject) -> None:
    x, rows_fit = rows_of(data, 4)
    weights, weights_fit = weights_of(data, x, len(ids))
    by_item = (int32([]), int32([]))  # for the backward, not looked at here
    ids_fit = offsets_are_valid(offsets, len(ids)) and ids_are_valid(ids, offsets[-1], x.shape[0])
    parts = (int32(offsets), int32(ids), *by_item)
    valid = rows_fit and weights_fit and ids_fit
    found = outcome(valid, ops.plan_gather, x, weights, *parts)
    entries = range(offsets[-1]) if valid else ()
    if valid:
        wanted = [(x[ids[e]] * (1 if weights is None else weights[e])).tolist() for e in entries]
        assert found.tolist() == wanted + [[0.0] * 3] * (len(ids) - len(wanted))
    values, values_fit = rows_of(data, len(ids))
    valid = rows_fit and ids_fit and values_fit and values.shape[0] == len(ids) and values.dtype == x.dtype
    found = outcome(valid, ops.plan_row_dot, values, x, *parts)
    if valid:
        dots = [(values[e] * x[ids[e]]).sum().item() for e in range(offsets[-1])]
        assert found.tolist() == dots + [0.0] * (len(ids) - len(dots))


@fuzz(max_examples=200)
@given(offset_lists, id_lists, st.data())
def test_combine(offsets: list[int], ids: list[int], data: st.DataObject) -> None:
    values, rows_fit = rows_of(data, len(ids))
    weights, weights_fit = weights_of(data, values, len(ids))
    valid = rows_fit and weights_fit and values.shape[0] == len(ids) and offsets_are_valid(offsets, len(ids))
    valid = valid and ids_are_valid(ids, offsets[-1], len(ids))
    found = outcome(valid, ops.plan_combine, values, weights, int32(offsets), int32(ids), int32([]), int32([]))
    if valid:
        scaled = values if weights is None else values * weights[:, None]
        wanted = [scaled[ids[offsets[t] : offsets[t + 1]]].sum(0).tolist() for t in range(len(offsets) - 1)]
        assert found.tolist() == wanted


@fuzz(max_examples=200)
@given(offset_lists, st.integers(0, 8), st.integers(-1, 4), st.data())
def test_segment_reduce_and_its_backward(offsets: list[int], rows: int, reduction: int, data: st.DataObject) -> None:
    values, rows_fit = rows_of(data, rows)
    group_offsets, selects = int32(offsets), reduction >= 2
    valid = rows_fit and 0 <= reduction <= 3 and offsets_are_valid(offsets, values.shape[0])
    result = outcome(valid, ops.plan_segment_reduce, values, group_offsets, reduction)
    groups = max(len(offsets) - 1, 0)
    if valid:
        reduce = [torch.Tensor.sum, torch.Tensor.mean, torch.Tensor.amax, torch.Tensor.amin][reduction]
        segments = [values[offsets[g] : offsets[g + 1]] for g in range(groups)]
        wanted = [reduce(s, 0) if len(s) else torch.zeros(3, dtype=s.dtype) for s in segments]
        torch.testing.assert_close(result[0], torch.stack(wanted) if wanted else result[0])
    dout, dout_fits = rows_of(data, groups)
    capacity = data.draw(st.integers(-1, 8))
    arg = torch.zeros(groups + data.draw(st.sampled_from([0, 0, 0, 1])), 3, dtype=torch.int32)
    valid = dout_fits and len(dout) == groups and 0 <= reduction <= 3 and offsets_are_valid(offsets, capacity)
    valid = valid and (not selects or len(arg) == groups)
    outcome(valid, ops.plan_segment_reduce_backward, dout, arg, group_offsets, capacity, reduction)


@fuzz(max_examples=200)
@given(offset_lists, id_lists, st.integers(-1, 5), st.integers(0, 9), st.integers(-1, 1))
def test_public_functions_on_any_plan(offsets: list[int], ids: list[int], items: int, rows: int, extra: int) -> None:
    weights = torch.ones(max(len(ids) + extra, 0))
    built = Plan(int32(offsets), int32(ids), weights, items)
    sound = items >= 0 and offsets_are_valid(offsets, len(ids)) and ids_are_valid(ids, offsets[-1], items)
    x = torch.ones(rows, 2)
    outcome(sound and rows == items and len(weights) == len(ids), partial(plan.gather, plan=built, weighted=True), x)
    outcome(sound and rows == items, partial(plan.gather, plan=built), x)
    fits = rows == len(ids)
    outcome(sound and fits and len(weights) == len(ids), partial(plan.scatter_add, plan=built), x)
    outcome(offsets_are_valid(offsets, len(ids)) and fits, partial(plan.segment_reduce, plan=built, reduce="mean"), x)
    outcome(sound, Plan.item_counts, built)
