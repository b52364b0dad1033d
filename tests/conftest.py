"""Shared by all tests: the device they run on, seeds, and the CPU's instruction sets as a parameter.

`pytest --device cuda` makes CUDA torch's default device before anything is collected, so the same tests then prove the
CUDA kernels. Tests marked `cpu` (values the host looks at, threads, instruction sets) are left out there, tests marked
`gpu` (graphs, races) here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import anabranch  # noqa: F401  (registers the ops)

ISA_NAMES = ("portable", "avx2", "avx512", "avx512_bf16")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where the tests' tensors lie")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_default_device(config.getoption("--device"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    other = "gpu" if config.getoption("--device") == "cpu" else "cpu"
    left_out = [item for item in items if item.get_closest_marker(other)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker(other)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    return torch.get_default_device()


@pytest.fixture(params=range(4), ids=ISA_NAMES)
def cpu_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on every instruction set of this machine; once in all on a GPU."""
    if torch.get_default_device().type != "cpu" and request.param > 0:
        pytest.skip("instruction sets make no difference on a GPU")
    before = torch.ops.anabranch.cpu_isa()
    try:
        torch.ops.anabranch.set_cpu_isa(request.param)
    except ValueError:
        pytest.skip(f"this CPU has no {ISA_NAMES[request.param]}")
    yield ISA_NAMES[request.param]
    torch.ops.anabranch.set_cpu_isa(before)
