"""How the index demo measures: building by batches, queries one after another, edits from several threads."""

from __future__ import annotations

import dataclasses
import itertools
import random
import threading
import time
from collections.abc import Callable

import numpy as np

from anabranch.cli.index_contenders import Contender
from anabranch.cli.index_corpus import POSITION_BITS, Corpus, Words
from anabranch.cli.progress import progress_bar

BATCH, LIMIT, NEWEST, THREADS, CHECKED = 100_000, 1000, 10, 4, 100
LEAST_EDITS, LEAST_QUERIES = 3, 200
_MASK = (1 << POSITION_BITS) - 1


@dataclasses.dataclass
class EditRun:
    """Edits by `threads` threads while one more asks as `reader` says. Times in seconds."""

    reader: str
    threads: int
    seconds: float = 0.0
    edited: int = 0  # entries taken away and put in
    edits: list[float] = dataclasses.field(default_factory=list)  # of a file each
    queries: list[float] = dataclasses.field(default_factory=list)
    over_time: list[tuple[float, int]] = dataclasses.field(default_factory=list)  # seconds, entries edited until then


@dataclasses.dataclass
class IndexResult:
    """Of one contender: entries, seconds, memory, latencies in seconds, edits; `checked` when all was found right."""

    name: str
    entries: int = 0
    build_seconds: float = 0.0
    built_bytes: int = 0
    edited_bytes: int = 0
    latencies: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    runs: list[EditRun] = dataclasses.field(default_factory=list)
    checked: bool = False


def build(contender: Contender, corpus: Corpus, result: IndexResult, seconds: float) -> int:
    """Inserts batches for that long, or all; returns how many files lie wholly in what was inserted."""
    bar, start = progress_bar("build", len(corpus.keys)), time.monotonic()
    for first in range(0, len(corpus.keys), BATCH):
        keys, values = corpus.keys[first : first + BATCH], corpus.values[first : first + BATCH]
        before = result.build_seconds
        contender.build(keys, values)
        result.entries += len(keys)
        result.build_seconds = time.monotonic() - start
        bar.update(len(keys))
        bar.set_postfix_str(
            f"{contender.name}: {result.entries / max(result.build_seconds, 1e-9) / 1e6:.2f} M entries/s"
        )
        if 2 * result.build_seconds - before > seconds:  # another batch like this one would end too late
            break
    bar.close()
    result.built_bytes = contender.memory_bytes()
    return max((file for file, end in enumerate(corpus.bounds) if end <= result.entries), default=0)


def query(contender: Contender, corpus: Corpus, result: IndexResult, seconds: float, seed: int) -> None:
    """Prefixes of random words, and the latest places of random words, each kind for half of the time."""
    draw, words = random.Random(seed), _some_words(corpus)

    def prefix() -> object:
        return contender.prefix(*corpus.range_of(corpus.vocabulary[draw.choice(words)][:3]), LIMIT)

    def latest() -> object:
        return contender.latest(*corpus.word_range(draw.choice(words)), NEWEST)

    for name, ask in (("prefix", prefix), ("latest", latest)):
        _time(ask, seconds / 2, result.latencies.setdefault(name, []))


