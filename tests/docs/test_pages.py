"""What the pages quote is there: messages in the sources, names in the package, files in the tree; the site builds."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
if not (ROOT / "csrc").exists():
    pytest.skip("an installed wheel has no sources beside its tests", allow_module_level=True)
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}
MESSAGES = re.findall(r"^### `(.+)`$", PAGES["troubleshooting.md"], re.MULTILINE)


def sources() -> list[str]:
    """Every source file, with literals that C++ and Python join written as one."""
    paths = [
        path
        for folder, suffixes in (
            ("python", (".py",)),
            ("csrc", (".cpp", ".hpp", ".cu")),
            ("include", (".hpp", ".cuh")),
            ("third_party", (".cmake",)),
        )
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
    ]
    return [re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")).replace("\\'", "'") for path in paths]


def holds(source: str, message: str) -> bool:
    """Whether the source has the parts of a message in their order, near each other; `...` is what is filled in."""
    parts = [part.strip() for part in message.split("...") if part.strip(" `")]
    return re.search(r"[^\n]{0,120}?(?:\n[^\n]*){0,4}?".join(map(re.escape, parts)), source) is not None


def test_quoted_messages_are_in_the_sources() -> None:
    assert len(MESSAGES) > 25
    everything = sources()
    gone = [message for message in MESSAGES if not any(holds(source, message) for source in everything)]
    assert not gone
    assert not any(holds(source, "x has shape ..., must be green") for source in everything)  # it can fail


@pytest.mark.parametrize("page", PAGES)
def test_linked_names_exist(page: str) -> None:
    for name in re.findall(r"\]\[(anabranch[\w.]*)\]", PAGES[page]):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            try:
                module = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            reduce(getattr, parts[length:], module)
            break
        else:
            pytest.fail(name)


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    made = set(re.findall(r"^\*\*`([^`]+)`\*\*", PAGES["add_an_op.md"], re.MULTILINE))
    names = re.findall(r"`((?:tests|bench|csrc|include|python|\.ci)/[\w./*]+)`", PAGES[page])
    missing = [name for name in names if name not in made and not any(ROOT.glob(name.rstrip("/")))]
    assert not missing


def test_every_paper_has_one_status() -> None:
    table = PAGES["papers.md"]
    meanings = dict(re.findall(r"^\| ([a-z ]+) \| .* \| (\d+) \|$", table, re.MULTILINE))
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([a-z ]+) \| ([^|]+) \|$", table, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 50))
    statuses = [status for _, status, _ in rows]
    assert {status: str(statuses.count(status)) for status in set(statuses)} == meanings
    for number, status, where in rows:
        assert status == "not covered" or "][anabranch." in where, number


def build(root: Path) -> subprocess.CompletedProcess[str]:
    # Not --quiet: mkdocs would not count the warnings that end a strict build.
    command = [sys.executable, "-m", "mkdocs", "build"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs anabranch[docs]; `make docs` has it")
def test_the_site_is_whole_and_a_dead_link_ends_its_build(tmp_path: Path) -> None:
    for name in ("docs", "python"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    whole = build(tmp_path)
    assert whole.returncode == 0, whole.stderr
    site = tmp_path / "build" / "site"
    anchors = {
        anchor
        for page in site.rglob("*.html")
        for anchor in re.findall(r'id="(anabranch[\w.]*)"', page.read_text(encoding="utf-8"))
    }
    package = importlib.import_module("anabranch")
    for room in ("plan", "experts", "skip", "mixers", "index", "temporal"):
        missing = {f"anabranch.{room}.{name}" for name in getattr(package, room).__all__} - anchors
        assert not missing
    assert {f"anabranch.{name}" for name in package.__all__} <= anchors

    dead = ("[a](nowhere.md)", "[a](plan.md#nowhere)", "[a][anabranch.plan.nowhere]", "[a](../README.md)")
    (tmp_path / "docs" / "install.md").write_text("# Install\n\n" + "\n\n".join(dead), encoding="utf-8")
    ended = build(tmp_path)
    assert ended.returncode != 0
    assert f"Aborted with {len(dead)} warnings in strict mode" in ended.stdout
