"""The benchmark runs and records what it measured; how fast that was is no test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu


def test_quick_bench_records_every_row(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    arguments = ["bench", "experts", "--quick", "--tokens", "1", "9", "--threads", "1", "--repeats", "2", "--json", out]
    done = subprocess.run(
        [sys.executable, "-m", "anabranch", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert [(row["dtype"], row["tokens"]) for row in record["rows"]] == [
        (dtype, tokens) for dtype in ("bfloat16", "float32") for tokens in (1, 9)
    ]
    assert all(row["ours_ms"] > 0 and row["limit_ms"] > 0 for row in record["rows"])
    assert "% of limit" in done.stdout
