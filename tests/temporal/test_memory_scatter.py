"""Ordered scatters, moments, means and random projections against plain loops."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.temporal import (
    LastAggregator,
    MeanAggregator,
    MemoryCorrection,
    RandomProjections,
    RunningMean,
    RunningMoments,
    coherence_loss,
    degree_encoding,
    latest_of_node,
    masked_mean_sum,
    ordered_scatter_,
    ordered_scatter_add_,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 70), st.integers(0, 40), st.integers(0, 2**31), st.sampled_from(DTYPES))
def test_scatters_are_those_of_a_loop(rows: int, width: int, size: int, seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    index = torch.randint(-1, rows, (size,))
    values, weights = (torch.randn(size, width) * 8).to(dtype), (torch.randn(size) * 4).to(dtype)
    table = (torch.randn(rows, width) * 8).to(dtype)
    wide = torch.int64 if dtype == torch.int64 else torch.float64
    for w in (None, weights):
        expected = table.to(wide, copy=True)
        for e, row in enumerate(index.tolist()):
            if row >= 0:
                expected[row] += values[e].to(wide) * (1 if w is None else w[e].to(wide))
        summed = table.clone()
        assert ordered_scatter_add_(summed, index, values, w) is summed
        close = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-5)
        torch.testing.assert_close(summed, expected.to(dtype), rtol=close, atol=close * 200)
    written = table.clone()
    for e, row in enumerate(index.tolist()):
        if row >= 0:
            written[row] = values[e]
    assert torch.equal(ordered_scatter_(table.clone(), index, values), written)


def test_latest_of_node_takes_time_then_id_then_position() -> None:
    nodes = torch.tensor([4, 4, 7, -1, 4, 7, 7, 9])
    time = torch.tensor([5, 2, 1, 9, 5, 1, 1, -3])
    ids = torch.tensor([8, 9, 3, 9, 6, 3, 2, 0])
    assert latest_of_node(nodes, time, ids).nonzero()[:, 0].tolist() == [0, 5, 7]
    assert latest_of_node(nodes, time).nonzero()[:, 0].tolist() == [4, 6, 7]


@pytest.mark.cpu
def test_threads_make_no_difference_to_scatters() -> None:
    threads, tables = torch.get_num_threads(), []
    index, values = torch.randint(0, 300, (40000,)), torch.randn(40000, 20)
    for count in (1, 2):
        torch.set_num_threads(count)
        tables.append(ordered_scatter_add_(torch.zeros(300, 20), index, values, values[:, 0].contiguous()))
        tables.append(ordered_scatter_(torch.zeros(300, 20), index, values))
    torch.set_num_threads(threads)
    assert torch.equal(tables[0], tables[2])
    assert torch.equal(tables[1], tables[3])


@pytest.mark.cpu
def test_scatters_refuse_what_does_not_fit() -> None:
    table, index, values = torch.zeros(4, 3), torch.tensor([0, 3]), torch.ones(2, 3)
    for call, match in (
        (lambda: ordered_scatter_add_(table, torch.tensor([0, 4]), values), r"index\[1\] is 4, must be in \[0, 4\)"),
        (lambda: ordered_scatter_(table, torch.tensor([9, 0]), values), r"index\[0\] is 9"),
        (lambda: ordered_scatter_add_(table, index.int(), values), "index is int32"),
        (lambda: ordered_scatter_add_(table, index, values[:, :2]), "values has shape"),
        (lambda: ordered_scatter_add_(table, index, values.double()), "values is float64"),
        (lambda: ordered_scatter_add_(table, index, values, torch.ones(3)), "weights has shape"),
        (lambda: ordered_scatter_add_(table.t(), index, torch.ones(2, 4)), "table is not contiguous"),
        (lambda: ordered_scatter_add_(table.int(), index, values.int()), "table is int32"),
        (lambda: ordered_scatter_(table, index, values.to("meta")), "values is on meta"),
        (lambda: latest_of_node(index, index[:1]), "time has shape"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    assert not table.any()


def test_aggregators_are_exact_and_differentiable() -> None:
    msg = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([2, 0, 2, 4, 0, 2, 0, 4, 4])
    t = torch.tensor([3, 1, 5, 2, 1, 5, 0, 1, 2])
    last = LastAggregator()(msg, index, t, 6)
    expected = torch.zeros(6, 3, dtype=torch.float64)
    expected[[2, 0, 4]] = msg.detach()[[5, 4, 8]]
    assert torch.equal(last, expected)
    mean = MeanAggregator()(msg, index, t, 6)
    for node in range(6):
        rows = msg[index == node]
        torch.testing.assert_close(mean[node], rows.mean(0) if len(rows) else torch.zeros(3, dtype=torch.float64))
    for aggregate in (LastAggregator(), MeanAggregator()):
        assert torch.autograd.gradcheck(lambda m, a=aggregate: a(m, index, t, 6), (msg,))
    assert LastAggregator()(msg[:0], index[:0], t[:0], 2).shape == MeanAggregator()(msg[:0], index[:0], t[:0], 2).shape


def test_moments_and_means_count_every_row() -> None:
    moments, means = RunningMoments(6, 4, dtype=torch.float64), RunningMean(6, 4, dtype=torch.float64)
    got: dict[int, list[torch.Tensor]] = {n: [] for n in range(6)}
    for size in (5, 0, 9, 1):
        nodes, rows = torch.randint(0, 5, (size,)), torch.randn(size, 4, dtype=torch.float64)
        moments.update(nodes, rows)
        means.update(nodes, rows)
        for node, row in zip(nodes.tolist(), rows, strict=True):
            got[node].append(row)
    everyone, previous = torch.arange(6), torch.randn(6, 4, dtype=torch.float64)
    zero = torch.zeros(1, 4, dtype=torch.float64)
    mean = torch.stack([torch.stack(got[n]).mean(0) if got[n] else zero[0] for n in range(6)])
    variance = torch.stack([torch.stack(got[n]).var(0, correction=0) if got[n] else zero[0] for n in range(6)])
    torch.testing.assert_close(means(everyone), mean)
    torch.testing.assert_close(moments.predict(everyone, previous), previous + mean)
    torch.testing.assert_close(moments.variance(everyone), variance)
    assert moments.count[:, 0].tolist() == [len(got[n]) for n in range(6)] == means.count[:, 0].tolist()
    assert torch.equal(moments.predict(torch.tensor([5]), previous[5:]), previous[5:])

    correction = MemoryCorrection(0.8)
    torch.testing.assert_close(correction(previous, mean), 0.8 * previous + 0.2 * mean)
    with pytest.raises(ValueError, match="gamma is 1"):
        MemoryCorrection(1)
    turned = previous.clone().requires_grad_()
    assert coherence_loss(2 * previous, previous).abs() < 1e-12
    assert abs(coherence_loss(-previous, previous) - 2) < 1e-12
    assert torch.autograd.gradcheck(lambda m: coherence_loss(m, mean[:5] + previous[:5]), (turned[:5],))

    values, valid = torch.randn(3, 5, 2), torch.rand(3, 5) < 0.5
    valid[1] = False
    mean_of, total = masked_mean_sum(values, valid)
    torch.testing.assert_close(total, (values * valid[..., None]).sum(1))
    torch.testing.assert_close(mean_of, total / valid.sum(1, keepdim=True).clamp_min(1))
    waves = degree_encoding(torch.tensor([0, 3]), 4)
    torch.testing.assert_close(waves[1], torch.tensor([math.sin(3), math.sin(0.03), math.cos(3), math.cos(0.03)]))


def dense_projections(module: RandomProjections, batches: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    """The definition as TPNet's code has it: the whole table fades in every batch."""
    table, now = module.table.clone(), None
    for src, dst, time in batches:
        end = int(time.max()) if now is None else max(now, int(time.max()))
        if now is not None:
            for level in range(1, table.shape[1]):
                table[:, level] *= math.exp(-module.decay * level * (end - now))
        now = end
        before = table.clone()
        for u, v, t in zip(src.tolist(), dst.tolist(), time.tolist(), strict=True):
            for a, b in ((u, v), (v, u)):
                table[a, 1:] += math.exp(-module.decay * (end - t)) * before[b, :-1]
    return table


