"""Edge streams: recent neighbours, the N-cache of NAT, memories, joins of neighbourhoods; see docs/temporal.md."""

from __future__ import annotations

from anabranch.temporal.recent_neighbors import RecentEvents, RecentNeighbors

__all__ = ["RecentEvents", "RecentNeighbors"]
from anabranch.temporal.scatter import latest_of_node, ordered_scatter_, ordered_scatter_add_

__all__ = [
    "latest_of_node",
    "ordered_scatter_",
    "ordered_scatter_add_",
]
