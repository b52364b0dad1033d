"""Edge streams: recent neighbours, the N-cache of NAT, memories, joins of neighbourhoods; see docs/temporal.md."""

from __future__ import annotations

from anabranch.temporal.csr import csr_from_edges
from anabranch.temporal.edge_files import load_edges
from anabranch.temporal.edge_list import EdgeList
from anabranch.temporal.memory_table import MemoryTable
from anabranch.temporal.messages import IdentityMessage, LastAggregator, MeanAggregator, TimeEncoder
from anabranch.temporal.metrics import average_precision, hits_at, mean_reciprocal_rank, positive_ranks, roc_auc
from anabranch.temporal.ncache import NCache
from anabranch.temporal.ncache_read import GruWeights, NCacheRows, gru_weights, ncache_read
from anabranch.temporal.negatives import NegativeSampler
from anabranch.temporal.pair_encode import pair_encode
from anabranch.temporal.pair_join import pair_join
from anabranch.temporal.random_projections import RandomProjections
from anabranch.temporal.recent_neighbors import RecentNeighbors
from anabranch.temporal.recent_rows import RecentEvents
from anabranch.temporal.row_intersect import row_set, row_set_sum
from anabranch.temporal.running_mean import RunningMean, degree_encoding, masked_mean_sum
from anabranch.temporal.running_moments import MemoryCorrection, RunningMoments, coherence_loss
from anabranch.temporal.scatter import latest_of_node, ordered_scatter_, ordered_scatter_add_
from anabranch.temporal.signed_memory import SignedMemory
from anabranch.temporal.splits import TimeSplit, events_at, hide_nodes, split_by_time, unseen_nodes
from anabranch.temporal.whole_state import WholeState

__all__ = [
    "EdgeList",
    "GruWeights",
    "IdentityMessage",
    "LastAggregator",
    "MeanAggregator",
    "MemoryCorrection",
    "MemoryTable",
    "NCache",
    "NCacheRows",
    "NegativeSampler",
    "RandomProjections",
    "RecentEvents",
    "RecentNeighbors",
    "RunningMean",
    "RunningMoments",
    "SignedMemory",
    "TimeEncoder",
    "TimeSplit",
    "WholeState",
    "average_precision",
    "coherence_loss",
    "csr_from_edges",
    "degree_encoding",
    "events_at",
    "gru_weights",
    "hide_nodes",
    "hits_at",
    "latest_of_node",
    "load_edges",
    "masked_mean_sum",
    "mean_reciprocal_rank",
    "ncache_read",
    "ordered_scatter_",
    "ordered_scatter_add_",
    "pair_encode",
    "pair_join",
    "positive_ranks",
    "roc_auc",
    "row_set",
    "row_set_sum",
    "split_by_time",
    "unseen_nodes",
]
