"""grouped_mm and grouped_mm_dw on arbitrary input: right where it is valid, else a ValueError and nothing touched."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.experts import grouped_mm

ops = torch.ops.anabranch
pytestmark = pytest.mark.cpu  # a GPU's ops do not look at values
MESSAGE = re.compile(r"^grouped_mm(_dw)?: .+, must .+", re.DOTALL)
FLOATING = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

fuzz = partial(settings, deadline=None, derandomize=True)
# Mostly valid: random offsets hardly ever are.
offset_lists = st.lists(st.integers(0, 3), max_size=4).map(
    lambda sizes: [sum(sizes[:i]) for i in range(len(sizes) + 1)]
)
offset_lists |= st.lists(st.integers(-1, 9) | st.sampled_from([-(2**31), 2**31 - 1]), max_size=5)
sizes = st.integers(0, 6)


def offsets_are_valid(offsets: list[int], rows: int) -> bool:
    return len(offsets) > 0 and offsets[0] == 0 and offsets == sorted(offsets) and offsets[-1] <= rows


def outcome(valid: bool, op: Callable[..., Any], *arguments: torch.Tensor | None) -> Any:
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


def whole_numbers(data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Mostly of this shape and dtype, in any strides. Sums of small whole numbers are exact in every dtype."""
    flaw = data.draw(st.sampled_from(["none"] * 9 + ["shape", "dim", "dtype"]))
    if flaw == "shape":
        at = data.draw(st.integers(0, len(shape) - 1))
        shape = tuple(size + (i == at) for i, size in enumerate(shape))
    elif flaw == "dim":
        shape = (*shape, 1)
    elif flaw == "dtype":
        dtype = data.draw(st.sampled_from([*FLOATING, torch.int32]))
    order = data.draw(st.permutations(range(len(shape))))
    values = torch.randint(-3, 4, [shape[i] for i in order]).to(dtype)
    return values.permute([order.index(i) for i in range(len(shape))])


@fuzz(max_examples=200)
@given(sizes, sizes, sizes, offset_lists, st.sampled_from(FLOATING), st.booleans(), st.data())
def test_grouped_mm(
    rows: int, k: int, n: int, offsets: list[int], dtype: torch.dtype, biased: bool, data: st.DataObject
) -> None:
    torch.manual_seed(0)
    groups = max(len(offsets) - 1, 0)
    x, w = whole_numbers(data, (rows, k), dtype), whole_numbers(data, (groups, k, n), dtype)
    bias = whole_numbers(data, (groups, n), dtype) if biased else None
    ends = torch.tensor(offsets, dtype=torch.int32)
    valid = (x.dim(), w.dim()) == (2, 3) and x.dtype == w.dtype and x.dtype in FLOATING
    valid = valid and w.shape[:2] == (len(offsets) - 1, x.shape[1]) and offsets_are_valid(offsets, x.shape[0])
    valid = valid and (bias is None or (bias.dtype == x.dtype and bias.shape == (w.shape[0], w.shape[2])))
    found = outcome(valid, ops.grouped_mm, x, w, ends, bias)
    outcome(valid, lambda *a: grouped_mm(*a[:3], bias=a[3]), x, w, ends, bias)
    if valid:
        wanted = torch.zeros(x.shape[0], w.shape[2], dtype=torch.float64)
        for g in range(groups):
            part = slice(offsets[g], offsets[g + 1])
            wanted[part] = x[part].double() @ w[g].double() + (0 if bias is None else bias[g].double())
        assert torch.equal(found, wanted.to(x.dtype))


@fuzz(max_examples=200)
@given(sizes, sizes, sizes, offset_lists, st.sampled_from(FLOATING), st.data())
def test_grouped_mm_dw(rows: int, k: int, n: int, offsets: list[int], dtype: torch.dtype, data: st.DataObject) -> None:
    torch.manual_seed(0)
    x, dy = whole_numbers(data, (rows, k), dtype), whole_numbers(data, (rows, n), dtype)
    valid = (x.dim(), dy.dim()) == (2, 2) and x.dtype == dy.dtype and x.dtype in FLOATING
    valid = valid and x.shape[0] == dy.shape[0] and offsets_are_valid(offsets, x.shape[0])
    found = outcome(valid, ops.grouped_mm_dw, x, dy, torch.tensor(offsets, dtype=torch.int32))
    if valid:
        assert found.shape == (len(offsets) - 1, x.shape[1], dy.shape[1])
        for g in range(len(offsets) - 1):
            part = slice(offsets[g], offsets[g + 1])
            assert torch.equal(found[g], (x[part].double().t() @ dy[part].double()).to(x.dtype))
