"""Loads the compiled libraries and answers for ops that this build has no GPU kernels for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NoReturn

import torch


def _load(name: str) -> bool:
    # find_spec sees the libraries of an editable install too, where they lie outside this folder.
    spec = importlib.util.find_spec(f"anabranch.{name}")
    if spec is None or spec.origin is None:
        return False
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        raise ImportError(
            f"{spec.origin} does not load with torch {torch.__version__}, must be built for this system and torch 2.10 "
            f"or later; reinstall anabranch, or torch ({error})"
        ) from error
    return True


if not _load("_C"):
    raise ImportError("anabranch was installed without its library _C: reinstall it with `pip install .`")
has_cuda_kernels = _load("_C_cuda")
"""Whether this build has kernels for GPUs; neither a driver nor a GPU is needed for it to be true."""

ops = torch.ops.anabranch


_cpu_only: dict[str, str] = {}


def cpu_only(instead: str, *names: str) -> None:
    """Says that no build has CUDA kernels for these ops, and what to do instead."""
    _cpu_only.update(dict.fromkeys(names, instead))


def _explanation(name: str) -> Callable[..., NoReturn]:
    def kernel(*arguments: object, **keywords: object) -> NoReturn:
        if name in _cpu_only:
            raise ValueError(f"{name}: the tensors are on a CUDA device, must be on the CPU; {_cpu_only[name]}")
        raise ValueError(
            f"{name}: the tensors are on a CUDA device, must be on the CPU in this build of anabranch; "
            "build it where nvcc is found (pip install . --config-settings=cmake.define.ANABRANCH_CUDA=ON) "
            "or install a wheel with CUDA kernels"
        )

    return kernel


def _explain_missing_cuda_kernels() -> torch.library.Library:
    """Gives every op without a CUDA kernel one that says what to install, also for callers of torch.ops."""
    library = torch.library.Library("anabranch", "IMPL", "CUDA")
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("anabranch::") and has_kernel(name, "CPU") and not has_kernel(name, "CUDA"):
            short = name.removeprefix("anabranch::")
            library.impl(short, _explanation(short))
    return library


# Kept: the kernels go with the object.
_cuda_explanations = _explain_missing_cuda_kernels()
