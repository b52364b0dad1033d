"""Who may know whom: rooms stand on core and plan, skip also on experts (docs/design.md, "Rooms")."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("core", "plan", "experts", "skip", "mixers", "index", "temporal")
# A gated FFN is an expert FFN with one expert: products, packed weights, activation and Hopper main loop are theirs.
ALSO = {"skip": {"experts"}}
INCLUDE = re.compile(r'^#include "(?:anabranch/)?(\w+)/', re.MULTILINE)
IMPORT = re.compile(r"^\s*(?:from|import) anabranch\.(\w+)", re.MULTILINE)
FROM_PACKAGE = re.compile(r"^\s*from anabranch import (.+)$", re.MULTILINE)


def known(text: str, is_python: bool) -> set[str]:
    """The rooms that a file names."""
    if not is_python:
        return set(INCLUDE.findall(text)).intersection(ROOMS)
    names = IMPORT.findall(text)
    for line in FROM_PACKAGE.findall(text):
        names += [name.split()[0].strip("(,") for name in line.split(",") if name.strip("( ")]
    return set(names).intersection(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_know_core_and_plan_alone(room: str) -> None:
    if not (ROOT / "csrc").is_dir():
        pytest.skip("the sources are not beside these tests")
    allowed = {room, "core"} | ({"plan"} if room != "core" else set()) | ALSO.get(room, set())
    files = [
        *(ROOT / "include/anabranch" / room).glob("*.*"),
        *(ROOT / "csrc" / room).glob("*.*"),
        *(ROOT / "python/anabranch" / room).rglob("*.py"),
    ]
    assert len(files) > 3
    for path in files:
        strangers = known(path.read_text(), path.suffix == ".py") - allowed
        assert not strangers, f"{path.relative_to(ROOT)} knows {', '.join(sorted(strangers))}"


def test_the_test_sees_what_it_looks_for() -> None:
    assert known('#include "anabranch/experts/a.hpp"\n#include "skip/checks.hpp"\n#include "torch.hpp"', False) == {
        "experts",
        "skip",
    }
    assert known("from anabranch.mixers.streams import a\n    from anabranch import plan, index\n", True) == {
        "mixers",
        "plan",
        "index",
    }


def test_one_version_everywhere() -> None:
    if not (ROOT / "CMakeLists.txt").is_file():
        pytest.skip("the sources are not beside these tests")
    places = {
        "pyproject.toml": r'^version = "(.+)"',
        "CMakeLists.txt": r"project\(anabranch VERSION (\S+)",
        "python/anabranch/__init__.py": r'^__version__ = "(.+)"',
        "CHANGELOG.md": r"^## (\S+), \d{4}-\d\d-\d\d",
    }
    found = {path: re.findall(pattern, (ROOT / path).read_text(), re.MULTILINE)[0] for path, pattern in places.items()}
    assert len(set(found.values())) == 1, found
