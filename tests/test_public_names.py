"""Every public name is documented: a docstring, and sections that say what a signature cannot."""

from __future__ import annotations

import ast
import enum
import functools
import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import anabranch
import anabranch.papers

pytestmark = pytest.mark.cpu
ROOMS = ["plan", "experts", "skip", "mixers", "index", "temporal"]
INTEGRATIONS = ["transformers", "mixers", "pyg"]
Named = tuple[str, Any]


def public_names() -> Iterator[Named]:
    """The names of `__all__`; in a module without one, what it defines."""
    modules = ["", *(f".{room}" for room in ROOMS), *(f".integrations.{name}" for name in INTEGRATIONS)]
    modules += [f".papers.{module.name}" for module in pkgutil.iter_modules(anabranch.papers.__path__)]
    for name in modules:
        try:
            module = importlib.import_module(f"anabranch{name}")
        except ImportError:  # an integration whose library is not installed
            assert name.startswith(".integrations")
            continue
        defined = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        for key in getattr(module, "__all__", [key for key in defined if not key.startswith("_")]):
            yield f"{module.__name__}.{key}", getattr(module, key)


NAMES = dict(public_names())
FUNCTIONS = {name: value for name, value in NAMES.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in NAMES.items() if inspect.isclass(value)}
VALUES = [name for name, value in NAMES.items() if not (callable(value) and hasattr(value, "__doc__"))]


def sections(value: Any) -> set[str]:
    """Headings, and those of `Args, Raises, Cost: as another_function.`"""
    found = re.findall(r"^([A-Z]\w+(?:, [A-Z]\w+)*):(?:$| as `)", inspect.getdoc(value) or "", re.MULTILINE)
    return {section for heading in found for section in heading.split(", ")}


def test_there_are_names() -> None:
    assert len(FUNCTIONS) > 70 and len(CLASSES) > 80


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_what_goes_in_and_out_and_what_it_costs(name: str) -> None:
    function = FUNCTIONS[name]
    assert function.__doc__, "has no docstring"
    if ".papers." in name:  # experiments: their files say what they do
        return
    signature = inspect.signature(function)
    wanted = {"Cost"}
    if signature.parameters:
        wanted.add("Args")
    if signature.return_annotation != "None":
        wanted.add("Returns")
    if re.search(r"\braise (Value|Import)Error", inspect.getsource(function)):
        wanted.add("Raises")
    assert wanted <= sections(function), wanted - sections(function)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_say_what_they_are_made_of(name: str) -> None:
    kind = CLASSES[name]
    documented = inspect.getdoc(kind) or ""
    assert documented and not documented.startswith(f"{kind.__name__}("), "has no docstring of its own"
    if issubclass(kind, enum.Enum | Exception) or ".papers." in name:
        return
    fields = [key for key in inspect.signature(kind).parameters if key not in ("device", "dtype", "args", "kwargs")]
    if fields and not sections(kind) & {"Args", "Attributes"}:
        # A short class may say it in a sentence, if it names each.
        missing = [key for key in fields if not re.search(rf"\b{key}\b", documented)]
        assert not missing


@functools.cache
def documented_values(module: str) -> set[str]:
    """Names at the top of a module's sources that are followed by a string."""
    found = set()
    package = Path(importlib.import_module(module).__file__ or "").parent
    for path in package.rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for statement, after in itertools.pairwise(body):
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                targets = (
                    statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
                )
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("name", VALUES)
def test_values_are_documented(name: str) -> None:
    if inspect.ismodule(NAMES[name]):
        assert NAMES[name].__doc__
        return
    module, _, short = name.rpartition(".")
    assert short in documented_values(module)
