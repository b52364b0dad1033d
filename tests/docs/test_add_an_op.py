"""docs/add_an_op.md, followed: its files written into a copy of the tree, compiled, and its tests run.

Here the op becomes a library of its own beside _C, since the whole of _C would take minutes; CMake finds its files by
name.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.cpu
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add_an_op.md"
COMPILER = os.environ.get("CXX", "g++")
needs_the_sources = pytest.mark.skipif(
    not (ROOT / "csrc").exists() or shutil.which(COMPILER) is None,
    reason="an installed wheel has no sources beside its tests, or there is no compiler",
)
followed_already = pytest.mark.skipif(
    (ROOT / "include/anabranch/plan/scale_rows.hpp").exists(), reason="the page has been followed in this tree"
)


def files_of_page() -> list[tuple[str, str, str]]:
    """(path, language, text) of every block under a bold path."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r"^\*\*`([^`]+)`\*\*.*?\n\n```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def write(tree: Path) -> list[str]:
    """Does what the page says; the paths it names."""
    found = files_of_page()
    for path, language, text in found:
        target = tree / path
        if language != "diff":
            assert not target.exists(), f"{path} exists already"
            target.write_text(text, encoding="utf-8")
            continue
        lines, position = target.read_text(encoding="utf-8").split("\n"), 0
        for line in text.splitlines():
            if line.startswith("+"):
                lines.insert(position, line[1:])
            else:
                assert lines.count(line[1:]) == 1, f"{path} has not one line {line[1:]!r}"
                position = lines.index(line[1:])
            position += 1
        target.write_text("\n".join(lines), encoding="utf-8")
    return [path for path, _, _ in found]


def compile_together(tree: Path, *arguments: str) -> None:
    flags = [
        "-std=c++20",
        "-fno-math-errno",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Iinclude",
        *arguments,
    ]
    subprocess.run([COMPILER, *flags], cwd=tree, check=True, timeout=300)


@needs_the_sources
@followed_already
def test_the_page_works(tmp_path: Path) -> None:
    for folder in ("csrc", "include", "tests", "python"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    spec = importlib.util.find_spec("anabranch._C")  # an editable install has its libraries elsewhere
    assert spec is not None and spec.origin is not None
    for library in Path(spec.origin).parent.glob("*.so"):
        (tmp_path / "python" / "anabranch" / library.name).symlink_to(library)
    paths = write(tmp_path)
    assert {Path(path).suffix for path in paths} == {".hpp", ".cpp", ".cuh", ".cu", ".py"}

    root = Path(torch.__file__).parent
    (ops,) = [path for path in paths if path.endswith("_ops.cpp")]
    definitions = [
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        f"-isystem{root}/include",
        f"-L{root}/lib",
        "-Wl,--no-as-needed",
        "-ltorch",
    ]
    compile_together(tmp_path, "-O1", "-shared", "-fPIC", "-Icsrc", ops, "-o", "scale_rows.so", *definitions)
    (simt,) = [path for path in paths if path.startswith("tests/simt/")]
    compile_together(tmp_path, "-O1", "-Wno-unknown-pragmas", "-Itests/simt", simt, "-o", "simt_test", "-lpthread")
    subprocess.run([tmp_path / "simt_test"], check=True, timeout=60, stdout=subprocess.DEVNULL)

    conftest = tmp_path / "tests" / "conftest.py"
    load = f'torch.ops.load_library("{tmp_path}/scale_rows.so")\n'
    conftest.write_text(
        conftest.read_text(encoding="utf-8").replace("import torch\n", f"import torch\n\n{load}", 1), encoding="utf-8"
    )
    (test,) = [path for path in paths if Path(path).name.startswith("test_") and path.endswith(".py")]
    files = [test, "tests/test_every_op.py", "tests/cli/test_info.py"]
    # -S: an editable install would find the checkout, whatever the path says.
    command = [sys.executable, "-S", "-m", "pytest", "-q", *files, "-k", "scale_rows or every_op_is_right_here"]
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "python"), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"(\d+) passed", result.stdout)
    # Those of the page, opcheck in two dtypes, gradcheck, and the self-tests of all ops.
    assert passed is not None and int(passed[1]) >= 8 + 4, result.stdout
