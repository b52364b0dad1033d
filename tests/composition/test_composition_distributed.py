"""Experts, skipping and mixers in one model on two Gloo processes: DDP and FSDP2 train as one process does."""

from __future__ import annotations

import sys
from pathlib import Path

import composed_workers as workers
import pytest

sys.path.append(str(Path(__file__).parents[1] / "experts"))
from parallel_cases import launch

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fsdp, checkpointed"])
def test_trains_as_one_process(kind: str, tmp_path: Path) -> None:
    assert launch(workers.trains_as_one_process, 2, tmp_path, kind) == [0, 0]


def test_fsdp_in_bfloat16(tmp_path: Path) -> None:
    assert launch(workers.trains_in_bfloat16, 2, tmp_path) == [0, 0]


def test_a_sequence_of_hyper_connections_is_sharded_whole(tmp_path: Path) -> None:
    assert launch(workers.sequence_is_sharded_whole, 2, tmp_path) == [0, 0]
