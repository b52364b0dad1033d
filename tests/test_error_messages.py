"""Every ValueError of the Python sources has the one form: `op: argument is X, must be Y; do Z`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import anabranch

pytestmark = pytest.mark.cpu
FORM = re.compile(r"^[^:]+: .+, must .+; .+", re.DOTALL)
PACKAGE = Path(anabranch.__file__).parent


def text_of(message: ast.expr) -> str:
    """The literal with x in place of what is filled in."""
    if isinstance(message, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "x" for part in message.values)
    return message.value if isinstance(message, ast.Constant) else ""


def messages() -> list[tuple[str, str]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if "cli" in path.parts:  # argparse's errors have a form of their own
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            message = node.exc.args[0]
            # What a call makes is an error of a kernel, passed on under another name.
            if getattr(node.exc.func, "id", "") == "ValueError" and not isinstance(message, ast.Call):
                found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", text_of(message)))
    return found


def test_there_are_messages() -> None:
    assert len(messages()) > 40


@pytest.mark.parametrize(("where", "message"), messages(), ids=lambda value: value if ".py:" in value else "")
def test_form(where: str, message: str) -> None:
    assert FORM.match(message), f"{where}: {message}"
