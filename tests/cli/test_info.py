"""`python -m anabranch info`: every op is tested, and installations that do not load are told what to do."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import anabranch
from anabranch.cli import info_ops
from anabranch.cli.info import main
from anabranch.cli.isas import ISAS
from anabranch.core.self_test import SelfTest, worst_error

pytestmark = pytest.mark.cpu
PACKAGE = Path(anabranch.__file__).parent
# What stands in the bench for a peer.
PEERS = {"anabranch::plain_ring_clear", "anabranch::plain_ring_run"}


def run(*command: str, path: list[Path], **variables: str) -> subprocess.CompletedProcess[str]:
    """Python without .pth files, so that only `path` decides which anabranch it sees."""
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, "-S", *command], env=environment, capture_output=True, text=True)


def site_packages() -> Path:
    return Path(torch.__file__).parents[1]


def test_every_op_is_right_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    tested = {f"anabranch::{op}" for _, tests in info_ops.rooms() for test in tests for op in test.ops}
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("anabranch::") and has_kernel(name, "CPU") and name not in PEERS:
            assert name in tested, f"{name} has no self-test; add it to <room>/self_test.py"
            assert name.removeprefix("anabranch::") in said
    total = sum(len(tests) for _, tests in info_ops.rooms())
    assert f"{total} of {total} self-tests passed" in said


def test_kernels_that_self_tests_name_are_there() -> None:
    sources = PACKAGE.parents[1] / "csrc"
    if not sources.is_dir():
        pytest.skip("the sources are not beside this installation")
    for _, tests in info_ops.rooms():
        for kernel in (kernel for test in tests for kernel in test.kernels):
            assert (sources / f"{kernel}_portable.cpp").is_file(), kernel


def test_the_choice_of_a_kernel_says_why() -> None:
    test = SelfTest(("an_op",), lambda: 0.0, ("core/gemm", "skip/rows"))
    record = {"kernels": [f"core/gemm_{isa}" for isa in ISAS] + ["skip/rows_portable", "skip/rows_avx2"]}
    choice = info_ops._cpu_kernel
    assert choice(test, "avx512bf16", record) == (
        "AVX-512 BF16 for bfloat16, AVX-512 else (gemm); AVX2, its fastest form (rows)"
    )
    assert choice(test, "avx2", record).startswith("AVX2, the CPU's or ANABRANCH_CPU_ISA's choice (gemm)")
    assert choice(SelfTest(("an_op",), lambda: 0.0), "avx2", record).startswith("portable")


def test_a_wrong_op_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> float:
        raise RuntimeError("no such thing")

    broken = [SelfTest(("plan_a",), lambda: 0.1), SelfTest(("plan_b",), fails), SelfTest(("plan_c",), lambda: 0.0)]
    plan = importlib.import_module("anabranch.plan.self_test")
    monkeypatch.setattr(plan, "self_tests", lambda: broken)
    monkeypatch.setattr(info_ops, "rooms", lambda: iter([("plan", plan.self_tests())]))
    assert main(["info"]) == 1
    said = capsys.readouterr().out
    assert "plan_a on cpu: the error is 1.0e-01, must be at most 1e-05" in said
    assert "plan_b on cpu: RuntimeError: no such thing" in said
    assert "1 of 3 self-tests passed" in said


def test_an_error_is_measured() -> None:
    ones = torch.ones(3)
    assert worst_error([ones * 1.5], [ones]) == 0.5
    assert worst_error([ones * float("nan")], [ones]) == float("inf")
    assert worst_error([ones[:2]], [ones]) == float("inf")
    assert worst_error([ones > 0], [ones > 0]) == 0


def test_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')")
    path = [tmp_path, PACKAGE.parent, site_packages()]
    said = run("-m", "anabranch", "info", path=path)
    assert said.returncode == 1 and not said.stderr
    assert "does not load: libgomp.so.1" in said.stdout
    assert "torch is missing or broken, must be 2.10 or later; pip install 'torch>=2.10'" in said.stdout
    imported = run("-c", "import anabranch", path=path)
    assert imported.stderr.splitlines()[-1].startswith(
        "ImportError: anabranch did not load, `python -m anabranch info` says more: libgomp.so.1"
    )


@pytest.mark.parametrize("library", ["missing", "truncated"])
def test_without_the_library(library: str, tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "anabranch", ignore=shutil.ignore_patterns("*.so", "__pycache__", "include"))
    wanted = "anabranch was installed without its library _C: reinstall it"
    if library == "truncated":
        (tmp_path / "anabranch" / "_C.so").write_bytes(b"\x7fELF and no more")
        wanted = "_C.so does not load with torch"
    said = run("-m", "anabranch", "info", path=[tmp_path, site_packages()])
    assert said.returncode == 1 and not said.stderr
    assert wanted in said.stdout.partition("What is wrong")[2]
    imported = run("-c", "import anabranch", path=[tmp_path, site_packages()])
    last = imported.stderr.splitlines()[-1]
    assert last.startswith("ImportError: anabranch did not load") and wanted in last


def test_a_wrong_instruction_set() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "anabranch", "info"],
        env={**os.environ, "ANABRANCH_CPU_ISA": "sse9"},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 1 and not said.stderr
    assert "ANABRANCH_CPU_ISA: is sse9, must be portable, avx2, avx512 or avx512_bf16" in said.stdout
