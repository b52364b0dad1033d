"""Every registered op against torch's own checks, opcheck and gradcheck.

What there is to check comes from torch's registry and what to check it with from `tests/<room>/op_samples.py`: an op
that has no sample fails, so no list has to be kept.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck
from torch.library import opcheck

import anabranch  # noqa: F401  (registers the ops)

has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
PREFIX = "anabranch::"
# Ops without a kernel of the CPU take no tensors: they are settings.
OPS = sorted(n for n in torch._C._dispatch_get_all_op_names() if n.startswith(PREFIX) and has_kernel(n, "CPU"))
DIFFERENTIABLE = [name for name in OPS if has_kernel(name, "Autograd")]


def samples_of(wanted: str, dtype: torch.dtype) -> list[tuple[Any, tuple[Any, ...]]]:
    found = defaultdict(list)
    for path in sorted(Path(__file__).parent.glob("*/op_samples.py")):
        spec = importlib.util.spec_from_file_location(f"{path.parent.name}_op_samples", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for op, arguments in module.samples(dtype):
            found[op._qualified_op_name].append((op, arguments))
    assert wanted in found, f"{wanted} has no sample; yield one in tests/<room>/op_samples.py"
    return found[wanted]


def test_there_are_ops() -> None:
    assert len(OPS) >= len(DIFFERENTIABLE) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    for op, arguments in samples_of(name, dtype):
        opcheck(op, arguments)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradcheck(name: str) -> None:
    for op, arguments in samples_of(name, torch.float64):
        learns = [i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.requires_grad]
        if not learns:
            refuses_a_gradient(op, arguments)
            continue

        def through(*inputs: torch.Tensor, op: Any = op, learns: Any = learns, arguments: Any = arguments) -> Any:
            values = list(arguments)
            for position, value in zip(learns, inputs, strict=True):
                values[position] = value
            outputs = op(*values)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return tuple(output for output in outputs if output.requires_grad)

        assert gradcheck(through, tuple(arguments[i] for i in learns))


def refuses_a_gradient(op: Any, arguments: tuple[Any, ...]) -> None:
    """A sample without a tensor that asks for a gradient means that the op refuses one, and says what to do."""
    asking = [
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments
    ]
    outputs = op(*asking)
    output = outputs[0] if isinstance(outputs, tuple) else outputs
    with pytest.raises(NotImplementedError, match="; "):
        output.sum().backward()
