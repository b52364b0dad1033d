"""Loads the compiled libraries and answers for ops that this build has no GPU kernels for."""

from __future__ import annotations

import importlib.util
from typing import Any, NoReturn

import torch


def _load(name: str) -> bool:
    # find_spec sees the libraries of an editable install too, where they lie outside this folder.
    spec = importlib.util.find_spec(f"anabranch.{name}")
    if spec is None or spec.origin is None:
        return False
    torch.ops.load_library(spec.origin)
    return True


if not _load("_C"):
    raise ImportError("anabranch was installed without its library _C: reinstall it with `pip install .`")
has_cuda_kernels = _load("_C_cuda")

ops = torch.ops.anabranch


def _explain_missing_cuda_kernels() -> torch.library.Library:
    """Gives every op a CUDA kernel that says what to install, so that no one meets the dispatcher's own error."""
    library = torch.library.Library("anabranch", "IMPL", "CUDA")

    def explain(name: str) -> Any:
        def kernel(*args: object, **kwargs: object) -> NoReturn:
            raise ValueError(
                f"{name}: the tensors are on a CUDA device, must be on the CPU in this build of anabranch; "
                "build it where nvcc is found (pip install . -C cmake.define.ANABRANCH_CUDA=ON) "
                "or install a wheel with CUDA kernels"
            )

        return kernel

    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("anabranch::") and not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"):
            short = name.removeprefix("anabranch::")
            if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"):
                library.impl(short, explain(short))
    return library


_cuda_explanations = None if has_cuda_kernels else _explain_missing_cuda_kernels()
