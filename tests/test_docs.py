"""Every Python block of the pages under docs/ runs as it stands there, in the order of the page, to what it should."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cpu
DOCS = Path(__file__).parents[1] / "docs"
# Run by four processes in tests/experts/test_parallel.py, and in a copy of the tree in tests/docs/test_add_an_op.py.
ELSEWHERE = {"expert_parallel.md", "add_an_op.md"}
PAGES = sorted(page.name for page in DOCS.glob("*.md") if "```python" in page.read_text(encoding="utf-8"))
Names = dict[str, Any]

if not DOCS.exists():
    pytest.skip("an installed wheel has no docs beside its tests", allow_module_level=True)


def deepseek() -> Any:
    """A model with hyper-connections: its configuration would be half of the page."""
    pytest.importorskip("transformers", minversion="5.23")
    spec = importlib.util.spec_from_file_location(
        "mixer_families", Path(__file__).parent / "integrations" / "mixer_families.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.deepseek().eval()


def check_index(names: Names) -> None:
    cost = names["cost"]
    assert 0 < cost.executed_rows <= 4 * 8 * 128
    assert cost.executed_flops <= cost.dense_flops / 4  # as the page says of k_max = 4 of 16


def check_idea(names: Names) -> None:
    chosen, x, y = names["chosen"], names["x"], names["y"]
    assert all(names[name].grad is not None for name in ("x", "gate", "weight"))
    idle = chosen.item_counts() == 0
    assert idle.any() and y[idle].equal(x[idle])
    assert names["meter"].total().executed_rows == int(chosen.group_offsets[-1])


def check_plan(names: Names) -> None:
    assert names["x"].grad[2].eq(0).all() and names["x"].grad[1].ne(0).all()
    assert names["routed"][7:].eq(0).all() and names["per_group"].shape == (3, 4)


def check_experts(names: Names) -> None:
    assert names["moe"].gate.weight.grad is not None
    assert int(names["counts"].min()) >= 1 and int(names["counts"].max()) <= 4
    assert names["hidden"].shape == (6, 256) and names["logits"].shape == (1, 12, 64)


def check_skip(names: Names) -> None:
    x, y = names["x"], names["y"]
    assert y[0].equal(x[0])  # width 0
    assert not y[1].equal(x[1])
    assert names["tokens"].shape == (1, 16) and any(
        layer.kept_tokens < layer.total_tokens for layer in names["report"].layers
    )


def check_mixers(names: Names) -> None:
    assert names["y"].shape == names["x"].shape and names["patched"] > 0
    for name, parameter in names["model_of_streams"].named_parameters():
        assert parameter.grad is not None, name


def check_bskiplist(names: Names) -> None:
    assert len(names["seen"]) == len(names["snapshot"])
    assert names["restored"].find(names["keys"])[1].all()
    assert names["some_keys"].equal(names["some_keys"].sort().values)


def check_temporal(names: Names) -> None:
    recent, edges = names["recent"], names["edges"]
    assert int(recent.degrees().sum()) == 2 * len(names["train"]) - int(
        (edges.src == edges.dst)[: len(names["train"])].sum()
    )
    assert int(names["last"].event_ids.max()) < len(names["train"])
    assert all(parameter.grad is not None for parameter in names["model"].parameters())
    assert (names["model"].cache.occupancy() > 0).all()


def check_edge_streams(names: Names) -> None:
    assert names["wrong"].shape[1] == 5 and len(names["edges"]) == 200
    assert sum(len(names[part]) for part in ("train", "validation", "test")) == 200


CHECKS: dict[str, Callable[[Names], None]] = {
    "index.md": check_index,
    "idea.md": check_idea,
    "plan.md": check_plan,
    "experts.md": check_experts,
    "skip.md": check_skip,
    "mixers.md": check_mixers,
    "bskiplist.md": check_bskiplist,
    "temporal.md": check_temporal,
    "edge_streams.md": check_edge_streams,
}
# What a page has from its reader.
GIVEN: dict[str, Callable[[], Names]] = {"mixers.md": lambda: {"model": deepseek()}}


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_the_examples_run(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    if "transformers import" in text:
        pytest.importorskip("transformers", minversion="5.23")
    names = GIVEN.get(page, dict)()
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        first_line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * first_line + block[1], str(DOCS / page), "exec"), names)  # tracebacks name the line
    CHECKS.get(page, lambda names: None)(names)


def test_every_check_has_its_page() -> None:
    assert set(CHECKS) | set(GIVEN) | ELSEWHERE <= set(PAGES)
