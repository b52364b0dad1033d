"""PredictedTimeline: connectivity of a graph whose edges come, and go about when they were expected to."""

from __future__ import annotations

from anabranch.index.host import PredictedTimelineBase


class PredictedTimeline(PredictedTimelineBase):
    """Which vertices of a graph are connected, while edges are inserted with a predicted lifetime and erased whenever.

        graph = PredictedTimeline(num_nodes)
        edge = graph.insert(u, v, 400)  # expected to live for 400 events
        graph.connected(a, b)
        graph.erase(edge)               # early, on time or late

    Predictions steer work alone: every answer is exact, and no edge goes before it is erased. The clock counts events:
    each insertion and each erasure is one, and `advance` lets some pass. Loops and parallel edges are edges as any.

    Args:
        num_nodes: vertices are 0 to `num_nodes - 1`.

    Raises:
        ValueError: a vertex is not one of them, a lifetime or a number of events is negative, an edge is not alive.
            Nothing has changed.
        TypeError: an argument is not an integer.

    Insertions and erasures cost O(log num_edges); a query does the work that they have left and then costs
    O(log num_nodes). That work is counted in unions. With right predictions it is O(log lifetime) for each edge; it
    grows with their error; and it is never more than that of recompute-on-delete, which `recompute_unions` counts.
    Memory: 24 bytes a vertex, about 150 a live edge. On the CPU. Methods that threads call at once run one by one.

    After "The Predicted-Updates Dynamic Model: Offline, Incremental, and Decremental to Fully Dynamic Transformations"
    (COLT 2024, arXiv 2307.08890), of which it is one instance: connectivity, by a tree over the predicted time and a
    union-find with rollback. It is not triconnectivity and not shortest paths of planar graphs.
    """

    def __init__(self, num_nodes: int) -> None:
        super().__init__(num_nodes)

    def insert(self, u: int, v: int, predicted_lifetime: int) -> int:
        """Adds an edge that is expected to be erased by the `predicted_lifetime`-th event from now.

        Returns:
            Its id, for `erase`: 0, 1, 2, ... Ids are not used again.
        """
        return self._insert(u, v, predicted_lifetime)

    def erase(self, edge: int) -> None:
        """Takes away the edge with this id."""
        self._erase(edge)

    def advance(self, events: int = 1) -> None:
        """Lets events pass that change no edge here; the clock goes up to 2^62. O(1)."""
        self._advance(events)

    def connected(self, u: int, v: int) -> bool:
        """Whether a path leads from u to v now."""
        return self._connected(u, v)

    def num_components(self) -> int:
        """Connected components now; a vertex without edges is one."""
        return self._num_components()

    def next_expiry(self) -> tuple[int, int] | None:
        """When the next edge is expected to go, and its id: what a cache would evict first. None where there is none.

        An edge that has outlived this time may have been given another.
        """
        return self._next_expiry()

    @property
    def num_nodes(self) -> int:
        """Vertices."""
        return self._num_nodes()

    @property
    def num_edges(self) -> int:
        """Live edges."""
        return self._num_edges()

    @property
    def clock(self) -> int:
        """Events so far."""
        return self._clock()

    @property
    def unions(self) -> int:
        """Work so far: edges put into the union-find, again or for the first time."""
        return self._unions()

    @property
    def rebuilds(self) -> int:
        """How often some nodes of the tree over time were redone."""
        return self._rebuilds()

    @property
    def recompute_unions(self) -> int:
        """What `unions` would be of recompute-on-delete, which begins anew at the first query after an erasure."""
        return self._recompute_unions()

    def __repr__(self) -> str:
        return f"PredictedTimeline(num_nodes={self.num_nodes}, num_edges={self.num_edges}, clock={self.clock})"
