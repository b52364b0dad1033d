"""`python -m anabranch demo --job index`: every word of the standard library, indexed, searched and edited at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from anabranch.cli.index_contenders import Contender, Index, contenders
from anabranch.cli.index_corpus import POSITION_BITS, Corpus, read_corpus, source_files
from anabranch.cli.index_measure import LIMIT, NEWEST, THREADS, Editors, IndexResult, build, query
from anabranch.cli.index_report import write_report
from anabranch.cli.progress import table

READ_SHARE, OURS_SHARE = 0.2, 0.4


def run(minutes: float, text: Path | None, out: Path, seed: int) -> int:
    """Reads the folder `text`, builds, asks and edits within `minutes`, prints the table, writes the report.

    Returns 130 after Ctrl-C, else 0. Raises RuntimeError where an index has not what it must.
    """
    seconds = 60 * minutes
    corpus = read_corpus(source_files(text), READ_SHARE * seconds)
    print(
        f"{len(corpus.keys):,} words, {len(corpus.vocabulary):,} different, in {len(corpus.files):,} files of "
        f"{text or 'the Python standard library'}",
        flush=True,
    )
    results: list[IndexResult] = []
    status = 0
    try:
        found = contenders()
        for contender in found:
            ours = isinstance(contender, Index)
            share = OURS_SHARE if ours else (1 - READ_SHARE - OURS_SHARE) / (len(found) - 1)
            results.append(IndexResult(contender.name))
            _measure(contender, corpus, results[-1], share * seconds, seed, THREADS if ours else 1)
    except KeyboardInterrupt:
        print("\ninterrupted: the report holds what there is", flush=True)
        status = 130
    results = [result for result in results if result.entries]
    rows, notes = table_rows(results), conclusions(results, len(corpus.keys))
    print(table(rows), *notes, sep="\n", flush=True)
    write_report(out, results, rows, notes)
    print(f"wrote {out}", flush=True)
    return status


def _measure(
    contender: Contender, corpus: Corpus, result: IndexResult, seconds: float, seed: int, threads: int
) -> None:
    files = build(contender, corpus, result, seconds / 3)
    query(contender, corpus, result, seconds / 4, seed)
    editors = Editors(contender, corpus, result, files, threads)
    editors.run(seconds / 3, _questions(contender, corpus, seed) if threads > 1 else lambda: time.sleep(0.01))
    if isinstance(contender, Index):
        check(contender, editors)


def _questions(contender: Contender, corpus: Corpus, seed: int) -> Callable[[], object]:
    draw = random.Random(seed + 1)

    def ask() -> object:
        word = int(draw.choice(corpus.keys)) >> POSITION_BITS
        return contender.latest(*corpus.word_range(word), NEWEST)

    return ask


def check(contender: Index, editors: Editors) -> None:
    """Compares every entry with a recomputation. Raises RuntimeError where one differs."""
    keys, values = editors.expected()
    now = contender.map.snapshot().to_tensors()
    if not (np.array_equal(now[0].numpy(), keys) and np.array_equal(now[1].numpy(), values)):
        raise RuntimeError("demo: the index differs from a recomputation of its entries; please report it")


def table_rows(results: list[IndexResult]) -> list[tuple[str, ...]]:
    """The final table, header first."""
    rows: list[tuple[str, ...]] = [
        ("map", "entries", "build M/s", "prefix p50", "p99", "latest p50", "p99", "edit threads", "edit M entries/s")
    ]
    for result in results:
        cells = []
        for name in ("prefix", "latest"):
            latencies = result.latencies.get(name, [])
            cells += [time_text(quantile(latencies, q)) if latencies else "-" for q in (0.5, 0.99)]
        rate = f"{result.edited / result.edit_seconds / 1e6:.3g}" if result.edit_seconds else "-"
        build_rate = result.entries / max(result.build_seconds, 1e-9) / 1e6
        rows.append((result.name, f"{result.entries:,}", f"{build_rate:.3g}", *cells, str(result.threads), rate))
    return rows


def conclusions(results: list[IndexResult], entries: int) -> list[str]:
    """What the table says, in sentences."""
    notes = [
        f"prefix: up to {LIMIT} entries of all words with three first letters; latest: the last {NEWEST} places of a "
        "word. An edit takes a file's words out and puts them in as the latest, while one more thread asks for the "
        "latest places (ours; the others are not safe to share and are edited by one thread)."
    ]
    if fewer := [f"{result.name} {result.entries:,}" for result in results if result.entries < entries]:
        notes.append(f"Fewer than {entries:,} entries, for lack of time: {', '.join(fewer)}.")
    if len(results) == len(contenders()) and all(result.edit_seconds for result in results):
        notes.append("After all edits every entry of ours was compared with a recomputation: they are equal.")
    if not any(result.name == "sortedcontainers" for result in results):
        notes.append("sortedcontainers is not installed: pip install sortedcontainers.")
    return notes


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[int(q * (len(values) - 1))]


def time_text(seconds: float) -> str:
    """With a unit that leaves up to three digits before the point."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
