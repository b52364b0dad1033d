"""The part of `info` that needs the libraries: this machine, each op's kernel with its reason, and its self-test."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Iterator
from typing import Any

import torch

import anabranch
from anabranch.cli.isas import ISAS
from anabranch.cli.machine import device_name
from anabranch.core.library import has_cuda_kernels, ops
from anabranch.core.self_test import SelfTest

_SEED = 1


def rooms() -> Iterator[tuple[str, list[SelfTest]]]:
    """Every room that has self-tests, with them."""
    for module in pkgutil.iter_modules(anabranch.__path__):
        name = f"anabranch.{module.name}.self_test"
        if module.ispkg and module.name != "core" and importlib.util.find_spec(name) is not None:
            yield module.name, importlib.import_module(name).self_tests()


def print_ops(record: dict[str, Any]) -> list[str]:
    """Prints the machine and the ops; returns what failed, with what to do."""
    in_use = list(ISAS)[ops.cpu_isa()]
    on_gpu = has_cuda_kernels and torch.cuda.is_available()
    print("\nThis machine")
    cpu = device_name(torch.device("cpu"))
    print(f"  CPU: {cpu}, {torch.get_num_threads()} threads; kernels use {ISAS[in_use]}{_why_isa(in_use)}")
    print(f"  GPU: {_gpu(on_gpu)}")
    problems, count = [], 0
    for room, tests in rooms():
        print(f"\nOps of {room}: the kernel here, why, and the largest relative error of a small call beside torch")
        for test in tests:
            print(f"  {', '.join(test.ops)}")
            for device in ("cpu", "cuda") if on_gpu and not test.cpu_only else ("cpu",):
                kernel = _cpu_kernel(test, in_use, record) if device == "cpu" else _gpu_kernel(test)
                failure, said = _run(test, device)
                count += 1
                print(f"    {said:<12} {device}: {kernel}")
                if failure:
                    problems.append(f"{test.ops[0]} on {device}: {failure}; {_REPORT}")
    print(f"\n{count - len(problems)} of {count} self-tests passed")
    return problems


_REPORT = "reinstall anabranch, and if it stays report this with the whole output"


def _run(test: SelfTest, device: str) -> tuple[str, str]:
    """What is wrong, or nothing, and the word for the table."""
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(_SEED)
            error = test.run()
    except Exception as problem:  # whatever a broken installation raises belongs into the report
        return f"{type(problem).__name__}: {problem}", "FAILED"
    if error <= test.tolerance:
        return "", "ok, exact" if error == 0 else f"ok, {error:.0e}"
    return f"the error is {error:.1e}, must be at most {test.tolerance:.0e}", "FAILED"


def _cpu_kernel(test: SelfTest, in_use: str, record: dict[str, Any]) -> str:
    """The form of each kernel that the op runs, and why it is not another."""
    if not test.kernels:
        return "portable: it waits for memory, one form serves every CPU"
    if not record:
        return f"{ISAS[in_use]} or the next below that the op has: the build is not recorded"
    parts: dict[str, list[str]] = {}
    order = list(ISAS)
    for kernel in test.kernels:
        compiled = [isa for isa in order if f"{kernel}_{isa}" in record["kernels"]]
        usable = [isa for isa in compiled if order.index(isa) <= order.index(in_use)]
        best, form = usable[-1], ISAS[usable[-1]]
        if best == "avx512bf16":
            form = f"{form} for bfloat16, AVX-512 else"
        elif best == compiled[-1] and best != in_use:
            form = f"{form}, its fastest form"
        elif best != compiled[-1]:
            form = f"{form}, the CPU's or ANABRANCH_CPU_ISA's choice"
        parts.setdefault(form, []).append(kernel.split("/")[1])
    return "; ".join(f"{form} ({', '.join(names)})" for form, names in parts.items())


def _gpu_kernel(test: SelfTest) -> str:
    hopper = torch.cuda.get_device_capability() == (9, 0)
    if test.hopper and hopper:
        return f"Hopper's tensor cores for {test.hopper}; otherwise the portable kernel"
    return "the portable kernel" + (f" (tensor cores: on Hopper, for {test.hopper})" if test.hopper else "")


def _why_isa(in_use: str) -> str:
    if "ANABRANCH_CPU_ISA" in os.environ:
        return ", as ANABRANCH_CPU_ISA says"
    detected = list(ISAS)[ops.detected_cpu_isa()]
    if detected != in_use:
        return f": it has {ISAS[detected]}, but Intel's runs at half the rate of float32 products"
    return ", the fastest that it has"


def _gpu(on_gpu: bool) -> str:
    if on_gpu:
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        return f"{torch.cuda.get_device_name()}, compute capability {capability}"
    if not has_cuda_kernels:
        return "none used: this build has no CUDA kernels"
    return "none found: the CUDA kernels are loaded and wait for one"