@pytest.mark.parametrize("start", [0, -(10**6), 10**18])
def test_projections_are_the_dense_ones(start: int) -> None:
    module = RandomProjections(9, 6, 3, decay=2e-3, dtype=torch.float64)
    fresh, batches, now = copy.deepcopy(module), [], start
    for size in (7, 1, 0, 12, 5):
        time = now + torch.randint(0, 90, (size,)).cumsum(0)
        now = int(time[-1]) if size else now
        src, dst = torch.randint(0, 9, (2, size))
        module.update(src, dst, time)
        if size:
            batches.append((src, dst, time))
    late = torch.tensor([1, 2]), torch.tensor([3, 2]), torch.tensor([now - 50, now - 70])
    module.update(*late)
    table = dense_projections(fresh, [*batches, late])
    everyone = torch.arange(9)
    torch.testing.assert_close(module.rows(everyone), table)
    assert torch.equal(module.table[:, 0], fresh.table[:, 0])
    u, v = torch.randint(0, 9, (2, 5))
    both = torch.cat([table[u], table[v]], 1)
    torch.testing.assert_close(module.pair_features(u, v), torch.log1p((both @ both.mT).relu()).reshape(5, -1))
    resumed = RandomProjections(9, 6, 3, decay=2e-3, dtype=torch.float64)
    resumed.load_state_dict(module.state_dict())
    assert torch.equal(resumed.pair_features(u, v), module.pair_features(u, v))
    module.reset()
    assert torch.equal(module.table, fresh.table)


@pytest.mark.cpu
def test_projections_threads_and_bad_input() -> None:
    module, threads, tables = RandomProjections(200, 50, 2, decay=1e-3), torch.get_num_threads(), []
    src, dst = torch.randint(0, 200, (2, 3000))
    for count in (1, 2):
        torch.set_num_threads(count)
        one = copy.deepcopy(module)
        one.update(src, dst, torch.arange(3000))
        tables.append(one.table)
    torch.set_num_threads(threads)
    assert torch.equal(*tables)
    before = module.table.clone()
    for bad, match in (
        ((torch.tensor([200]), src[:1], src[:1]), "src has 200"),
        ((src, dst[:5], src), "dst is int64 of shape"),
        ((src, dst, src.double()), "time is float64"),
    ):
        with pytest.raises(ValueError, match=match):
            module.update(*bad)
    with pytest.raises(ValueError, match="decay is -1"):
        RandomProjections(3, 4, decay=-1)
    assert torch.equal(module.table, before)
