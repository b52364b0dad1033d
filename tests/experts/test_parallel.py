"""ExpertParallel on Gloo processes: equals one process, overlaps, composes, and raises when a rank is gone."""

from __future__ import annotations

from pathlib import Path

import parallel_workers as workers
import pytest


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_equals_one_process(num_ranks: int, tmp_path: Path) -> None:
    assert workers.launch(workers.equals_one_process, num_ranks, tmp_path) == [0] * num_ranks
