"""Plans against a sort in plain Python; movement and reductions against indexing; gradients, compile, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from anabranch import Plan, plan


def expected_entries(pairs: list[tuple[int, int]], num_groups: int) -> list[tuple[int, int, int]]:
    """(group, item, source) in plan order, by Python's stable sort."""
    kept = [(group, item, source) for source, (item, group) in enumerate(pairs) if group < num_groups]
    return sorted(kept, key=lambda entry: entry[:2])


def assert_plan(built: Plan, pairs: list[tuple[int, int]], num_groups: int, weights: torch.Tensor) -> None:
    entries = expected_entries(pairs, num_groups)
    count = len(entries)
    sizes = [sum(group == g for group, _, _ in entries) for g in range(num_groups)]
    assert built.group_offsets.diff().tolist() == sizes
    assert int(built.group_offsets[0]) == 0
    assert built.item_ids[:count].tolist() == [item for _, item, _ in entries]
    assert (built.item_ids[count:] == -1).all()
    assert built.weights is not None
    assert built.weights[:count].tolist() == [weights.flatten()[source].item() for _, _, source in entries]
    assert (built.weights[count:] == 0).all()
    by_item = built.transpose()
    for t in range(built.num_items):
        begin, end = int(by_item.item_offsets[t]), int(by_item.item_offsets[t + 1])
        wanted = [e for e, (_, item, _) in enumerate(entries) if item == t]
        assert by_item.entry_ids[begin:end].tolist() == wanted
        assert by_item.group_ids[begin:end].tolist() == [entries[e][0] for e in wanted]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 9), st.booleans(), st.integers(0, 2**31))
def test_from_top_k(items: int, top_k: int, groups: int, wide: bool, seed: int) -> None:
    torch.manual_seed(seed)
    indices = torch.randint(0, groups + 1, (items, top_k))
    weights = torch.rand(items, top_k)
    built = plan.from_top_k(indices if wide else indices.int(), weights, num_groups=groups)
    pairs = [(t, int(indices[t, k])) for t in range(items) for k in range(top_k)]
    assert_plan(built, pairs, groups, weights)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 30), st.integers(1, 9), st.integers(0, 2**31))
def test_from_mask_and_from_pairs_agree(items: int, groups: int, seed: int) -> None:
    torch.manual_seed(seed)
    mask = torch.rand(items, groups) < 0.4
    weights = torch.rand(items, groups)
    pairs = [(t, g if mask[t, g] else groups) for t in range(items) for g in range(groups)]
    assert_plan(plan.from_mask(mask, weights), pairs, groups, weights)
    item_ids, group_ids = mask.nonzero(as_tuple=True)
    order = torch.randperm(item_ids.shape[0])
    item_ids, group_ids, flat = item_ids[order], group_ids[order], weights[mask][order]
    built = plan.from_pairs(item_ids, group_ids, flat, num_items=items, num_groups=groups)
    assert_plan(built, list(zip(item_ids.tolist(), group_ids.tolist(), strict=True)), groups, flat)


@pytest.mark.cpu
def test_large_plan_is_the_same_for_every_thread_count() -> None:
    indices = torch.randint(0, 65, (70_000, 2))
    before = torch.get_num_threads()
    parts = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        built = plan.from_top_k(indices, num_groups=64)
        parts.append((built.group_offsets, built.item_ids, *vars(built.transpose()).values()))
    torch.set_num_threads(before)
    for other in parts[1:]:
        assert all(torch.equal(a, b) for a, b in zip(parts[0], other, strict=True))


