"""What a newcomer copies from the README runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from anabranch import Cost

pytestmark = pytest.mark.cpu
PAGE = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(not PAGE.exists(), reason="an installed wheel has no README beside its tests")
def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert text.index(block) < 1200 and block.count("\n") <= 10  # the first result is on the first screen
    names: dict[str, Any] = {}
    exec(block, names)
    cost = names["meter"].total()
    assert isinstance(cost, Cost) and 0 < cost.executed_rows <= 4 * 8 * 128 < cost.dense_rows
    assert all(parameter.grad is not None for parameter in names["moe"].parameters())
    assert "executed_flops=" in capsys.readouterr().out


@pytest.mark.skipif(not PAGE.exists(), reason="an installed wheel has no README beside its tests")
def test_what_it_names_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (PAGE.parent / target).exists(), target
    makefile = (PAGE.parent / "Makefile").read_text(encoding="utf-8")
    for command in re.findall(r"^    make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command