def _some_words(corpus: Corpus) -> list[int]:
    """Numbers of words, those that are frequent in the text more than once."""
    return [int(key) >> POSITION_BITS for key in corpus.keys[:: max(1, len(corpus.keys) // 10_000)]]


def _time(ask: Callable[[], object], seconds: float, found: list[float]) -> None:
    """Appends to `found` as it goes, so that it holds what there is after Ctrl-C."""
    end = time.monotonic() + seconds
    while len(found) < LEAST_QUERIES or time.monotonic() < end:
        start = time.perf_counter()
        ask()
        found.append(time.perf_counter() - start)


class Reader:
    """Asks for the latest places of random words, and looks at each answer. `pause` in seconds follows each."""

    def __init__(self, contender: Contender, corpus: Corpus, pause: float, seed: int) -> None:
        self.contender, self.corpus, self.pause = contender, corpus, pause
        self._draw, self._words = random.Random(seed + 1), _some_words(corpus)

    def __call__(self) -> float:
        """How long the answer took. Raises RuntimeError where it is not of the word, or not in order."""
        first, last = self.corpus.word_range(self._draw.choice(self._words))
        start = time.perf_counter()
        found = self.contender.latest(first, last, NEWEST)
        seconds = time.perf_counter() - start
        ends = [last, *found, first - 1]
        if len(found) > NEWEST or any(one <= other for one, other in itertools.pairwise(ends)):
            raise RuntimeError(f"demo: {self.contender.name} answers {found} between {first} and {last}")
        if self.pause:
            time.sleep(self.pause)
        return seconds


class Editors:
    """Edits files: their words are taken out and come in again as the latest. Each thread has files of its own."""

    def __init__(self, contender: Contender, corpus: Corpus, result: IndexResult, files: int) -> None:
        self.contender, self.corpus, self.result = contender, corpus, result
        self.current = {file: corpus.file_entries(file) for file in range(files) if len(corpus.file_entries(file)[0])}
        self.next_position = len(corpus.keys)
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        self._stop = False

    def run(self, seconds: float, threads: int, name: str, reader: Reader | None) -> EditRun:
        """Edits on so many threads while this one asks; a bar shows the entries a second."""
        run = EditRun(name, threads)
        self.result.runs.append(run)
        start = time.monotonic()
        stop = start + seconds
        workers = [threading.Thread(target=self._edit, args=(run, number, stop)) for number in range(threads)]
        bar, shown = progress_bar("edit", seconds), 0.0
        for worker in workers:
            worker.start()
        try:
            while any(worker.is_alive() for worker in workers):
                if reader is None:
                    time.sleep(0.01)
                else:
                    run.queries.append(reader())
                now = time.monotonic() - start
                if now - shown > 0.05:
                    run.over_time.append((now, run.edited))
                    bar.update(min(now, seconds) - min(shown, seconds))
                    rate = run.edited / now / 1e6
                    bar.set_postfix_str(f"{self.contender.name}: {rate:.2f} M entries/s, threads: {threads}")
                    shown = now
        finally:
            self._stop = True  # where this thread was interrupted
            for worker in workers:
                worker.join()
            self._stop = False
            run.seconds = time.monotonic() - start
            bar.close()
        if self._errors:
            raise self._errors[0]
        self.result.edited_bytes = self.contender.memory_bytes()
        return run

    def _edit(self, run: EditRun, number: int, stop: float) -> None:
        mine = [file for file in self.current if file % run.threads == number]
        done = 0
        try:
            while mine and not self._stop and (done < LEAST_EDITS or time.monotonic() < stop):
                file = mine[done % len(mine)]
                old, values = self.current[file]
                with self._lock:
                    first, self.next_position = self.next_position, self.next_position + len(old)
                new = (old & ~np.int64(_MASK)) | np.arange(first, first + len(old), dtype=np.int64)
                begin = time.perf_counter()
                self.contender.edit(old, new, values)
                seconds = time.perf_counter() - begin
                self.current[file] = new, values
                with self._lock:
                    run.edits.append(seconds)
                    run.edited += 2 * len(old)
                done += 1
        except BaseException as error:
            self._errors.append(error)

    def expected(self) -> tuple[Words, Words]:
        """All entries as they must be now, in order: of the files that were edited, and of those that were not."""
        inserted = self.result.entries
        rest = self.corpus.bounds[max(self.current, default=-1) + 1]
        keys = np.concatenate([*(keys for keys, _ in self.current.values()), self.corpus.keys[rest:inserted]])
        values = np.concatenate([*(values for _, values in self.current.values()), self.corpus.values[rest:inserted]])
        order = np.argsort(keys)
        return keys[order], values[order]

    def check(self, seed: int) -> None:
        """Compares every entry, and the answers to queries of some words, with a recomputation.

        Raises RuntimeError where one differs.
        """
        keys, values = self.expected()
        everything = self.contender.prefix(0, np.iinfo(np.int64).max, len(keys) + 1)
        self._compare("entries", everything, (keys, values))
        words = random.Random(seed + 2).choices(_some_words(self.corpus), k=CHECKED)
        for word in words:
            name = self.corpus.vocabulary[word]
            for start in {name[:3], name}:
                begin, end = np.searchsorted(keys, self.corpus.range_of(start))
                stretch = slice(begin, min(end, begin + LIMIT))
                found = self.contender.prefix(*self.corpus.range_of(start), LIMIT)
                self._compare(f"entries of {start!r}", found, (keys[stretch], values[stretch]))
            begin, end = np.searchsorted(keys, self.corpus.word_range(word))
            latest = self.contender.latest(*self.corpus.word_range(word), NEWEST)
            wanted = keys[max(begin, end - NEWEST) : end][::-1]
            self._compare(f"latest places of {name!r}", (latest,), (wanted,))
        self.result.checked = True

    def _compare(self, what: str, found: tuple[object, ...], wanted: tuple[Words, ...]) -> None:
        if not all(np.array_equal(np.asarray(one), other) for one, other in zip(found, wanted, strict=True)):
            raise RuntimeError(f"demo: {self.contender.name}'s {what} differ from a recomputation; please report it")
