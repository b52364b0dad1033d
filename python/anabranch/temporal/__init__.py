"""Edge streams: recent neighbours, the N-cache of NAT, memories, joins of neighbourhoods; see docs/temporal.md."""

from __future__ import annotations

__all__: list[str] = []
