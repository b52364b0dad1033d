"""anabranch: dynamic neural networks for PyTorch, at the price of what is active."""

import sys

__version__ = "0.1.0"

try:
    from anabranch import experts, index, mixers, plan, skip, temporal
    from anabranch.core.cost import Cost, CostMeter
    from anabranch.core.library import has_cuda_kernels
    from anabranch.plan import Plan
except ImportError as error:
    # `python -m anabranch info` imports the package too before it runs, and is there to say what is wrong.
    if sys.argv[:2] != ["-m", "info"]:
        raise ImportError(f"anabranch did not load, `python -m anabranch info` says more: {error}") from error

__all__ = ["Cost", "CostMeter", "Plan", "experts", "has_cuda_kernels", "index", "mixers", "plan", "skip", "temporal"]
