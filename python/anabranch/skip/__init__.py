"""Skip-gated and width-elastic FFNs, and the policies that decide what is skipped."""

from anabranch.skip.otherwise import Anchor, CachedDelta, LowRank, Otherwise, SmallFfn
from anabranch.skip.policy import Action, Decision, Keep, KeyValueRule, Layer, Policy, State, Width
from anabranch.skip.runtime import LayerReport, Report, apply, remove, report

__all__ = [
    "Action",
    "Anchor",
    "CachedDelta",
    "Decision",
    "Keep",
    "KeyValueRule",
    "Layer",
    "LayerReport",
    "LowRank",
    "Otherwise",
    "Policy",
    "Report",
    "SmallFfn",
    "State",
    "Width",
    "apply",
    "remove",
    "report",
]
