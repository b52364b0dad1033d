"""Splits by time, hidden nodes, and negatives that do not depend on batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.temporal import EdgeList, NegativeSampler, events_at, hide_nodes, split_by_time, unseen_nodes
from anabranch.temporal.hashing import below, chained_hash


def stream(events: int, nodes: int, times: int = 50) -> EdgeList:
    src, dst = torch.randint(nodes, (2, events))
    return EdgeList.from_events(src, dst, torch.randint(times, (events,)), num_nodes=nodes)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.sampled_from([(0.7, 0.15), (0.1, 0.1), (0.5, 0.49)]))
def test_parts_end_at_numpys_quantiles(times: list[int], shares: tuple[float, float]) -> None:
    time = torch.tensor(times)
    parts = split_by_time(EdgeList.from_events(torch.zeros_like(time), torch.zeros_like(time), time), *shares)
    first, second = np.quantile(np.array(times), [shares[0], sum(shares)])
    expected = [sum(t <= first for t in times), sum(first < t <= second for t in times), sum(t > second for t in times)]
    assert [len(part) for part in parts] == expected


def test_split_of_large_times_and_bad_shares() -> None:
    time = torch.arange(1000) + 2**60  # float64 cannot tell these apart
    edges = EdgeList.from_events(torch.zeros_like(time), torch.zeros_like(time), time)
    assert [len(part) for part in split_by_time(edges)] == [700, 150, 150]
    assert [len(part) for part in split_by_time(edges[:0])] == [0, 0, 0]
    with pytest.raises(ValueError, match=r"train is 0\.9 and"):
        split_by_time(edges, 0.9, 0.2)


def test_hidden_and_unseen_nodes() -> None:
    split = split_by_time(stream(400, 60))
    hidden_split, hidden = hide_nodes(split, 0.1, seed=3)
    assert len(hidden) == 6 and hidden.equal(hide_nodes(split, 0.1, seed=3)[1])
    assert not hidden.equal(hide_nodes(split, 0.1, seed=4)[1])
    unseen = unseen_nodes(hidden_split.train)
    assert unseen[hidden].all() and hidden_split.test is split.test
    kept = set(hidden_split.train.event_id.tolist())
    gone = torch.isin(split.train.src, hidden) | torch.isin(split.train.dst, hidden)
    assert kept == set(split.train.event_id[~gone].tolist())
    inductive = events_at(split.test, unseen)
    assert 0 < len(inductive) < len(split.test) and (unseen[inductive.src] | unseen[inductive.dst]).all()
    with pytest.raises(ValueError, match="fraction is 1"):
        hide_nodes(split, 1.0)
    with pytest.raises(ValueError, match="nodes is int64"):
        events_at(split.test, hidden)


def splitmix(x: int) -> int:
    mask = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_hashes_are_those_of_the_kernels() -> None:
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    words = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    for chain in words:
        got = chained_hash(torch.tensor(chain), torch.tensor(words)).tolist()
        for word, value in zip(words, got, strict=True):
            expected = splitmix((chain + golden + splitmix((word + golden) & mask)) & mask)
            assert value & mask == expected
            assert int(below(torch.tensor(value), 1899)) == ((expected >> 32) * 1899) >> 32


def test_negatives_do_not_depend_on_batches() -> None:
    edges = stream(3000, 40)
    sampler = NegativeSampler(edges.dst % 30 + 5, seed=7, history=edges)
    whole = sampler.sample(edges.event_id, 4, exclude=edges.dst)
    history = sampler.sample_historical(edges.event_id, edges.src, 4, exclude=edges.dst)
    for size in (1, 700):
        some = [sampler(batch.event_id, 4, exclude=batch.dst) for batch in edges[:1400].batches(size)]
        assert torch.cat(some).equal(whole[:1400])
    batch = edges[500:900]
    again = sampler.sample_historical(batch.event_id, batch.src, 4, exclude=batch.dst)
    assert again.equal(history[500:900])
    assert sampler.sample(edges.event_id, 2, exclude=edges.dst).equal(whole[:, :2])
    assert not sampler.sample(edges.event_id, 4, exclude=edges.dst, epoch=1).equal(whole)
    other = NegativeSampler(edges.dst % 30 + 5, seed=8)
    assert not other.sample(edges.event_id, 4, exclude=edges.dst).equal(whole)


def test_negatives_are_uniform_and_never_the_true_destination() -> None:
    nodes = torch.tensor([9, 2, 4, 4, 7])
    sampler = NegativeSampler(nodes)
    event, wrong = torch.arange(20000), torch.arange(20000) % 11
    drawn = sampler.sample(event, 2, exclude=wrong)
    assert (drawn != wrong[:, None]).all() and set(drawn.unique().tolist()) == {2, 4, 7, 9}
    for excluded, share in ((4, 1 / 3), (5, 1 / 4)):
        counts = drawn[wrong == excluded].unique(return_counts=True)[1].double()
        assert ((counts / counts.sum() - share).abs() < 0.03).all()
    assert NegativeSampler(torch.tensor([3])).sample(event[:5], exclude=torch.full((5,), 3)).eq(3).all()


def test_historical_negatives_are_earlier_destinations() -> None:
    history = EdgeList.from_events(*torch.tensor([[0, 0, 0, 1, 3], [4, 2, 4, 2, 1], [1, 2, 3, 4, 5]]), num_nodes=6)
    sampler = NegativeSampler(torch.tensor([5]), history=history)
    src, true = torch.tensor([0, 0, 0, 1, 1, 2, 5]), torch.tensor([4, 2, 3, 2, 5, 0, 0])
    drawn = sampler.sample_historical(torch.arange(7), src, 60, exclude=true)
    expected = [{2}, {4}, {2, 4}, {5}, {2}, {5}, {5}]  # 5 is a uniform draw: no other destination in the history
    assert [set(row.unique().tolist()) for row in drawn] == expected
    free = sampler.sample_historical(torch.arange(7), src, 60)
    assert [set(row.unique().tolist()) for row in free] == [{2, 4}, {2, 4}, {2, 4}, {2}, {2}, {5}, {5}]


def test_bad_calls_of_the_sampler() -> None:
    sampler = NegativeSampler(torch.tensor([1, 2]))
    event = torch.arange(3)
    with pytest.raises(ValueError, match="k is 0"):
        sampler.sample(event, 0)
    with pytest.raises(ValueError, match=r"exclude is int64 of shape \(2,\)"):
        sampler.sample(event, exclude=event[:2])
    with pytest.raises(ValueError, match="event_id is float32"):
        sampler.sample(event.float())
    with pytest.raises(ValueError, match="history is None"):
        sampler.sample_historical(event, event)
    with pytest.raises(ValueError, match="dst_nodes is int64 of shape"):
        NegativeSampler(torch.empty(0, dtype=torch.int64))
