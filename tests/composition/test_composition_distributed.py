"""Experts, skipping and mixers in one model on two Gloo processes: DDP and FSDP2 train as one process does."""

from __future__ import annotations

import sys
from pathlib import Path

import composed_workers as workers
import pytest

sys.path.append(str(Path(__file__).parents[1] / "experts"))
from parallel_cases import launch

pytestmark = pytest.mark.cpu


def test_data_parallel(tmp_path: Path) -> None:
    assert launch(workers.all_of_them, 2, tmp_path) == [0, 0]
