"""The arguments of the command line, as argparse knows them; nothing here needs torch."""

from __future__ import annotations

import argparse
from pathlib import Path

ROOMS = ("experts", "skip", "mixers", "index", "temporal")
PROGRAM = "python -m anabranch"
_ABOUT = "Dynamic neural networks, at the price of what is active."


def parser() -> argparse.ArgumentParser:
    """That of the whole program; `options.command` says which command was chosen."""
    program = argparse.ArgumentParser(prog=PROGRAM, description=_ABOUT)
    commands = program.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="what this installation has")
    _add_demo(commands.add_parser("demo", help="a job on real text, its table and its report"))
    _add_bench(commands.add_parser("bench", help="time the kernels beside their peers and the machine's limit"))
    return program


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.add_argument(
        "--job",
        choices=ROOMS,
        default="experts",
        help="experts: a dense, a top-2 and a dynamic model; skip: speed and quality of one model under policies that "
        "skip its layers or FFNs, needs transformers; mixers: one model with plain residuals and with residual streams "
        "mixed by several kinds of matrices; index: every word of the standard library in an ordered map, searched and "
        "edited at once; temporal: NAT predicts the next links of an edge stream (default experts)",
    )
    demo.add_argument("--minutes", type=float, default=2.0, help="time for the whole job (default 2)")
    demo.add_argument(
        "--text", type=Path, help="a text file, of index a folder of Python files; default: the Python standard library"
    )
    demo.add_argument(
        "--edges",
        type=Path,
        help="of temporal: src dst time [features...], CSV or Parquet; default: one is generated",
    )
    demo.add_argument("--epochs", type=int, default=1, help="of temporal: passes over the stream (default 1)")
    demo.add_argument(
        "--hide-nodes",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of temporal: nodes to leave out of training for the inductive test, 0.1 in NAT's paper (default 0: new "
        "nodes alone)",
    )
    demo.add_argument("--out", type=Path, default=Path("report.html"), help="default report.html")
    demo.add_argument("--seed", type=int, default=0)


def _add_bench(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("rooms", nargs="*", metavar="room", help=f"whose kernels: {', '.join(ROOMS)} (default all)")
    bench.add_argument(
        "--mode",
        nargs="+",
        help="of one room. experts: forward, variable_k, training; skip: forward, skipped, width, lowrank, training; "
        "mixers: forward, matrix, training, matrix_training, model; index: operations, keys, batches, mapping; "
        "temporal: ring, nat, pairs, cache, memory; default: all",
    )
    bench.add_argument(
        "--dtype",
        nargs="+",
        choices=["bfloat16", "float32"],
        help="default: bfloat16; on the CPU, without --quick, often float32 too",
    )
    bench.add_argument(
        "--tokens",
        nargs="+",
        type=int,
        help="of one room; default: several numbers for each mode; of index: keys; of temporal: events or pairs of a "
        "batch",
    )
    bench.add_argument(
        "--threads", nargs="+", type=int, help="default: one, then all; with --quick one; on a GPU as torch has them"
    )
    bench.add_argument("--repeats", type=int, help="default 5; of index, and with --quick, 3")
    bench.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    bench.add_argument("--quick", action="store_true", help="one small shape for each mode; all rooms in two minutes")
    bench.add_argument("--without", nargs="+", default=[], help="contenders to leave out, like compiled of mixers")
    bench.add_argument("--json", type=Path, help="write all that was measured to this file")
    bench.add_argument(
        "--out", type=Path, help="write bench.json, bench.html and a picture of each room, <room>.svg, into this folder"
    )
    bench.add_argument(
        "--compare",
        type=Path,
        help="a file that --json wrote before: name what is further from the limit than then, and exit with 1",
    )
