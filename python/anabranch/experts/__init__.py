"""The experts room: routers, their losses and schedules, grouped products and the expert FFN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anabranch.experts.expert_ffn import expert_ffn
from anabranch.experts.grouped_lora import grouped_lora
from anabranch.experts.grouped_mm import grouped_mm
from anabranch.experts.losses import (
    dynmole_balance_loss,
    entropy_loss,
    load_balance_loss,
    tsallis_loss,
    z_loss,
)
from anabranch.experts.modules import DynamicMoE, Routing
from anabranch.experts.packed import PackedExperts, pack_experts
from anabranch.experts.percentile_threshold import PercentileThreshold
from anabranch.experts.routers import (
    route_percentile,
    route_top_k,
    route_top_p,
    route_tsallis,
)
from anabranch.experts.schedules import capacity_schedule

if TYPE_CHECKING:
    from anabranch.experts.parallel import ExpertParallel

__all__ = [
    "DynamicMoE",
    "ExpertParallel",
    "PackedExperts",
    "PercentileThreshold",
    "Routing",
    "capacity_schedule",
    "dynmole_balance_loss",
    "entropy_loss",
    "expert_ffn",
    "grouped_lora",
    "grouped_mm",
    "load_balance_loss",
    "pack_experts",
    "route_percentile",
    "route_top_k",
    "route_top_p",
    "route_tsallis",
    "tsallis_loss",
    "z_loss",
]


def __getattr__(name: str) -> Any:
    # Not imported above: torch.distributed.tensor takes a third of a second, and some builds of torch have none.
    if name == "ExpertParallel":
        from anabranch.experts.parallel import ExpertParallel

        return ExpertParallel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
