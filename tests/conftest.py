"""Shared by all tests: seeds, and the CPU's instruction sets as a parameter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import anabranch  # noqa: F401  (registers the ops)

ISA_NAMES = ("portable", "avx2", "avx512", "avx512_bf16")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=range(4), ids=ISA_NAMES)
def cpu_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on every instruction set of this machine."""
    before = torch.ops.anabranch.cpu_isa()
    try:
        torch.ops.anabranch.set_cpu_isa(request.param)
    except ValueError:
        pytest.skip(f"this CPU has no {ISA_NAMES[request.param]}")
    yield ISA_NAMES[request.param]
    torch.ops.anabranch.set_cpu_isa(before)
