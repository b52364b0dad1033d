"""PredictedTimeline: against a search of the live edges, its work against recompute-on-delete, and bad input."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.index import PredictedTimeline

pytestmark = pytest.mark.cpu
NODES = 6
EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("insert"), st.integers(0, NODES - 1), st.integers(0, NODES - 1), st.integers(0, 20) | st.just(2**62)
        ),
        st.tuples(st.just("erase"), st.integers(0, 99)),
        st.tuples(st.just("advance"), st.integers(0, 9)),
        st.tuples(st.just("query")),
    ),
    max_size=60,
)


def components(edges: dict[int, tuple[int, int]]) -> list[int]:
    """The least vertex of every vertex's component, by breadth-first search."""
    least = [-1] * NODES
    for start in range(NODES):
        frontier = [start] if least[start] < 0 else []
        while frontier:
            for vertex in frontier:
                least[vertex] = start
            ends = [(u, v) for pair in edges.values() for u, v in (pair, pair[::-1])]
            frontier = [v for u, v in ends if u in frontier and least[v] < 0]
    return least


class Model:
    """A graph and its live edges, with the same queries of both."""

    def __init__(self) -> None:
        self.graph = PredictedTimeline(NODES)
        self.edges: dict[int, tuple[int, int]] = {}
        self.seen: set[int] = set()
        self.restart = False
        self.clock = self.recompute_unions = 0

    def insert(self, u: int, v: int, lifetime: int) -> None:
        self.edges[self.graph.insert(u, v, lifetime)] = (u, v)
        self.clock += 1

    def erase(self, choice: int) -> None:
        if not self.edges:
            return
        edge = list(self.edges)[choice % len(self.edges)]
        self.graph.erase(edge)
        del self.edges[edge]
        self.restart |= edge in self.seen
        self.clock += 1

    def advance(self, events: int) -> None:
        self.graph.advance(events)
        self.clock += events

    def query(self) -> None:
        least = components(self.edges)
        assert self.graph.num_components() == len(set(least))
        for u in range(NODES):
            assert [self.graph.connected(u, v) for v in range(NODES)] == [least[u] == least[v] for v in range(NODES)]
        self.recompute_unions += len(self.edges.keys() - (set() if self.restart else self.seen))
        self.seen, self.restart = set(self.edges), False
        assert self.graph.recompute_unions == self.recompute_unions
        assert self.graph.unions <= self.recompute_unions
        assert (self.graph.num_edges, self.graph.clock) == (len(self.edges), self.clock)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(EVENTS)
def test_every_answer_is_that_of_a_search(events: list[tuple[Any, ...]]) -> None:
    model = Model()
    for name, *arguments in events:
        getattr(model, name)(*arguments)
    model.query()


def test_right_predictions_cost_less_than_wrong_ones() -> None:
    def unions(predict: int) -> tuple[int, int]:
        graph = PredictedTimeline(2000)
        edges = [graph.insert(2 * i, 2 * i + 1, 100 + i) for i in range(100)]
        for i in range(100, 1000):
            graph.erase(edges[i - 100])
            edges.append(graph.insert(2 * i, 2 * i + 1, predict))
            assert graph.num_components() == 1900
        return graph.unions, graph.recompute_unions

    (right, bound), (wrong, same_bound) = unions(199), unions(3)  # an edge lives for 199 events
    assert bound == same_bound == 900 * 100
    assert right < 9 * 1000  # log2(200) and the first time
    assert 3 * right < wrong <= bound


def test_a_prediction_erases_nothing_and_ids_are_in_order() -> None:
    graph = PredictedTimeline(3)
    assert graph.next_expiry() is None
    assert [graph.insert(0, 1, 1), graph.insert(1, 2, 9), graph.insert(0, 0, 4)] == [0, 1, 2]
    assert graph.next_expiry() == (2, 0)  # it came at 1
    graph.advance(100)
    assert graph.connected(0, 2) is True
    graph.erase(0)
    assert graph.connected(0, 2) is False
    assert graph.insert(0, 1, 1) == 3
    assert (graph.num_components(), graph.num_nodes, graph.num_edges, graph.rebuilds) == (1, 3, 3, 1)
    assert repr(graph) == "PredictedTimeline(num_nodes=3, num_edges=3, clock=105)"


