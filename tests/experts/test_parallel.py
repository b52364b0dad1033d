"""ExpertParallel on Gloo processes: equals one process, overlaps, composes, and raises when a rank is gone."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import parallel_failures as failures
import parallel_training as training
import parallel_workers as workers
import pytest
from parallel_cases import launch

from anabranch.experts.exchange import shard_bounds


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_equals_one_process(num_ranks: int, tmp_path: Path) -> None:
    assert launch(workers.equals_one_process, num_ranks, tmp_path) == [0] * num_ranks


def test_other_dtypes_and_paths(tmp_path: Path) -> None:
    assert launch(workers.other_dtypes_and_paths, 2, tmp_path) == [0, 0]


def test_sends_each_row_once(tmp_path: Path) -> None:
    assert launch(workers.sends_each_row_once, 2, tmp_path) == [0, 0]


def test_own_rows_run_while_others_travel(tmp_path: Path) -> None:
    assert launch(workers.overlaps, 2, tmp_path, tmp_path) == [0, 0]


@pytest.mark.parametrize(("how", "code"), [("forward", -signal.SIGKILL), ("backward", -signal.SIGKILL), ("stall", 0)])
def test_a_lost_rank_is_an_error(how: str, code: int, tmp_path: Path) -> None:
    codes = launch(failures.loses_a_rank, 4, tmp_path, tmp_path, how, 4.0, timeout=30)
    assert codes == [failures.RAISED, code, failures.RAISED, failures.RAISED]


# One expert leaves a rank without any, which FSDP2 cannot shard further (torch 2.13).
@pytest.mark.parametrize(("kind", "num_experts"), [("ddp", 4), ("ddp", 5), ("ddp", 1), ("fsdp", 4), ("fsdp", 5)])
def test_composes_with_data_parallelism(kind: str, num_experts: int, tmp_path: Path) -> None:
    assert launch(training.trains_as_one_process, 4, tmp_path, kind, num_experts) == [0] * 4


def test_checkpoints_outlive_the_number_of_ranks(tmp_path: Path) -> None:
    assert launch(training.saves, 4, tmp_path / "four", tmp_path) == [0] * 4
    assert launch(training.loads, 2, tmp_path / "two", tmp_path) == [0] * 2


def test_documentation_runs(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "expert_parallel.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert launch(training.runs_documentation, 4, tmp_path, blocks) == [0] * 4


def test_bad_input(tmp_path: Path) -> None:
    assert launch(failures.refuses, 2, tmp_path) == [0, 0]


@pytest.mark.parametrize(
    ("num_experts", "num_ranks", "bounds"),
    [(8, 4, [0, 2, 4, 6, 8]), (5, 4, [0, 2, 4, 5, 5]), (3, 4, [0, 1, 2, 3, 3]), (1, 3, [0, 1, 1, 1])],
)
def test_shard_bounds(num_experts: int, num_ranks: int, bounds: list[int]) -> None:
    assert shard_bounds(num_experts, num_ranks) == bounds
