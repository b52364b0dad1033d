"""Edge streams: recent neighbours, the N-cache of NAT, memories, joins of neighbourhoods; see docs/temporal.md."""

from __future__ import annotations

from anabranch.temporal.pair_encode import pair_encode
from anabranch.temporal.pair_join import pair_join
from anabranch.temporal.row_intersect import csr_from_edges, gather_sum, row_set, row_set_sum

__all__ = ["csr_from_edges", "gather_sum", "pair_encode", "pair_join", "row_set", "row_set_sum"]
