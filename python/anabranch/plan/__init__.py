"""The plan room: building, transposing and reducing plans."""

from anabranch.plan.build import from_mask, from_pairs, from_top_k
from anabranch.plan.plan import Plan, TransposedPlan
from anabranch.plan.reduce import gather, scatter_add, segment_reduce

__all__ = [
    "Plan",
    "TransposedPlan",
    "from_mask",
    "from_pairs",
    "from_top_k",
    "gather",
    "scatter_add",
    "segment_reduce",
]