def small_plan(dtype: torch.dtype = torch.float64) -> tuple[Plan, torch.Tensor]:
    weights = torch.rand(5, 3, dtype=dtype, requires_grad=True)
    indices = torch.tensor([[0, 1, 3], [3, 3, 3], [1, 1, 0], [2, 0, 1], [3, 2, 0]])
    return plan.from_top_k(indices, weights, num_groups=3), weights


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gather_and_scatter_add_against_indexing(dtype: torch.dtype) -> None:
    built, _ = small_plan(torch.float32)
    x = torch.randn(5, 2, 17).to(dtype)
    count = int(built.group_offsets[-1])
    ids = built.item_ids[:count].long()
    gathered = plan.gather(x, built)
    assert torch.equal(gathered[:count], x[ids])
    assert (gathered[count:] == 0).all()
    values = torch.randn(built.capacity, 2, 17).to(dtype)
    weights = built.weights[:count, None, None].double()
    wanted = torch.zeros(5, 2, 17, dtype=torch.float64).index_add(0, ids, weights * values[:count].double())
    torch.testing.assert_close(plan.scatter_add(values, built), wanted.to(dtype))


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_segment_reduce(reduce: str) -> None:
    group_offsets = torch.tensor([0, 2, 2, 7], dtype=torch.int32)
    built = Plan(group_offsets, torch.arange(9, dtype=torch.int32), None, 9)
    values = torch.randn(9, 600, dtype=torch.float64, requires_grad=True)
    out = plan.segment_reduce(values, built, reduce)
    by_torch = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}[reduce]
    torch.testing.assert_close(out[0], by_torch(values[:2], 0))
    torch.testing.assert_close(out[2], by_torch(values[2:7], 0))
    assert (out[1] == 0).all()
    small = values.detach()[:, :3].clone().requires_grad_()
    assert gradcheck(lambda v: plan.segment_reduce(v, built, reduce), (small,))
    assert gradgradcheck(lambda v: plan.segment_reduce(v, built, reduce), (small,))


def test_gradients_of_weights_and_rows() -> None:
    indices = torch.tensor([[1, 0], [2, 1], [3, 3]])

    def through(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        built = plan.from_top_k(indices, weights, num_groups=3)
        return plan.scatter_add(plan.gather(x, built, weighted=True) ** 2, built)

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(through, (x, weights))
    assert gradgradcheck(through, (x, weights))
    compiled = torch.compile(through, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weights), through(x, weights))


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan.from_top_k(torch.tensor([[4]]), num_groups=3), r"from_top_k: indices holds 4"),
        (lambda: plan.from_top_k(torch.tensor([[-1]]), num_groups=3), r"indices holds -1"),
        (lambda: plan.from_top_k(torch.tensor([1]), num_groups=3), r"indices has shape \(1,\)"),
        (lambda: plan.from_top_k(torch.tensor([[1.0]]), num_groups=3), r"indices is float32"),
        (lambda: plan.from_top_k(torch.tensor([[1]]), num_groups=-1), r"num_groups is -1"),
        (lambda: plan.from_top_k(torch.tensor([[1]]), torch.rand(2, 1), num_groups=3), r"weights has shape"),
        (lambda: plan.from_mask(torch.ones(2, 2)), r"from_mask: mask is float32"),
        (lambda: plan.from_mask(torch.ones(2, 2, dtype=torch.bool), capacity=3), r"capacity is 3"),
        (
            lambda: plan.from_pairs(torch.tensor([2**32]), torch.tensor([0]), num_items=3, num_groups=1),
            r"from_pairs: item_ids\[0\]",
        ),
        (lambda: plan.gather(torch.randn(4, 2), small_plan()[0]), r"gather: x has shape"),
        (lambda: plan.scatter_add(torch.randn(4, 2), small_plan()[0]), r"scatter_add: values has shape"),
        (
            lambda: Plan(torch.tensor([0, 3, 2]).int(), torch.zeros(3).int(), None, 1).transpose(),
            r"group_offsets\[2\] is 2, must be at least",
        ),
        (
            lambda: Plan(torch.tensor([0, 4]).int(), torch.zeros(3).int(), None, 1).transpose(),
            r"group_offsets\[-1\] is 4, must be at most",
        ),
        (
            lambda: Plan(torch.tensor([0, 2]).int(), torch.tensor([0, 7]).int(), None, 3).transpose(),
            r"item_ids\[1\] is 7",
        ),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.cpu
@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    st.lists(st.integers(-5, 12), max_size=8),
    st.lists(st.integers(-5, 12), max_size=12),
    st.integers(-2, 9),
    st.integers(0, 5),
)
def test_fuzz_no_plan_crashes(offsets: list[int], ids: list[int], num_items: int, rows: int) -> None:
    built = Plan(torch.tensor(offsets, dtype=torch.int32), torch.tensor(ids, dtype=torch.int32), None, num_items)
    for call in (
        lambda: built.transpose(),
        lambda: plan.gather(torch.randn(rows, 2), built),
        lambda: plan.scatter_add(torch.randn(rows, 2), built),
        lambda: plan.segment_reduce(torch.randn(rows, 2), built, "max"),
    ):
        try:
            call()
        except ValueError as error:
            assert "must" in str(error)
