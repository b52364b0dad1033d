"""Edge streams: recent neighbours, the N-cache of NAT, memories, joins of neighbourhoods; see docs/temporal.md."""

from __future__ import annotations

from anabranch.temporal.memory_table import MemoryTable
from anabranch.temporal.messages import IdentityMessage, LastAggregator, MeanAggregator, TimeEncoder
from anabranch.temporal.random_projections import RandomProjections
from anabranch.temporal.recent_neighbors import RecentEvents, RecentNeighbors
from anabranch.temporal.running_mean import RunningMean, degree_encoding, masked_mean_sum
from anabranch.temporal.running_moments import MemoryCorrection, RunningMoments, coherence_loss
from anabranch.temporal.scatter import latest_of_node, ordered_scatter_, ordered_scatter_add_
from anabranch.temporal.signed_memory import SignedMemory

__all__ = [
    "IdentityMessage",
    "LastAggregator",
    "MeanAggregator",
    "MemoryCorrection",
    "MemoryTable",
    "RandomProjections",
    "RecentEvents",
    "RecentNeighbors",
    "RunningMean",
    "RunningMoments",
    "SignedMemory",
    "TimeEncoder",
    "coherence_loss",
    "degree_encoding",
    "latest_of_node",
    "masked_mean_sum",
    "ordered_scatter_",
    "ordered_scatter_add_",
]
