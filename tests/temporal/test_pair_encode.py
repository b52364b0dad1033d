"""pair_encode against dictionaries and torch's own products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pair_cases import NAT_CODES, encoded_by_torch, slot_sets
from torch import Tensor

from anabranch.temporal import pair_encode

LEARNED = ("z", "weight", "code_table")


def case(
    rows: int, codes: tuple[int, ...], features: int, pairs: int, channels: int, dtype: torch.dtype, **how: Any
) -> dict[str, Tensor]:
    inputs = slot_sets(rows, codes, features, pairs, **how)
    inputs["weight"] = torch.randn(channels, features, dtype=torch.float64)
    inputs["code_table"] = torch.randn(64, channels, dtype=torch.float64)
    return {name: one.to(dtype).requires_grad_() if name in LEARNED else one for name, one in inputs.items()}


def by_torch(inputs: dict[str, Tensor], activation: str) -> Tensor:
    sets = {name: one for name, one in inputs.items() if name not in LEARNED[1:]}
    return encoded_by_torch(sets, inputs["weight"], inputs["code_table"], activation)


def run(function: Any, inputs: dict[str, Tensor], activation: str) -> list[Tensor]:
    out = function(inputs, activation)
    upstream = torch.linspace(-2, 2, out.numel(), dtype=torch.float64).cos().view(out.shape).to(out.dtype)
    grads = torch.autograd.grad(out, [inputs[name] for name in LEARNED], upstream, allow_unused=True)
    given = zip(LEARNED, grads, strict=True)
    return [out.detach(), *(torch.zeros_like(inputs[name]) if grad is None else grad for name, grad in given)]


def ours(inputs: dict[str, Tensor], activation: str) -> Tensor:
    return pair_encode(**inputs, activation=activation)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(
    ("rows", "codes", "features", "pairs", "channels"),
    [
        (9, NAT_CODES, 4, 7, 100),
        (3, (1, 2, 2, 4), 3, 40, 5),  # rows in many pairs, and with themselves
        (4, (1, 2, 4), 1, 6, 33),
        (2, (4,) * 9 + (3,), 6, 3, 1),
        (3, (1, 2), 0, 4, 7),
        (3, (), 4, 4, 7),
        (3, (1, 2), 4, 0, 7),
        (3, (1, 2), 4, 5, 0),
    ],
)
def test_forward_and_backward(
    cpu_isa: str, activation: str, rows: int, codes: tuple[int, ...], features: int, pairs: int, channels: int
) -> None:
    inputs = case(rows, codes, features, pairs, channels, torch.float64)
    for given, wanted in zip(run(ours, inputs, activation), run(by_torch, inputs, activation), strict=True):
        torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_at_most_twice_torchs(cpu_isa: str, dtype: torch.dtype, activation: str) -> None:
    inputs = case(8, NAT_CODES, 4, 12, 72, dtype)
    exact = {name: one.detach().double().requires_grad_() if name in LEARNED else one for name, one in inputs.items()}
    results = (run(by_torch, exact, activation), run(by_torch, inputs, activation), run(ours, inputs, activation))
    for wanted, theirs, mine in zip(*results, strict=True):
        assert mine.dtype == dtype
        slack = 2 * torch.finfo(dtype).eps * wanted.abs().max().item()
        torch_error = (theirs.double() - wanted).abs().max().item()
        assert (mine.double() - wanted).abs().max().item() <= 2 * torch_error + slack


@pytest.mark.parametrize("slots", [64, 65, 1024])
def test_many_slots(slots: int) -> None:
    """Tables of every size; what a GPU cannot keep on chip it refuses."""
    codes = (1, *[2] * (slots - 1))
    inputs = case(2, codes, 4, 2, 3, torch.float64)
    for given, wanted in zip(run(ours, inputs, "relu"), run(by_torch, inputs, "relu"), strict=True):
        torch.testing.assert_close(given, wanted)
    if torch.get_default_device().type == "cuda" and slots == 1024:
        with pytest.raises(ValueError, match=r"z has shape .* bytes of shared memory, must be at most"):
            run(ours, case(2, codes, 40, 2, 3, torch.float32), "relu")


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_same_bits_on_any_threads(dtype: torch.dtype, activation: str) -> None:
    inputs = case(60, NAT_CODES, 4, 2300, 40, dtype)  # more pairs than a chunk
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(run(ours, inputs, activation))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
