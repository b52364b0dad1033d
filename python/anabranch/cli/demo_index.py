"""`python -m anabranch demo --job index`: every word of the standard library, indexed, searched and edited at once."""

from __future__ import annotations

import time
from pathlib import Path

from anabranch.cli.index_contenders import Contender, Index, SortedDictionary, contenders
from anabranch.cli.index_corpus import Corpus, read_corpus, source_files
from anabranch.cli.index_measure import LIMIT, NEWEST, THREADS, Editors, IndexResult, Reader, build, query
from anabranch.cli.index_report import quantile, time_text, write_report
from anabranch.cli.progress import table

# Of the time; checks take the rest of each map's.
READ_SHARE, OURS_SHARE, PAUSE = 0.15, 0.4, 1e-3
BUILD_SHARE, QUERY_SHARE, EDIT_SHARE = 0.3, 0.15, 0.3
EVERY_MS, ALWAYS, NEVER = "every ms", "always", "never"


def run(minutes: float, text: Path | None, out: Path, seed: int) -> int:
    """Reads the folder `text`, builds, asks and edits within `minutes`, prints the tables, writes the report.

    Returns 130 after Ctrl-C, else 0. Raises RuntimeError where an index has not what it must.
    """
    # Importing torch has taken seconds of the time; a short run is not to lose more than half to it.
    seconds = max(30 * minutes, 60 * minutes - time.process_time())
    end = time.monotonic() + seconds
    results: list[IndexResult] = []
    entries, status = 0, 0
    try:
        files = source_files(text)
        corpus = read_corpus(files, READ_SHARE * seconds)
        entries = len(corpus.keys)
        read = f"{len(corpus.files):,} " + (f"of {len(files):,} " if len(corpus.files) < len(files) else "")
        print(
            f"{entries:,} words, {len(corpus.vocabulary):,} different, in {read}files of "
            f"{text or 'the Python standard library'}",
            flush=True,
        )
        found = contenders()
        for position, make in enumerate(found):
            results.append(IndexResult(make.name))
            share = OURS_SHARE if make is Index else 1 / (len(found) - position)
            _measure(make(), corpus, results[-1], max(0.0, share * (end - time.monotonic())), seed)
    except KeyboardInterrupt:
        print("\ninterrupted: the report holds what there is", flush=True)
        status = 130
    results = [result for result in results if result.entries]
    tables, notes = [table_rows(results), edit_rows(results)], conclusions(results, entries)
    print(*(table(rows) for rows in tables), *notes, sep="\n", flush=True)
    write_report(out, results, tables, notes)
    print(f"wrote {out}", flush=True)
    return status


def _measure(contender: Contender, corpus: Corpus, result: IndexResult, seconds: float, seed: int) -> None:
    files = build(contender, corpus, result, BUILD_SHARE * seconds)
    query(contender, corpus, result, QUERY_SHARE * seconds, seed)
    editors = Editors(contender, corpus, result, files)
    if isinstance(contender, Index):
        for name, pause in ((EVERY_MS, PAUSE), (ALWAYS, 0.0)):
            editors.run(EDIT_SHARE / 2 * seconds, THREADS, name, Reader(contender, corpus, pause, seed))
    else:
        editors.run(EDIT_SHARE * seconds, 1, NEVER, None)
    editors.check(seed)


def table_rows(results: list[IndexResult]) -> list[tuple[str, ...]]:
    """Building, memory, and queries when nobody writes; header first."""
    rows: list[tuple[str, ...]] = [
        ("map", "entries", "build M/s", "bytes/entry", "after edits", "prefix p50", "p99", "latest p50", "p99")
    ]
    for result in results:
        sizes = [size / result.entries for size in (result.built_bytes, result.edited_bytes)]
        rows.append(
            (
                result.name,
                f"{result.entries:,}",
                f"{result.entries / max(result.build_seconds, 1e-9) / 1e6:.3g}",
                *(f"{size:.1f}" if size else "-" for size in sizes),
                *_latencies(result.latencies.get("prefix", [])),
                *_latencies(result.latencies.get("latest", [])),
            )
        )
    return rows


def edit_rows(results: list[IndexResult]) -> list[tuple[str, ...]]:
    """Edits, and queries meanwhile; header first."""
    rows: list[tuple[str, ...]] = [
        ("map", "edit threads", "M entries/s", "edit p50", "p99", "asked", "latest/s", "p50", "p99")
    ]
    for result in results:
        for run in result.runs:
            seconds = max(run.seconds, 1e-9)
            rate, asked = f"{run.edited / seconds / 1e6:.3g}", f"{len(run.queries) / seconds:,.0f}"
            mine, others = _latencies(run.edits), _latencies(run.queries)
            rows.append(
                (result.name, str(run.threads), rate, *mine, run.reader, asked if run.queries else "-", *others)
            )
    return rows


def _latencies(values: list[float]) -> list[str]:
    return [time_text(quantile(values, q)) if values else "-" for q in (0.5, 0.99)]


def conclusions(results: list[IndexResult], entries: int) -> list[str]:
    """What the tables say, in sentences."""
    notes = [
        "Files are read in the order in which they changed, so that a word's last entries are its latest places. "
        f"prefix: up to {LIMIT} entries of all words with three first letters; latest: the last {NEWEST} places of a "
        "word. An edit takes a file's words out and puts them in as the latest.",
        f"{THREADS} threads edit ours while one more asks for latest places: every millisecond, then always. "
        "A thread of Python that never pauses keeps the interpreter's lock for 5 ms at a time, and editors wait for it."
        " The other maps are not safe to share: one thread edits them, and nobody asks.",
    ]
    if fewer := [f"{result.name} {result.entries:,}" for result in results if result.entries < entries]:
        notes.append(f"Fewer than {entries:,} entries, for lack of time: {'; '.join(fewer)}.")
    if checked := [result.name for result in results if result.checked]:
        notes.append(
            "After the edits every entry, and the answers to prefix and latest queries of random words, were compared "
            f"with a recomputation and are equal: {'; '.join(checked)}."
        )
    if any(result.name == "sortedcontainers" for result in results):
        notes.append("sortedcontainers' bytes are the dictionary's, the integers', and 8 a key of its lists, at least.")
    if SortedDictionary not in contenders():
        notes.append("sortedcontainers is not installed: pip install sortedcontainers.")
    return notes
