"""`python -m anabranch demo --job mixers`: one byte-level model with plain residuals and with residual streams."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from anabranch.cli.mixers_measure import BATCH, MixerResult, batches_within, measure, train_together
from anabranch.cli.mixers_model import CONTEXT, STREAMS, VARIANTS, build_model
from anabranch.cli.mixers_report import error_text, write_report
from anabranch.cli.progress import table
from anabranch.cli.text import load_text

_STOCHASTIC = ("mhc", "mhc_exact", "mhc_lite")
TRAINING_SHARE, MUST, MORE_SEEDS = 0.85, 1.25, 2


def run(minutes: float, text: Path | None, out: Path, seed: int) -> int:
    """Trains and measures all variants within `minutes`, prints the table, writes the report.

    Returns 130 after Ctrl-C, else 0.
    """
    train, validation = load_text(text)
    print(f"{len(train) + len(validation):,} bytes of {text or 'the Python standard library'}", flush=True)
    results: list[MixerResult] = []
    status, start = 0, time.monotonic()
    try:
        models = []
        for name, kind, own in variants(seed):
            torch.manual_seed(own)
            models.append(build_model(kind))
            results.append(MixerResult(name, own, sum(one.numel() for one in models[-1].parameters())))
        train_together(models, results, train, TRAINING_SHARE * 60 * minutes, seed)
        batches = batches_within(start + 60 * minutes - time.monotonic(), results)
        for model, result in zip(models, results, strict=True):
            measure(model.eval(), result, validation, batches)
    except KeyboardInterrupt:
        print("\ninterrupted: the report holds what there is", flush=True)
        status = 130
    results = [result for result in results if result.bits]
    rows, notes = table_rows(results), conclusions(results, time.monotonic() - start)
    print(table(rows), *notes, sep="\n", flush=True)
    write_report(out, results, rows, notes)
    print(f"wrote {out}", flush=True)
    return status


def variants(seed: int) -> list[tuple[str, str | None, int]]:
    """Name, kind and seed: all with one seed, then the plain model again with others, which shows the noise."""
    once = [(name, kind, seed) for name, kind in VARIANTS.items()]
    return once + [(f"plain, seed {seed + more}", None, seed + more) for more in range(1, MORE_SEEDS + 1)]


def table_rows(results: list[MixerResult]) -> list[tuple[str, ...]]:
    """The final table, header first: of each mixer the errors of what it promises."""
    rows: list[tuple[str, ...]] = [
        (
            "residual",
            "parameters",
            "train bits/byte",
            "held-out bits/byte",
            "step ms",
            "x plain",
            "row error",
            "column error",
            "orthogonality error",
            "singular values",
        )
    ]
    for result in results:
        kind = VARIANTS.get(result.name)
        stochastic = (result.row_errors, result.column_errors) if kind in _STOCHASTIC else ([], [])
        errors = (*stochastic, result.orthogonality_errors if kind == "jpmhc" else [])
        values = result.spectrum[-1] if result.spectrum else []
        rows.append(
            (
                result.name,
                f"{result.parameters / 1e6:.2f} M",
                f"{result.train_bits:.3f}",
                "-" if result.validation_bits is None else f"{result.validation_bits:.3f}",
                f"{result.milliseconds:.1f}",
                f"{result.times_plain(results[0]):.2f}",
                *(error_text(max(one)) if one else "-" for one in errors),
                f"{values[-1]:.2g} to {values[0]:.2g}" if values else "-",
            )
        )
    return rows


def conclusions(results: list[MixerResult], seconds: float) -> list[str]:
    """What the table says, in sentences; none before all is measured."""
    bits = {result.name: result.validation_bits for result in results if result.validation_bits is not None}
    if len(bits) < len(VARIANTS) + MORE_SEEDS:
        return []
    plain = results[0]
    seeds = [found for name, found in bits.items() if name.startswith("plain")]
    noise = max(seeds) - min(seeds)
    better = [name for name in list(VARIANTS)[1:] if bits[name] < min(seeds) - noise]
    worse = [name for name in list(VARIANTS)[1:] if bits[name] > max(seeds) + noise]
    within = [name for name in list(VARIANTS)[1:] if name not in better + worse]
    slow = [result.name for result in results[1 : len(VARIANTS)] if result.times_plain(plain) > MUST]
    threads = torch.get_num_threads()
    notes = [
        f"All have the same sub-layers, {STREAMS} streams where there are any, and took the same {len(plain.bits)} "
        f"steps on the same batches of {BATCH} x {CONTEXT} bytes, in turn, in {seconds:.0f} s in all. Times are "
        f"medians with {threads} thread{'s' if threads > 1 else ''}, optimizer included.",
        f"Held-out bits of {len(seeds)} seeds of the plain model span {noise:.3f}: differences of that size are noise. "
        "So short a training says what a step costs and which matrices come of it, not which residual is best.",
    ]
    for verdict, names in (("Better", better), ("Worse", worse), ("Not told apart from", within)):
        if names:
            than = "" if verdict.endswith("from") else " than"
            notes.append(f"{verdict}{than} plain by this measure: {', '.join(names)}.")
    notes.append(
        f"Slower than {MUST} of a plain step: {', '.join(slow)}."
        if slow
        else f"No variant's step takes more than {MUST} of a plain one."
    )
    return notes
