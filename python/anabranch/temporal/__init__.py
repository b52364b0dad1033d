"""Edge streams: recent neighbours, the N-cache of NAT, memories, joins of neighbourhoods; see docs/temporal.md."""

from __future__ import annotations

from anabranch.temporal.recent_neighbors import RecentEvents, RecentNeighbors

__all__ = ["RecentEvents", "RecentNeighbors"]