def test_no_vertices() -> None:
    graph = PredictedTimeline(0)
    assert (graph.num_components(), graph.unions, graph.clock) == (0, 0, 0)
    with pytest.raises(ValueError, match=r"must be from 0 to -1 \(num_nodes is 0\)"):
        graph.connected(0, 0)


def test_integers_of_numpy_and_torch() -> None:
    graph = PredictedTimeline(np.int64(3))
    edge = graph.insert(np.int32(0), torch.tensor(1), np.uint8(4))
    assert graph.connected(torch.tensor(0), np.int64(1))
    graph.erase(torch.tensor(edge))
    assert graph.num_components() == 3


BAD: list[tuple[str, tuple[Any, ...], str]] = [
    ("insert", (3, 0, 1), "insert: u is 3, must be from 0 to 2 (num_nodes is 3); "),
    ("insert", (0, -1, 1), "insert: v is -1, must be from 0 to 2 (num_nodes is 3); "),
    ("insert", (0, 1, -2), "insert: predicted_lifetime is -2, must not be negative; "),
    ("insert", (0, 1, 2**63), "insert: predicted_lifetime is 9223372036854775808, must be an integer of 64 bits; "),
    ("insert", (-(2**70), 1, 1), "insert: u is -1180591620717411303424, must be an integer of 64 bits; "),
    ("erase", (-1,), "erase: edge is -1, must be the id of a live edge; "),
    ("erase", (1,), "erase: edge is 1, must be the id of a live edge; "),
    ("erase", (2,), "erase: edge is 2, must be the id of a live edge; "),
    ("advance", (-1,), "advance: events is -1, must be from 0 to 2^62 with the events so far; "),
    ("advance", (2**62,), "advance: events is 4611686018427387904, must be from 0 to 2^62 with the events so far; "),
    ("connected", (0, 3), "connected: v is 3, must be from 0 to 2 (num_nodes is 3); "),
]


@pytest.mark.parametrize("method, arguments, message", BAD)
def test_bad_input_changes_nothing(method: str, arguments: tuple[Any, ...], message: str) -> None:
    graph = PredictedTimeline(3)
    graph.insert(0, 1, 5)
    graph.erase(graph.insert(1, 2, 5))
    before = (graph.num_components(), graph.clock, graph.num_edges, graph.unions, graph.next_expiry())
    with pytest.raises(ValueError, match="^" + re.escape("PredictedTimeline." + message)):
        getattr(graph, method)(*arguments)
    assert (graph.num_components(), graph.clock, graph.num_edges, graph.unions, graph.next_expiry()) == before
    assert graph.insert(1, 2, 5) == 2


@pytest.mark.parametrize("num_nodes", [-1, 2**48 + 1, 2**64])
def test_bad_num_nodes(num_nodes: int) -> None:
    with pytest.raises(ValueError, match=rf"^PredictedTimeline: num_nodes is {num_nodes}, must be .+; .+"):
        PredictedTimeline(num_nodes)


@pytest.mark.parametrize("bad", [1.0, "1", None, torch.tensor([1, 2])])
def test_what_is_not_an_integer(bad: Any) -> None:
    graph = PredictedTimeline(3)
    for call in (lambda: graph.insert(bad, 0, 0), lambda: graph.erase(bad), lambda: graph.connected(0, bad)):
        with pytest.raises(TypeError):
            call()
    assert graph.clock == 0


def test_threads_take_turns() -> None:
    graph = PredictedTimeline(40)

    def work(first: int) -> None:
        for i in range(300):
            edge = graph.insert(first, first + 1, i % 7)
            assert graph.connected(first, first + 1)
            graph.erase(edge)
            assert not graph.connected(first, first + 1)

    threads = [threading.Thread(target=work, args=(10 * i,)) for i in range(4)]
    failures: list[Any] = []
    hook, threading.excepthook = threading.excepthook, failures.append
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = hook
    assert not failures
    assert (graph.num_components(), graph.num_edges, graph.clock) == (40, 0, 4 * 300 * 2)
