"""What the compiled libraries promise wherever they are loaded."""

from __future__ import annotations

import pytest
import torch

import anabranch  # noqa: F401  (registers the ops)
from anabranch.core.library import _explanation


def op_names() -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    kernels = [n for n in names if n.startswith("anabranch::")]
    return [n for n in kernels if torch._C._dispatch_has_kernel_for_dispatch_key(n, "CPU")]


def test_every_op_answers_on_cuda() -> None:
    assert len(op_names()) >= 16
    for name in op_names():
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), name


def test_a_build_without_cuda_kernels_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"plan_gather: the tensors are on a CUDA device.*ANABRANCH_CUDA=ON"):
        _explanation("plan_gather")()


@pytest.mark.parametrize("name", ["expert_pack", "expert_ffn_packed"])
def test_what_is_for_cpus_alone_does_not_ask_for_another_build(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: the tensors are on a CUDA device, must be on the CPU; ") as error:
        _explanation(name)()
    assert "needs no packing, use expert_ffn" in str(error.value) and "nvcc" not in str(error.value)


@pytest.mark.cpu
def test_cpu_isa_can_be_lowered_but_not_raised(cpu_isa: str) -> None:
    assert torch.ops.anabranch.cpu_isa() in range(4)
    with pytest.raises(ValueError, match="must be 0 to"):
        torch.ops.anabranch.set_cpu_isa(9)
