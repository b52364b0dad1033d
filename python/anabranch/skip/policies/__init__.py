"""Skip policies: one file per family. Each docstring says where its gradient comes from and what a decision costs."""

from anabranch.skip.policies.bandit import BanditSkip
from anabranch.skip.policies.common import RecordingPolicy
from anabranch.skip.policies.cosine import CosineSkip
from anabranch.skip.policies.layer_router import LayerRouter
from anabranch.skip.policies.mixture_of_depths import MixtureOfDepths, top_k_mask
from anabranch.skip.policies.static import ContiguousSkip, UniformSkip
from anabranch.skip.policies.temporal import TemporalDrop
from anabranch.skip.policies.three_way import ThreeWayRouter
from anabranch.skip.policies.width_router import BlockDeltaCache, WidthRouter

__all__ = [
    "BanditSkip",
    "BlockDeltaCache",
    "ContiguousSkip",
    "CosineSkip",
    "LayerRouter",
    "MixtureOfDepths",
    "RecordingPolicy",
    "TemporalDrop",
    "ThreeWayRouter",
    "UniformSkip",
    "WidthRouter",
    "top_k_mask",
]
