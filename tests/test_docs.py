"""What the pages under docs/ show first runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cpu
PAGE = Path(__file__).parents[1] / "docs" / "skip.md"


@pytest.mark.skipif(not PAGE.exists(), reason="an installed wheel has no docs beside its tests")
def test_the_example_of_skip_runs() -> None:
    block = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(block, names)
    x, y = names["x"], names["y"]
    assert y.shape == x.shape
    assert y[0].equal(x[0])  # width 0
    assert not y[1].equal(x[1])
