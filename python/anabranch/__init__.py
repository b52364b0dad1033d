"""anabranch: dynamic neural networks for PyTorch, at the price of what is active."""

from anabranch import plan
from anabranch.core.library import has_cuda_kernels
from anabranch.plan import Plan

__version__ = "0.1.0"

__all__ = ["Plan", "has_cuda_kernels", "plan"]
