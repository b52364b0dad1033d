"""Edge streams: recent neighbours, the N-cache of NAT, memories, joins of neighbourhoods; see docs/temporal.md."""

from __future__ import annotations

from anabranch.temporal.pair_encode import pair_encode
from anabranch.temporal.pair_join import pair_join

__all__ = ["pair_encode", "pair_join"]
