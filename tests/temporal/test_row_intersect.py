"""row_set and row_set_sum against Python's own sets."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from anabranch.temporal import csr_from_edges, row_set, row_set_sum

MODES = ("intersection", "left_difference", "right_difference")


def skewed_graph(nodes: int, edges: int, undirected: bool = True) -> tuple[Tensor, Tensor]:
    """Node 0 is at most edges, the last few at none."""
    src = (torch.rand(edges).pow(3) * nodes * 0.9).long()
    dst = (torch.rand(edges) * nodes * 0.9).long()
    return csr_from_edges(src, dst, nodes, undirected)


def sets_by_python(
    graph: tuple[Tensor, Tensor], left: Tensor, right: Tensor, mode: str, exclude: bool
) -> list[list[int]]:
    offsets, ids = graph[0].tolist(), graph[1].tolist()
    rows = [set(ids[a:b]) for a, b in itertools.pairwise(offsets)]
    sets = []
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        by_mode = {MODES[0]: rows[a] & rows[b], MODES[1]: rows[a] - rows[b], MODES[2]: rows[b] - rows[a]}
        sets.append(sorted(by_mode[mode] - ({a, b} if exclude else set())))
    return sets


def sum_by_torch(x: Tensor, sets: list[list[int]]) -> Tensor:
    sums = [x[torch.tensor(one, dtype=torch.int64)].sum(0) for one in sets]
    return torch.stack(sums) if sums else x[:0]


@given(
    nodes=st.sampled_from([1, 6, 40, 300]),
    edges=st.integers(0, 400),
    pairs=st.integers(0, 20),
    width=st.sampled_from([0, 1, 7, 70]),
    mode=st.sampled_from(MODES),
    exclude=st.booleans(),
    undirected=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_sums_and_sets(
    nodes: int, edges: int, pairs: int, width: int, mode: Any, exclude: bool, undirected: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    graph = skewed_graph(nodes, edges, undirected)
    left, right = torch.randint(nodes, (pairs,)), torch.randint(nodes, (pairs,))
    left[: pairs // 2] = 0
    x = torch.randn(nodes, width, dtype=torch.float64, requires_grad=True)
    sets = sets_by_python(graph, left, right, mode, exclude)
    out, wanted = row_set_sum(x, *graph, left, right, mode, exclude), sum_by_torch(x, sets)
    torch.testing.assert_close(out, wanted)
    upstream = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(one, x, upstream)[0] for one in (out, wanted))
    torch.testing.assert_close(ours, theirs)
    for capacity in (0, 3, nodes):
        ids, sizes = row_set(*graph, left, right, mode, capacity, seed, exclude)
        assert sizes.tolist() == [len(one) for one in sets]
        for row, one in zip(ids.tolist(), sets, strict=True):
            kept = [node for node in row if node >= 0]
            assert kept == sorted(set(kept) & set(one))
            assert len(kept) == min(len(one), capacity)
            assert row[len(kept) :] == [-1] * (capacity - len(kept))
            assert capacity < nodes or kept == one
        weights = torch.randn(pairs, capacity, dtype=torch.float64, requires_grad=True)
        out = row_set_sum(x, *graph, left, right, mode, exclude, weights, seed)
        wanted = (x[ids.clamp(min=0)] * (weights * (ids >= 0))[..., None]).sum(1)
        torch.testing.assert_close(out, wanted)
        gradients = (torch.autograd.grad(one, [x, weights], upstream) for one in (out, wanted))
        torch.testing.assert_close(*gradients)


def test_samples_are_uniform_and_of_the_pair_alone() -> None:
    graph = csr_from_edges(torch.zeros(20, dtype=torch.int64), torch.arange(1, 21), 22, undirected=False)
    left, right = torch.zeros(1, dtype=torch.int64), torch.full((1,), 21)
    counts = torch.zeros(22, dtype=torch.int64)
    for seed in range(600):
        ids, _ = row_set(*graph, left, right, "left_difference", 5, seed)
        counts[ids[0]] += 1
    # 600 draws of 5 in 20: 150 each, a deviation of 10.6.
    assert ((counts[1:21] - 150).abs() < 5 * 10.6).all()
    big = skewed_graph(50, 900)
    left, right = torch.randint(50, (30,)), torch.randint(50, (30,))
    both = row_set(*big, left, right, "left_difference", 4, 3)
    parts = [row_set(*big, a, b, "left_difference", 4, 3) for a, b in zip(left.split(7), right.split(7), strict=True)]
    assert all(torch.equal(one, torch.cat(many)) for one, many in zip(both, zip(*parts, strict=True), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_rounds_once(cpu_isa: str, dtype: torch.dtype) -> None:
    graph = skewed_graph(80, 1500)
    left, right = torch.randint(80, (40,)), torch.randint(80, (40,))
    for width in (1, 67, 130):
        x = torch.randn(80, width).to(dtype).requires_grad_()
        exact = x.detach().double().requires_grad_()
        weights = torch.randn(40, 9).to(dtype).requires_grad_()
        exact_weights = weights.detach().double().requires_grad_()
        for mode in MODES:
            sets: Any = (*graph, left, right, mode, True)
            for ours, theirs in (([x], [exact]), ([x, weights], [exact, exact_weights])):
                out, wanted = (row_set_sum(one, *sets, *rest) for one, *rest in (ours, theirs))
                upstream = torch.randn_like(out)
                ours = [out, *torch.autograd.grad(out, ours, upstream)]
                theirs = [wanted, *torch.autograd.grad(wanted, theirs, upstream.double())]
                for one, other in zip(ours, theirs, strict=True):
                    assert one.dtype == dtype
                    error = (one.double() - other).abs().max()
                    assert error <= (2 if dtype.itemsize == 2 else 8) * torch.finfo(dtype).eps * other.abs().max()


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_on_any_threads_and_instruction_set(cpu_isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    graph = skewed_graph(200, 6000)
    left, right = torch.randint(200, (700,)), torch.randint(200, (700,))
    x = torch.randn(200, 70).to(dtype).requires_grad_()
    weights = torch.randn(700, 9).to(dtype).requires_grad_()
    before, results = torch.get_num_threads(), []
    isa = torch.ops.anabranch.cpu_isa()
    for threads, other_isa in ((1, isa), (2, isa), (5, isa), (1, 0)):
        torch.set_num_threads(threads)
        torch.ops.anabranch.set_cpu_isa(other_isa)
        out = row_set_sum(x, *graph, left, right, "left_difference")
        result = [out, *torch.autograd.grad(out, x, out.detach().sign()), *row_set(*graph, left, right, MODES[1], 9)]
        if other_isa == isa:  # products are fused into sums where an instruction set can
            out = row_set_sum(x, *graph, left, right, "left_difference", weights=weights)
            result += [out, *torch.autograd.grad(out, [x, weights], out.detach())]
        results.append(result)
    torch.set_num_threads(before)
    torch.ops.anabranch.set_cpu_isa(isa)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=False))


def test_compiles_whole_and_gradient_of_gradient() -> None:
    torch._dynamo.reset()
    graph = skewed_graph(30, 200)
    left, right = torch.randint(30, (12,)), torch.randint(30, (12,))

    def completion(x: Tensor) -> Tensor:
        ids, _ = row_set(*graph, left, right, "left_difference", 4, 1, True)
        weights = (x[ids.clamp(min=0)] * x[right, None]).sum(2).sigmoid()
        missing = row_set_sum(x, *graph, left, right, "left_difference", True, weights, 1)
        return row_set_sum(x, *graph, left, right, exclude_pair=True) + missing

    x = torch.randn(30, 5, requires_grad=True)
    results = []
    for function in (completion, torch.compile(completion, fullgraph=True, backend="aot_eager")):
        out = function(x)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), x)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    wide = torch.randn(30, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    for inputs in ((wide,), (wide, weights)):
        assert torch.autograd.gradgradcheck(
            lambda v, *rest: row_set_sum(v, *graph, left, right, MODES[0], False, *rest).square(), inputs
        )


@pytest.mark.cpu
@torch.no_grad()
def test_fake_tensors_on_a_gpu() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        graph = torch.zeros(11, dtype=torch.int64), torch.zeros(40, dtype=torch.int64)
        ends = torch.zeros(6, dtype=torch.int64)
        out = row_set_sum(torch.randn(10, 4).half(), *graph, ends, ends)
        assert (out.shape, out.dtype, out.device.type) == ((6, 4), torch.float16, "cuda")
        assert torch.ops.anabranch.row_set_dot(out, out, *graph, ends, ends, 0, False, 3, 0).shape == (6, 3)
        assert [tuple(one.shape) for one in row_set(*graph, ends, ends, MODES[1], 3)] == [(6, 3), (6,)]


X = torch.randn(4, 3)
OFFSETS, IDS = csr_from_edges(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3]), 4)
ENDS = torch.tensor([0, 1, 3])
BOTH: list[tuple[dict[str, Any], str]] = [
    ({"row_offsets": OFFSETS.int()}, "row_offsets is int32, must be int64"),
    ({"column_ids": IDS.float()}, "column_ids is float32, must be int64"),
    ({"left": ENDS[None]}, r"left has shape \(1, 3\)"),
    ({"right": ENDS[:2]}, r"right has shape \(2,\), must be \(3,\) like left"),
    ({"left": ENDS.to("meta")}, "left is on meta, must be on cpu"),
    ({"left": torch.tensor([0, 1, 4])}, r"left\[2\] is 4, must be in \[0, 4\)"),
    ({"right": torch.tensor([0, -1, 1])}, r"right\[1\] is -1, must be in \[0, 4\)"),
    ({"column_ids": IDS.flip(0)}, r"column_ids of node 1 are not ascending and distinct in 1 places"),
    ({"column_ids": IDS + 2}, r"column_ids of node 1 are 2 to 4, must be in \[0, 4\)"),
    ({"column_ids": IDS[:-1]}, r"row_offsets\[3\] to \[4\] are 5 to 6, must ascend within \[0, 5\]"),
    ({"row_offsets": torch.tensor([0, 1, 0, 5, 6])}, r"row_offsets\[1\] to \[2\] are 1 to 0, must ascend"),
    ({"mode": "both"}, "mode is 'both', must be one of"),
]


@pytest.mark.cpu
@pytest.mark.parametrize(("change", "message"), BOTH)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    good = {"row_offsets": OFFSETS, "column_ids": IDS, "left": ENDS, "right": ENDS, "mode": "intersection"}
    with pytest.raises(ValueError, match=f"^row_set: {message}"):
        row_set(**{**good, "capacity": 2, **change})
    with pytest.raises(ValueError, match=f"^row_set_sum: {message}"):
        row_set_sum(**{**good, "x": X, **change})


@pytest.mark.cpu
def test_bad_input_of_one_alone() -> None:
    graph = (OFFSETS, IDS, ENDS, ENDS)
    wrong: list[tuple[Any, tuple[Any, ...], str]] = [
        (row_set, (*graph, "intersection", -1), "row_set: capacity is -1, must be at least 0"),
        (row_set_sum, (X[:3], *graph), r"row_set_sum: x has shape \(3, 3\), must be \(4, width\)"),
        (row_set_sum, (X.int(), *graph), "row_set_sum: x is int32"),
        (row_set_sum, (X, *graph, MODES[0], False, X), r"row_set_sum: weights has shape \(4, 3\), must be \(3, cap"),
        (row_set_sum, (X, *graph, MODES[0], False, ENDS), "row_set_sum: weights is int64"),
        (row_set_sum, (X, *graph, MODES[0], False, X.to("meta")), "row_set_sum: weights is on meta, must be on cpu"),
        (csr_from_edges, (ENDS, ENDS, 3), r"csr_from_edges: src and dst are in \[0, 3\], must be in \[0, 3\)"),
        (csr_from_edges, (ENDS, ENDS[:1], 9), r"csr_from_edges: dst has shape \(1,\), must be \(3,\)"),
        (csr_from_edges, (ENDS, ENDS.int(), 9), "csr_from_edges: dst is int32"),
        (csr_from_edges, (ENDS, ENDS, -1), "csr_from_edges: num_nodes is -1"),
    ]
    for function, arguments, message in wrong:
        with pytest.raises(ValueError, match=f"^{message}"):
            function(*arguments)
