"""The command line: `python -m anabranch info | demo | bench`."""

from __future__ import annotations

import argparse
import os
import sys

from anabranch.cli.arguments import PROGRAM, parser
from anabranch.cli.output import INTERRUPTED, PIPE_CLOSED, check_file


def main(arguments: list[str]) -> int:
    """Runs one command.

    Returns:
        The exit status: 0; 1 for regressions (`bench --compare`); 2 for bad arguments and files that cannot be read or
        written, said in one line; 130 after Ctrl-C; 141 where nobody reads the output any more.
    """
    options = parser().parse_args(arguments)
    try:
        if options.command == "info":
            from anabranch.cli.info import main as info

            return info(arguments)
        if options.command == "bench":
            from anabranch.cli.bench_settings import bench

            return bench(options)
        return _demo(options)
    except BrokenPipeError:
        # Python flushes stdout once more as it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        print(f"{PROGRAM} {options.command}: interrupted, nothing was written", file=sys.stderr)
        return INTERRUPTED
    except (ImportError, OSError, ValueError) as error:
        print(f"{PROGRAM} {options.command}: error: {error}", file=sys.stderr)
        return 2


def _demo(options: argparse.Namespace) -> int:
    if not 0 < options.minutes < float("inf"):
        raise ValueError(f"--minutes is {options.minutes}, must be positive; give some minutes")
    if options.epochs < 1:
        raise ValueError(f"--epochs is {options.epochs}, must be at least 1; give a number of passes")
    check_file("--out", options.out)
    if options.job == "skip":
        return _demo_skip(options)
    if options.job == "temporal":
        from anabranch.cli.demo_temporal import run as run_temporal

        return run_temporal(
            options.minutes, options.edges, options.epochs, options.out, options.seed, options.hide_nodes
        )
    if options.job == "mixers":
        from anabranch.cli.demo_mixers import run
    elif options.job == "index":
        from anabranch.cli.demo_index import run
    else:
        from anabranch.cli.demo import run
    return run(options.minutes, options.text, options.out, options.seed)


def _demo_skip(options: argparse.Namespace) -> int:
    try:
        from anabranch.cli.demo_skip import run
    except ImportError as error:
        raise ImportError(f"--job skip needs transformers: pip install 'transformers>=5.23' ({error})") from error
    return run(options.minutes, options.text, options.out, options.seed)
