"""Skip-gated and width-elastic FFNs, and the policies that decide what is skipped."""

from anabranch.skip.otherwise import Anchor, CachedDelta, LowRank, Otherwise, SmallFfn
from anabranch.skip.policy import Action, Decision, Keep, KeyValueRule, Layer, Policy, State, Width

__all__ = [
    "Action",
    "Anchor",
    "CachedDelta",
    "Decision",
    "Keep",
    "KeyValueRule",
    "Layer",
    "LowRank",
    "Otherwise",
    "Policy",
    "SmallFfn",
    "State",
    "Width",
]
