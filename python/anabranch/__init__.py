"""anabranch: dynamic neural networks for PyTorch, at the price of what is active."""

from anabranch import experts, index, mixers, plan, skip, temporal
from anabranch.core.cost import Cost, CostMeter
from anabranch.core.library import has_cuda_kernels
from anabranch.plan import Plan

__version__ = "0.1.0"

__all__ = ["Cost", "CostMeter", "Plan", "experts", "has_cuda_kernels", "index", "mixers", "plan", "skip", "temporal"]
