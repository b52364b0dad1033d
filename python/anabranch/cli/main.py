"""The command line: `python -m anabranch info | demo | bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import anabranch
from anabranch.core.library import ops

_ISA_NAMES = ("portable", "AVX2", "AVX-512", "AVX-512 BF16")


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit status: 0, 2 for bad arguments, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m anabranch", description=anabranch.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="what this installation has")
    demo = commands.add_parser("demo", help="train a dense, a top-2 and a dynamic byte-level language model")
    demo.add_argument("--minutes", type=float, default=2.0, help="time for all three variants (default 2)")
    demo.add_argument("--text", type=Path, help="a text file; default: the Python standard library's sources")
    demo.add_argument("--out", type=Path, default=Path("report.html"), help="default report.html")
    demo.add_argument("--seed", type=int, default=0)
    bench = commands.add_parser("bench", help="time the kernels beside their peers and the machine's limit")
    bench.add_argument("room", nargs="*", choices=["experts"], help="default: all rooms")
    bench.add_argument("--dtype", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    bench.add_argument("--tokens", nargs="+", type=int, default=[1, 16, 128, 512, 2048])
    bench.add_argument("--threads", nargs="+", type=int, default=sorted({1, torch.get_num_threads()}))
    bench.add_argument("--repeats", type=int, default=5)
    bench.add_argument("--quick", action="store_true", help="a small shape, in seconds")
    bench.add_argument("--json", type=Path, help="write the table to this file too")
    options = parser.parse_args(arguments)
    if options.command == "info":
        return info()
    if options.command == "bench":
        if min([*options.tokens, *options.threads, options.repeats]) < 1:
            bench.error("--tokens, --threads and --repeats must be at least 1")
        from anabranch.cli.bench import run as run_bench

        return run_bench(options.dtype, options.tokens, options.threads, options.repeats, options.quick, options.json)
    if not 0 < options.minutes < float("inf"):
        demo.error(f"--minutes is {options.minutes}, must be positive")
    from anabranch.cli.demo import run

    try:
        return run(options.minutes, options.text, options.out, options.seed)
    except (OSError, ValueError) as error:
        demo.error(str(error))


def info() -> int:
    """Prints versions, the CPU path in use and whether there are CUDA kernels."""
    print(f"anabranch     {anabranch.__version__}")
    print(f"torch         {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"CPU kernels   {_ISA_NAMES[ops.cpu_isa()]}")
    print(f"CUDA kernels  {'yes' if anabranch.has_cuda_kernels else 'no (built without nvcc)'}")
    return 0
