"""What RecentNeighbors refuses: nothing is written then, and the message says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anabranch.temporal import RecentNeighbors

LEAST, GREATEST = -(2**63), 2**63 - 1


def tensor(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def module_with_events(**options: Any) -> RecentNeighbors:
    module = RecentNeighbors(5, 3, **options)
    module.insert(tensor(0, 1), tensor(1, 4), tensor(7, 8))
    return module


def refuses(module: RecentNeighbors, match: str, call: Callable[[], Any]) -> None:
    before = [buffer.clone() for buffer in module.buffers()]
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert "; " in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((-1, 3), "num_nodes is -1"),
        ((4, 0), "k is 0"),
        ((4, 2**20 + 1), "must be 1 to 2"),
    ],
)
def test_sizes(arguments: tuple[int, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RecentNeighbors(*arguments)
    with pytest.raises(ValueError, match="must be 'both', 'out' or 'in'"):
        RecentNeighbors(3, 3, direction="sideways")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"src": tensor(0)}, r"^(insert|lookup_and_insert): dst has shape \(2,\), must be \(1,\) like src"),
        ({"time": tensor(9)}, r"time has shape \(1,\), must be \(2,\)"),
        ({"event_id": tensor(1, 2, 3)}, r"event_id has shape \(3,\)"),
        ({"src": tensor(0, 1).int()}, "src is int32, must be int64"),
        ({"time": torch.tensor([9.0, 9.0])}, "time is float32, must be int64"),
        ({"dst": tensor(0, 1)[:, None]}, r"dst has shape \(2, 1\), must be \(n,\); flatten it"),
        ({"src": tensor(0, 1).to("meta")}, "src is on meta"),
    ],
)
def test_batches_that_do_not_fit(changed: dict[str, Tensor], match: str) -> None:
    module = module_with_events()
    batch = {"src": tensor(0, 1), "dst": tensor(1, 2), "time": tensor(9, 9), **changed}
    refuses(module, match, lambda: module.insert(**batch))
    refuses(module, match, lambda: module.lookup_and_insert(**batch, queries=tensor(0, 1)[:, None]))


def test_queries_that_do_not_fit() -> None:
    module = module_with_events()
    batch = (tensor(0, 1), tensor(1, 2), tensor(9, 9))
    for queries in (tensor(0, 1), tensor(0)[:, None], tensor(0, 1).view(1, 2)):
        refuses(module, r"^lookup_and_insert: queries has shape", lambda q=queries: module.lookup_and_insert(*batch, q))
    refuses(module, "queries is int32", lambda: module.lookup_and_insert(*batch, tensor(0, 1)[:, None].int()))
    refuses(module, "time is given, must be None", lambda: module.lookup(tensor(1), tensor(9)))
    causal = module_with_events(causal=True)
    refuses(causal, r"time has shape \(1,\), must be \(2,\) like nodes", lambda: causal.lookup(tensor(1, 2), tensor(9)))
    refuses(causal, "nodes is float32", lambda: causal.lookup(torch.ones(2)))
    refuses(causal, "nodes is on meta", lambda: causal.lookup(tensor(1).to("meta")))


@pytest.mark.cpu
@pytest.mark.parametrize("bad", [-1, 5, LEAST, GREATEST])
def test_nodes_without_a_row_and_negative_ids(bad: int) -> None:
    module = module_with_events()
    good, time = tensor(0, 1), tensor(9, 9)
    nodes = tensor(2, bad)
    where = rf"\[1\] is {bad}, must be in \[0, 5\)"
    refuses(module, f"^insert: src{where}", lambda: module.insert(nodes, good, time))
    refuses(module, f"^insert: dst{where}", lambda: module.insert(good, nodes, time))
    refuses(module, f"^lookup: nodes{where}", lambda: module.lookup(nodes))
    both = torch.stack([good, nodes], 1)
    refuses(
        module, "queries" + where.replace(r"\[1", r"\[1, 1"), lambda: module.lookup_and_insert(good, good, time, both)
    )
    if bad < 0:
        refuses(module, rf"event_id\[1\] is {bad}", lambda: module.insert(good, good, time, nodes))
    empty = RecentNeighbors(0, 3)
    refuses(empty, r"nodes\[0\] is 0", lambda: empty.lookup(tensor(0)))


@pytest.mark.cpu
def test_times_that_decrease() -> None:
    module = module_with_events()
    good = tensor(0, 1)
    for time, match in (
        (tensor(7, 9), "time is 7 at position 0, must be at least 8"),
        (tensor(9, 8), "time is 8 at position 1, must be at least 9"),
        (tensor(9, LEAST), "position 1"),
    ):
        refuses(module, match, lambda t=time: module.insert(good, good, t))
        refuses(module, match, lambda t=time: module.lookup_and_insert(good, good, t, good[:, None]))
    late = module_with_events(allow_late=True)
    late.insert(good, good, tensor(9, LEAST))
    assert late.latest == 9


@pytest.mark.cpu
def test_a_batch_may_not_lie_in_the_rows() -> None:
    module = module_with_events(allow_late=True)
    inside = module.rows.view(-1)[3:5]
    refuses(module, "src shares memory", lambda: module.insert(inside, tensor(0, 1), tensor(9, 9)))
    refuses(
        module,
        "queries shares memory",
        lambda: module.lookup_and_insert(tensor(0, 1), tensor(0, 1), tensor(9, 9), inside[:, None]),
    )
    refuses(module, "time shares memory", lambda: module.insert(tensor(0), tensor(1), module.latest))


def test_another_state_is_refused_whole() -> None:
    module = module_with_events()
    for other in (RecentNeighbors(6, 3), RecentNeighbors(5, 4), RecentNeighbors(5, 3, causal=True)):
        before = [buffer.clone() for buffer in module.buffers()]
        with pytest.raises(RuntimeError, match=r"(rows|layout) is int64 .*; make the module with"):
            module.load_state_dict(other.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))
    refuses(module, "num_nodes is 4, must be at least 5", lambda: module.grow(4))


@pytest.mark.cpu
def test_shared_memory() -> None:
    module = module_with_events()
    module.share_memory()
    refuses(module, "in shared memory", lambda: module.grow(9))
    module.insert(tensor(1), tensor(2), tensor(9))
    assert module.degrees().tolist() == [1, 3, 1, 0, 1]


word = st.integers(-2, 6) | st.sampled_from([LEAST, GREATEST, 2**32])
words = st.lists(word, max_size=4)


@pytest.mark.cpu
@settings(deadline=None, derandomize=True, max_examples=150)
@given(src=words, dst=words, time=words, ids=st.none() | words, queries=words, causal=st.booleans(), late=st.booleans())
def test_arbitrary_numbers_are_refused_whole_or_taken_whole(
    src: list[int],
    dst: list[int],
    time: list[int],
    ids: list[int] | None,
    queries: list[int],
    causal: bool,
    late: bool,
) -> None:
    module = RecentNeighbors(5, 2, causal=causal, allow_late=late)
    module.insert(tensor(0), tensor(3), tensor(-2))
    before = [buffer.clone() for buffer in module.buffers()]
    size = len(src)
    fits = size == len(dst) == len(time) == len(queries) and (ids is None or len(ids) == size)
    fits = fits and all(0 <= node < 5 for node in (*src, *dst, *queries)) and all(i >= 0 for i in ids or ())
    in_order = [-2, *time] == sorted([-2, *time])
    batch = (tensor(*src), tensor(*dst), tensor(*time), tensor(*queries)[:, None])
    event_id = None if ids is None else tensor(*ids)
    if fits and (late or in_order):
        found = module.lookup_and_insert(*batch, event_id)
        assert found.times.shape == (size, 1, 2) and module.num_events == size + 1
        assert module.latest == max([-2, *time])
    else:
        with pytest.raises(ValueError, match="lookup_and_insert: "):
            module.lookup_and_insert(*batch, event_id)
        assert all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))
