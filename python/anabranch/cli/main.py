"""The command line: `python -m anabranch info | demo | bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import anabranch


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit status: 0, 2 for bad arguments, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m anabranch", description=anabranch.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="what this installation has")
    demo = commands.add_parser("demo", help="a job on real text, its table and its report")
    demo.add_argument(
        "--job",
        choices=["experts", "skip", "mixers", "index", "temporal"],
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
    demo.add_argument("--out", type=Path, default=Path("report.html"), help="default report.html")
    demo.add_argument("--seed", type=int, default=0)
    bench = commands.add_parser("bench", help="time the kernels beside their peers and the machine's limit")
    bench.add_argument(
        "room",
        nargs="?",
        choices=["experts", "skip", "mixers", "index", "temporal"],
        default="experts",
        help="whose kernels (default experts)",
    )
    bench.add_argument(
        "--mode",
        nargs="+",
        help="experts: forward, variable_k, training; skip: forward, skipped, width, lowrank, training; "
        "mixers: forward, matrix, training, matrix_training, model; index: operations, keys, batches, mapping; "
        "temporal: ring, nat, pairs, cache, memory; default: all",
    )
    bench.add_argument(
        "--dtype", nargs="+", choices=["bfloat16", "float32"], help="default: bfloat16; on the CPU often float32 too"
    )
    bench.add_argument(
        "--tokens",
        nargs="+",
        type=int,
        help="default: several numbers for each mode; of index: keys; of temporal: events or pairs of a batch",
    )
    bench.add_argument("--threads", nargs="+", type=int, help="default: one, then all; on a GPU as torch has them")
    bench.add_argument("--repeats", type=int, help="default 5; of index 3; with --quick 1 of index and temporal")
    bench.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    bench.add_argument("--quick", action="store_true", help="a small shape, in seconds")
    bench.add_argument("--without", nargs="+", default=[], help="contenders to leave out, like compiled of mixers")
    bench.add_argument("--json", type=Path, help="write the table to this file too")
    bench.add_argument("--svg", type=Path, help="draw the percentages of the limit into this file")
    options = parser.parse_args(arguments)
    if options.command == "info":
        from anabranch.cli.info import main as info

        return info(arguments)
    if options.command == "bench":
        return _bench(bench, options)
    return _demo(demo, options)


def _demo(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if not 0 < options.minutes < float("inf"):
        parser.error(f"--minutes is {options.minutes}, must be positive")
    if options.epochs < 1:
        parser.error(f"--epochs is {options.epochs}, must be at least 1")
    if not options.out.parent.is_dir():
        parser.error(f"{options.out.parent} is no folder to write {options.out.name} into; make it first")
    if options.out.is_dir():
        parser.error(f"--out: {options.out} is a folder, must be a file; name one in it")
    try:
        if options.job == "skip":
            return _demo_skip(options)
        if options.job == "temporal":
            from anabranch.cli.demo_temporal import run as run_temporal

            return run_temporal(options.minutes, options.edges, options.epochs, options.out, options.seed)
        if options.job == "mixers":
            from anabranch.cli.demo_mixers import run
        elif options.job == "index":
            from anabranch.cli.demo_index import run
        else:
            from anabranch.cli.demo import run
        return run(options.minutes, options.text, options.out, options.seed)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))


def _demo_skip(options: argparse.Namespace) -> int:
    try:
        from anabranch.cli.demo_skip import run
    except ImportError as error:
        raise ImportError(f"--job skip needs transformers: pip install 'transformers>=5.23' ({error})") from error
    return run(options.minutes, options.text, options.out, options.seed)


def _bench(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if min([*(options.tokens or []), *(options.threads or []), 1 if options.repeats is None else options.repeats]) < 1:
        parser.error("--tokens, --threads and --repeats must be at least 1")
    from anabranch.cli.bench_rows import OURS

    if kept := set(OURS).intersection(options.without):
        parser.error(f"--without: {min(kept)} is ours, must be a peer; name another")
    if options.device == "cuda" and not (anabranch.has_cuda_kernels and torch.cuda.is_available()):
        parser.error("--device is cuda, must be cpu: there is no GPU, or this build has no CUDA kernels")
    for path in (options.json, options.svg):
        if path is not None and not path.parent.is_dir():
            parser.error(f"{path.parent} is no folder to write {path.name} into; make it first")
    from anabranch.cli.bench import Settings, run
    from anabranch.cli.bench_rooms import ROOMS

    room = ROOMS[options.room]
    modes, default_repeats = room.modes, room.quick_repeats if options.quick else room.repeats
    for mode in options.mode or ():
        if mode not in modes:
            parser.error(f"argument --mode: invalid choice: {mode!r} (bench {options.room} has {', '.join(modes)})")
    all_threads = torch.get_num_threads()
    default_threads = sorted({1, all_threads}) if options.device == "cpu" else [all_threads]
    return run(
        Settings(
            room=options.room,
            device=options.device,
            modes=options.mode or list(modes),
            dtypes=options.dtype,
            tokens=options.tokens,
            threads=options.threads or default_threads,
            repeats=default_repeats if options.repeats is None else options.repeats,
            quick=options.quick,
            without=options.without,
            json=options.json,
            svg=options.svg,
        )
    )
