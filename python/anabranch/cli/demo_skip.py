"""`python -m anabranch demo --job skip`: one byte-level model, and what policies make of it at several budgets."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from anabranch.cli.progress import table
from anabranch.cli.skip_measure import (
    FEWEST_NEW,
    FEWEST_ROUNDS,
    FEWEST_SCORED,
    MOST_NEW,
    MOST_SCORED,
    SEQUENCES,
    SkipResult,
    measure_quality,
    measure_speed,
)
from anabranch.cli.skip_model import Curve, build_model, train_model
from anabranch.cli.skip_policies import Candidate, candidates, with_policy
from anabranch.cli.skip_report import write_report
from anabranch.cli.text import load_text

TRAINING_SHARE, POLICIES_SHARE, QUALITY_SHARE = 0.55, 0.2, 0.12  # of the time; what is left is for speed


def run(minutes: float, text: Path | None, out: Path, seed: int) -> int:
    """Trains, measures and compares within `minutes`, prints the table, writes the report.

    Returns 130 after Ctrl-C, else 0.
    """
    train, validation = load_text(text)
    print(f"{len(train) + len(validation):,} bytes of {text or 'the Python standard library'}", flush=True)
    torch.manual_seed(seed)
    curve, results, status = Curve(), [], 0
    start, seconds = time.monotonic(), 60 * minutes
    try:
        model = build_model()
        train_model(model, train, TRAINING_SHARE * seconds, seed, curve)
        model.eval().requires_grad_(False)
        compared = list(candidates(seed))
        results = [SkipResult(one.family, one.budget) for one in compared]
        models = _prepare(model, compared, train, POLICIES_SHARE * seconds)
        scored = _score(models, results, validation, QUALITY_SHARE * seconds)
        print(f"quality: {SEQUENCES} sequences of {scored} held-out bytes, one by one; now speed", flush=True)
        left = start + seconds - time.monotonic()
        # A round that the time left has room for, at two thousand bytes a second and model at most.
        new_tokens = int(2000 * left / len(models) / (FEWEST_ROUNDS + 1) / 10)
        measure_speed(models, results, validation, max(FEWEST_NEW, min(MOST_NEW, new_tokens)), left)
    except KeyboardInterrupt:
        print("\ninterrupted: the report holds what there is", flush=True)
        status = 130
    rows, notes = table_rows(results), conclusions(results)
    print(table(rows), *notes, sep="\n", flush=True)
    write_report(out, curve.seconds, curve.bits, results, rows, notes)
    print(f"wrote {out}", flush=True)
    return status


def _prepare(model: nn.Module, compared: list[Candidate], text: torch.Tensor, seconds: float) -> list[nn.Module]:
    """Teaches the policies that learn, each in its share of the time; one copy of the model for each candidate."""
    learners = sum(one.learn is not None for one in compared)
    models = []
    for one in compared:
        if one.learn is not None:
            one.learn(model, text, seconds / learners)
        models.append(with_policy(model, one.policy))
    return models


def _score(models: list[nn.Module], results: list[SkipResult], text: torch.Tensor, seconds: float) -> int:
    """Quality of all models on as many bytes as the time has room for; returns how many after each prompt."""
    per_byte = measure_quality(models[0], text, FEWEST_SCORED, results[0])
    room = int(seconds / len(models) / per_byte)
    scored = max(FEWEST_SCORED, min(MOST_SCORED, room))
    for model, result in zip(models, results, strict=True):
        measure_quality(model, text, scored, result)
    return scored


def table_rows(results: list[SkipResult]) -> list[tuple[str, ...]]:
    """The final table, header first."""
    rows: list[tuple[str, ...]] = [
        ("policy", "budget", "validation bits/byte", "FFN FLOPs, decoding", "bytes/s", "x dense")
    ]
    for result in results:
        measured = result.bits is not None
        rows.append(
            (
                result.family,
                result.budget or "-",
                f"{result.bits:.3f}" if measured else "-",
                f"{result.ffn_share:.1%}" if measured else "-",
                f"{result.tokens_per_second:,.0f}" if result.rates else "-",
                f"{result.speedup(results[0]):.2f}" if result.rates and results[0].rates else "-",
            )
        )
    return rows


def conclusions(results: list[SkipResult]) -> list[str]:
    """What the table says, in sentences; none before all is measured."""
    if not results or any(result.bits is None or not result.rates for result in results):
        return []
    dense, others = results[0], results[1:]
    slow = [result.name for result in others if result.speedup(dense) <= 1]
    beaten = [result.name for result in others if result.family != "contiguous" and _beaten(result, others)]
    notes = [
        "Bits per byte are of held-out text, decoded byte by byte with a cache; bytes/s are the median of greedy "
        f"generate, all models in turn, and x dense the median ratio of {len(dense.rates)} rounds. FFN FLOPs are those "
        "of the FFNs alone, without routers and corrections. The model was trained with layers left out by chance; "
        "routers and corrections were trained briefly, on the frozen model."
    ]
    if slow:
        notes.append(f"Does not pay at this size, no faster than dense: {', '.join(slow)}.")
    if beaten:
        notes.append(f"Beaten by a dropped block of layers, in speed and quality: {', '.join(beaten)}.")
    return notes


def _beaten(result: SkipResult, others: list[SkipResult]) -> bool:
    return any(
        other.tokens_per_second >= result.tokens_per_second and (other.bits or 0.0) <= (result.bits or 0.0)
        for other in others
        if other.family == "contiguous"
    )
