"""RecentNeighbors is exact: every list of every batch size against models, and the same on every number of threads."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recent_model import RecentModel, college_messages, entries, last_before
from torch import Tensor

from anabranch.temporal import RecentEvents, RecentNeighbors

BATCHES = (1, 7, 200, 1000, 4000, 10**9)


def stream(name: str) -> Tensor:
    """Events in order, int64 `[E, 3]`: src, dst, time."""
    if name == "messages":
        return college_messages()
    nodes = torch.randint(0, 12, (6000, 2)) ** 2  # heavy ties and self-loops, negative times first
    return torch.cat([nodes, torch.randint(-150, 150, (6000, 1)).sort(0).values], 1)


def run(module: RecentNeighbors, events: Tensor, queries: Tensor, batch: int) -> RecentEvents:
    parts = []
    for begin in range(0, len(events), batch):
        src, dst, time = events[begin : begin + batch].unbind(1)
        parts.append(module.lookup_and_insert(src, dst, time, queries[begin : begin + batch]))
    return RecentEvents(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def same(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("k", [1, 3, 10, 32])
@pytest.mark.parametrize("name", ["messages", "ties"])
def test_no_list_is_wrong(name: str, k: int) -> None:
    events = stream(name)
    if name == "messages" and k != 10:
        events = events[:12_000]
    num_nodes = int(events[:, :2].max()) + 2
    queries = torch.cat([events[:, :2], torch.randint(0, num_nodes, (len(events), 1))], 1)
    if name == "messages":
        queries = queries.gather(1, torch.arange(len(events))[:, None] % 3)
    first_of_time = torch.searchsorted(events[:, 2].contiguous(), events[:, 2].contiguous())
    causal_lists = last_before(events, queries, first_of_time, k)
    for batch in BATCHES:
        n = min(len(events), 1500 * batch)  # a call takes microseconds
        number = torch.arange(n)
        batch_lists = last_before(events[:n], queries[:n], number - number % batch, k)
        for causal in (False, True):
            module = RecentNeighbors(num_nodes, k, causal=causal)
            found = run(module, events[:n], queries[:n], batch)
            wanted = tuple(one[:n] for one in causal_lists) if causal else batch_lists
            assert same(found, wanted), (batch, causal)
            assert module.num_events == n and module.latest == events[n - 1, 2]
    assert torch.equal(module.degrees(), torch.bincount(
        torch.cat([events[:, 0], events[events[:, 0] != events[:, 1], 1]]), minlength=num_nodes
    ))  # fmt: skip


small = st.integers(0, 4)
wide = st.sampled_from([0, 1, -1, 2**31 + 5, 2**40, -(2**40), 1_700_000_000_123_456_789])
# src, dst, time, event id.
event = st.tuples(small, small, wide | st.integers(-3, 3), st.integers(0, 5) | st.just(2**33))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    events=st.lists(event, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    k=st.integers(1, 5) | st.just(10),
    direction=st.sampled_from(["both", "out", "in"]),
    causal=st.booleans(),
    late=st.booleans(),
)
def test_any_stream_is_as_the_model_has_it(
    events: list[tuple[int, int, int, int]], cuts: list[int], k: int, direction: str, causal: bool, late: bool
) -> None:
    """Late events too, equal times with ids in any order, and equal ids; nodes 5 and 6 are never seen."""
    if not late:
        events.sort(key=lambda one: one[2])
    module = RecentNeighbors(7, k, direction=direction, causal=causal, allow_late=late)  # type: ignore[arg-type]
    model = RecentModel(k, direction)
    borders = sorted({0, len(events), *(min(cut, len(events)) for cut in cuts)})
    for begin, end in zip(borders, [*borders[1:], len(events)], strict=True):
        part = torch.tensor(events[begin:end], dtype=torch.int64).reshape(-1, 4)
        queries = torch.stack([part[:, 0], (part[:, 1] + 3) % 7], 1)
        found = module.lookup_and_insert(*part[:, :3].unbind(1), queries, part[:, 3])
        wanted = model.batch(part.tolist(), queries.tolist(), causal)
        # A causal lookup before a time that others are past sees what is still there.
        if not (causal and late):
            assert entries(found) == wanted
    nodes = torch.arange(7)
    assert entries(module.lookup(nodes)) == [model.last(node) for node in range(7)]
    if causal:
        for node, keys in model.keys.items():
            for time in {keys[-1][0], keys[-1][0] + 1} if keys else ():
                found = module.lookup(torch.tensor([node]), torch.tensor([time]))
                assert entries(found) == [model.last(node, before=time)]


def test_late_events_in_any_order_are_sorted_events() -> None:
    events = torch.cat([torch.randint(0, 9, (500, 2)), torch.randint(0, 40, (500, 1))], 1)
    events = torch.cat([events, torch.arange(500)[:, None]], 1)
    in_order = events[events[:, 2].argsort(stable=True)]
    states = []
    for given_events, batch in ((in_order, 500), (events, 500), (events.flip(0), 33), (events[torch.randperm(500)], 1)):
        module = RecentNeighbors(9, 6, allow_late=True)
        for part in given_events.split(batch):
            module.insert(*part.unbind(1))
        states.append(module.rows)
    assert all(torch.equal(state, states[0]) for state in states)


@pytest.mark.cpu
@pytest.mark.parametrize("causal", [False, True])
def test_threads_and_instruction_sets_change_nothing(causal: bool, cpu_isa: str) -> None:
    """For a length that the kernels know, and for one that they do not."""
    events = stream("ties")
    queries = events[:, :2]
    before = torch.get_num_threads()
    try:
        for k in (10, 7):
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                module = RecentNeighbors(150, k, causal=causal)
                results.append((*run(module, events, queries, 3000), module.rows))
            assert same(results[0], results[1]) and same(results[0], results[2])
            bounds = torch.arange(len(events)) // 3000 * 3000
            if causal:
                bounds = torch.searchsorted(events[:, 2].contiguous(), events[:, 2].contiguous())
            assert same(results[0][:3], last_before(events, queries, bounds, k))
    finally:
        torch.set_num_threads(before)


def test_saved_and_loaded_goes_on_as_if_it_had_not_stopped() -> None:
    events = stream("ties")[:900]
    queries = events[:, :2]
    whole = RecentNeighbors(150, 4, causal=True)
    run(whole, events, queries, 100)
    first = RecentNeighbors(150, 4, causal=True)
    run(first, events[:400], queries[:400], 100)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    loaded = RecentNeighbors(150, 4, causal=True)
    loaded.load_state_dict(torch.load(file))
    others = (loaded, copy.deepcopy(first), pickle.loads(pickle.dumps(first)), first)
    for module in others:
        run(module, events[400:], queries[400:], 77)
        assert all(torch.equal(a, b) for a, b in zip(module.buffers(), whole.buffers(), strict=True))


def test_growing_and_forgetting() -> None:
    module = RecentNeighbors(3, 2)
    module.insert(torch.tensor([0, 2]), torch.tensor([1, 2]), torch.tensor([5, 6]))
    before = module.lookup(torch.arange(3))
    module.grow(10)
    assert module.num_nodes == 10 and module.num_events == 2
    assert same(module.lookup(torch.arange(3)), before)
    module.insert(torch.tensor([9]), torch.tensor([2]), torch.tensor([6]))
    assert module.degrees().tolist() == [1, 1, 2, 0, 0, 0, 0, 0, 0, 1]
    assert entries(module(torch.tensor([[2], [4]]))) == [[(2, 6, 1), (9, 6, 2)], [(-1, -1, -1)] * 2]
    module.reset()
    assert module.degrees().sum() == 0 and module.num_events == 0
    assert torch.equal(module.rows, RecentNeighbors(10, 2).rows)
    module.insert(torch.tensor([9]), torch.tensor([2]), torch.tensor([-7]))  # earlier than what was forgotten
    assert module.latest == -7


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (2, 3)])
def test_lookups_have_the_shape_of_the_nodes(shape: tuple[int, ...]) -> None:
    module = RecentNeighbors(4, 3, causal=True)
    nodes = torch.zeros(shape, dtype=torch.int64)
    assert all(one.shape == (*shape, 3) for one in module.lookup(nodes))
    assert all(one.shape == (*shape, 3) for one in module.lookup(nodes, nodes))
    none = torch.zeros(0, dtype=torch.int64)
    module.insert(none, none, none)
    assert module.lookup_and_insert(none, none, none, none.view(0, 2)).times.shape == (0, 2, 3)
    assert module.lookup_and_insert(*nodes.new_zeros(3, 5), nodes.new_zeros(5, 0)).times.shape == (5, 0, 3)


def test_batches_may_be_strided_and_expanded() -> None:
    events = stream("ties")[:300]
    plain, strided = RecentNeighbors(150, 3), RecentNeighbors(150, 3)
    src, dst, time = (column.contiguous() for column in events.unbind(1))
    found = plain.lookup_and_insert(src, dst, time, dst[:, None].repeat(1, 2))
    assert same(strided.lookup_and_insert(*events.unbind(1), events[:, 1:2].expand(-1, 2)), found)
    assert torch.equal(plain.rows, strided.rows)


def test_it_compiles_whole() -> None:
    events = stream("ties")[:40]
    eager, compiled = RecentNeighbors(150, 3, causal=True), RecentNeighbors(150, 3, causal=True)

    def step(module: RecentNeighbors, batch: Tensor) -> tuple[Tensor, Tensor]:
        src, dst, time = batch.unbind(1)
        before = module.lookup_and_insert(src, dst, time, batch[:, :2])
        module.insert(dst, src, time[-1:].expand_as(time))
        after = module.lookup(src, time)
        return before.neighbors + 1, after.times * 2

    run_compiled = torch.compile(step, fullgraph=True)
    for batch in events.split(20):
        assert same(run_compiled(compiled, batch), step(eager, batch))
    assert all(torch.equal(a, b) for a, b in zip(eager.buffers(), compiled.buffers(), strict=True))
