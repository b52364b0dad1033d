"""The experts room: routers, grouped products and the expert FFN."""

from anabranch.experts.expert_ffn import expert_ffn, grouped_lora
from anabranch.experts.grouped_mm import grouped_mm
from anabranch.experts.modules import DynamicMoE, Routing

__all__ = ["DynamicMoE", "Routing", "expert_ffn", "grouped_lora", "grouped_mm"]
