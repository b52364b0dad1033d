"""Skip-gated and width-elastic FFNs, and the policies that decide what is skipped."""

from anabranch.skip.gated_ffn import gated_ffn, prefix_ffn
from anabranch.skip.losses import UNLABELLED, budget_loss, class_balanced_weights, focal_loss
from anabranch.skip.lowrank import lowrank_residual
from anabranch.skip.norm import Norm
from anabranch.skip.otherwise import Anchor, CachedDelta, LowRank, Otherwise, SmallFfn
from anabranch.skip.packed import PackedFfn, pack_ffn
from anabranch.skip.policies import (
    BanditSkip,
    BlockDeltaCache,
    ContiguousSkip,
    CosineSkip,
    LayerRouter,
    MixtureOfDepths,
    RecordingPolicy,
    TemporalDrop,
    ThreeWayRouter,
    UniformSkip,
    WidthRouter,
)
from anabranch.skip.policy import Action, Decision, Keep, KeyValueRule, Layer, Policy, State, Width
from anabranch.skip.runtime import LayerReport, Report, apply, remove, report
from anabranch.skip.search import FoundPath, OracleResult, mcts_paths, oracle_search, path_labels

__all__ = [
    "UNLABELLED",
    "Action",
    "Anchor",
    "BanditSkip",
    "BlockDeltaCache",
    "CachedDelta",
    "ContiguousSkip",
    "CosineSkip",
    "Decision",
    "FoundPath",
    "Keep",
    "KeyValueRule",
    "Layer",
    "LayerReport",
    "LayerRouter",
    "LowRank",
    "MixtureOfDepths",
    "Norm",
    "OracleResult",
    "Otherwise",
    "PackedFfn",
    "Policy",
    "RecordingPolicy",
    "Report",
    "SmallFfn",
    "State",
    "TemporalDrop",
    "ThreeWayRouter",
    "UniformSkip",
    "Width",
    "WidthRouter",
    "apply",
    "budget_loss",
    "class_balanced_weights",
    "focal_loss",
    "gated_ffn",
    "lowrank_residual",
    "mcts_paths",
    "oracle_search",
    "pack_ffn",
    "path_labels",
    "prefix_ffn",
    "remove",
    "report",
]
