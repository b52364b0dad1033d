"""Skip-gated and width-elastic FFNs, and the policies that decide what is skipped."""

from anabranch.skip.gated_ffn import gated_ffn, prefix_ffn
from anabranch.skip.lowrank import lowrank_residual
from anabranch.skip.norm import Norm
from anabranch.skip.otherwise import Anchor, CachedDelta, LowRank, Otherwise, SmallFfn
from anabranch.skip.packed import PackedFfn, pack_ffn
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
    "Norm",
    "Otherwise",
    "PackedFfn",
    "Policy",
    "Report",
    "SmallFfn",
    "State",
    "Width",
    "apply",
    "gated_ffn",
    "lowrank_residual",
    "pack_ffn",
    "prefix_ffn",
    "remove",
    "report",
]
