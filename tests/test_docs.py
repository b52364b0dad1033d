"""What the pages under docs/ show first runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cpu
DOCS = Path(__file__).parents[1] / "docs"
needs_docs = pytest.mark.skipif(not DOCS.exists(), reason="an installed wheel has no docs beside its tests")


def run_first_example(page: str) -> dict[str, Any]:
    block = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(block, names)
    return names


@needs_docs
def test_the_example_of_skip_runs() -> None:
    names = run_first_example("skip.md")
    x, y = names["x"], names["y"]
    assert y.shape == x.shape
    assert y[0].equal(x[0])  # width 0
    assert not y[1].equal(x[1])


@needs_docs
def test_the_example_of_mixers_runs() -> None:
    names = run_first_example("mixers.md")
    assert names["y"].shape == names["x"].shape
    for name, parameter in names["model"].named_parameters():
        assert parameter.grad is not None, name


@needs_docs
def test_the_example_of_index_runs() -> None:
    names = run_first_example("index.md")
    assert len(names["seen"]) == len(names["snapshot"])
    assert names["restored"].find(names["keys"])[1].all()
    assert names["some_keys"].equal(names["some_keys"].sort().values)


@needs_docs
def test_the_example_of_temporal_runs() -> None:
    names = run_first_example("temporal.md")
    recent, edges = names["recent"], names["edges"]
    assert int(recent.degrees().sum()) == 2 * len(names["train"]) - int(
        (edges.src == edges.dst)[: len(names["train"])].sum()
    )
    assert int(names["last"].event_ids.max()) < len(names["train"])
    assert all(parameter.grad is not None for parameter in names["model"].parameters())
    assert (names["model"].cache.occupancy() > 0).all()


def test_the_example_of_edge_streams_runs() -> None:
    names = run_first_example("edge_streams.md")
    assert names["wrong"].shape[1] == 5 and len(names["edges"]) == 200
    assert sum(len(names[part]) for part in ("train", "validation", "test")) == 200
