"""Edge streams: recent neighbours, the N-cache of NAT, memories, joins of neighbourhoods; see docs/temporal.md."""

from __future__ import annotations

from anabranch.temporal.ncache import NCache
from anabranch.temporal.ncache_read import GruWeights, NCacheRows, gru_weights, ncache_read

__all__ = ["GruWeights", "NCache", "NCacheRows", "gru_weights", "ncache_read"]
