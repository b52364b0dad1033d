"""`python -m anabranch info`: what is installed, which kernels run here and why, and whether each op is right.

Nothing of the package is imported before it is needed and missed: this command is there for installations that do not
load.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from anabranch import __version__
from anabranch.cli.isas import ISAS

_LIBRARIES = {
    "_C": ("the CPU kernels and every op", "reinstall it with `pip install .`"),
    "_C_cuda": (
        "the CUDA kernels",
        "for CUDA, build where nvcc is found: pip install . --config-settings=cmake.define.ANABRANCH_CUDA=ON",
    ),
    "_host": (
        "BSkipList and PredictedTimeline",
        "install the wheel of this Python, or build: pip install . (with nanobind)",
    ),
}
_VARIABLES = {
    "ANABRANCH_CPU_ISA": "the kernels' instruction set: portable, avx2, avx512, avx512_bf16; default: the fastest here",
    "ANABRANCH_DATA": "where tests and benchmarks look for real data; default: ../shared/data",
}
_NEEDED_TORCH = "pip install 'torch>=2.10'"


def main(arguments: list[str]) -> int:
    """Prints the report; exit status 1 where something does not load or an op is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m anabranch info", description="What is installed, what runs here and why, and a test of each op."
    )
    parser.parse_args(arguments[1:])
    torch, problems = _versions()
    record = _libraries()
    print("\nEnvironment")
    for name, meaning in _VARIABLES.items():
        _line(name, os.environ.get(name, "not set"), meaning)
    if torch is not None:
        try:
            from anabranch.cli.info_ops import print_ops

            problems += print_ops(record)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            problems.append(str(error))
    if problems:
        print("\nWhat is wrong")
        for problem in problems:
            print(f"  {problem}")
    return 1 if problems else 0


def _line(name: str, value: str, note: str = "") -> None:
    print(f"  {name:<20}{value}{f'  ({note})' if note else ''}")


def _versions() -> tuple[Any, list[str]]:
    """Prints them; returns torch, or None with what to do."""
    print("Versions")
    _line("anabranch", __version__)
    _line("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    torch: Any = None
    problems: list[str] = []
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        _line("torch", f"does not load: {error}")
        problems.append(f"torch is missing or broken, must be 2.10 or later; {_NEEDED_TORCH}")
    else:
        _line("torch", torch.__version__, f"CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs alone")
    for package, use in (
        ("numpy", "needed"),
        ("transformers", "optional: integrations.transformers, skip.apply"),
        ("torch_geometric", "optional: beside integrations.pyg"),
        ("pyarrow", "optional: Parquet files"),
    ):
        try:
            _line(package, version(package), use)
        except PackageNotFoundError:
            _line(package, "not installed", use)
            if use == "needed":
                problems.append(f"{package} is missing; pip install {package}")
    return torch, problems


def _libraries() -> dict[str, Any]:
    """Prints the compiled parts and what they were compiled for; returns the record of the build, if there is one."""
    print("\nLibraries")
    record: dict[str, Any] = {}
    for name, (holds, remedy) in _LIBRARIES.items():
        spec = importlib.util.find_spec(f"anabranch.{name}")
        if spec is None or spec.origin is None:
            _line(name, f"not there: {holds}", remedy)
            continue
        _line(name, spec.origin, holds)
        beside = Path(spec.origin).with_name("_build.json")
        if name == "_C" and beside.is_file():
            record = json.loads(beside.read_text())
    if not record:
        _line("compiled", "not recorded: _C was built by hand")
        return record
    _line("compiled by", record["compiler"] + (f", nvcc {record['nvcc']}" if "nvcc" in record else ""))
    _line("for CPUs", ", ".join(ISAS[isa] for isa in ISAS if any(k.endswith(f"_{isa}") for k in record["kernels"])))
    _line("for GPUs", record.get("cuda_architectures", "none"), "compute capabilities; a: with Hopper's tensor cores")
    return record
