"""How the index demo measures: building by batches, queries one after another, edits from several threads."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable

import numpy as np

from anabranch.cli.index_contenders import Contender
from anabranch.cli.index_corpus import POSITION_BITS, Corpus, Words
from anabranch.cli.progress import progress_bar

BATCH, LIMIT, NEWEST, THREADS, LEAST = 100_000, 1000, 10, 4, 3
_MASK = (1 << POSITION_BITS) - 1


@dataclasses.dataclass
class IndexResult:
    """Of one contender: entries, seconds, and latencies in seconds."""

    name: str
    entries: int = 0
    build_seconds: float = 0.0
    latencies: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    threads: int = 1
    edit_seconds: float = 0.0
    edited: int = 0  # entries taken away and put in
    over_time: list[tuple[float, int]] = dataclasses.field(default_factory=list)  # seconds, entries edited until then


def build(contender: Contender, corpus: Corpus, result: IndexResult, seconds: float) -> int:
    """Inserts batches for that long, or all; returns how many files lie wholly in what was inserted."""
    bar, start = progress_bar("build", len(corpus.keys)), time.monotonic()
    for first in range(0, len(corpus.keys), BATCH):
        keys, values = corpus.keys[first : first + BATCH], corpus.values[first : first + BATCH]
        contender.build(keys, values)
        result.entries += len(keys)
        result.build_seconds = time.monotonic() - start
        bar.update(len(keys))
        bar.set_postfix_str(
            f"{contender.name}: {result.entries / max(result.build_seconds, 1e-9) / 1e6:.2f} M entries/s"
        )
        if result.build_seconds > seconds:
            break
    bar.close()
    return max((file for file, end in enumerate(corpus.bounds) if end <= result.entries), default=0)


def query(contender: Contender, corpus: Corpus, result: IndexResult, seconds: float, seed: int) -> None:
    """Prefixes of random words, and the latest places of random words, each kind for half of the time."""
    draw = random.Random(seed)
    words = [int(key) >> POSITION_BITS for key in corpus.keys[:: max(1, len(corpus.keys) // 10_000)]]

    def prefix() -> object:
        return contender.prefix(*corpus.range_of(corpus.vocabulary[draw.choice(words)][:3]), LIMIT)

    def latest() -> object:
        return contender.latest(*corpus.word_range(draw.choice(words)), NEWEST)

    for name, ask in (("prefix", prefix), ("latest", latest)):
        result.latencies[name] = _timed(ask, seconds / 2)


def _timed(ask: Callable[[], object], seconds: float) -> list[float]:
    found: list[float] = []
    end = time.monotonic() + seconds
    while len(found) < LEAST or time.monotonic() < end:
        start = time.perf_counter()
        ask()
        found.append(time.perf_counter() - start)
    return found


class Editors:
    """Edits files: their words are taken out and come in again as the latest. Each thread has files of its own."""

    def __init__(self, contender: Contender, corpus: Corpus, result: IndexResult, files: int, threads: int) -> None:
        self.contender, self.corpus, self.result, self.threads = contender, corpus, result, threads
        self.current = {file: corpus.file_entries(file) for file in range(files) if len(corpus.file_entries(file)[0])}
        self.next_position = len(corpus.keys)
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        self._stop = False
        result.threads = threads
        result.latencies["edit"] = []

    def run(self, seconds: float, query_meanwhile: Callable[[], object]) -> None:
        """Edits on all threads while this one asks; a bar shows the entries a second."""
        start = time.monotonic()
        stop = start + seconds
        workers = [threading.Thread(target=self._edit, args=(number, stop)) for number in range(self.threads)]
        bar, shown = progress_bar("edit", seconds), 0.0
        for worker in workers:
            worker.start()
        try:
            while any(worker.is_alive() for worker in workers):
                query_meanwhile()
                now = time.monotonic() - start
                if now - shown > 0.05:
                    self.result.over_time.append((now, self.result.edited))
                    bar.update(min(now, seconds) - shown)
                    rate = self.result.edited / now
                    bar.set_postfix_str(f"{self.contender.name}: {rate / 1e6:.2f} M entries/s, {self.threads} threads")
                    shown = now
        finally:
            self._stop = True  # where this thread was interrupted
            for worker in workers:
                worker.join()
            bar.close()
        self.result.edit_seconds = time.monotonic() - start
        if self._errors:
            raise self._errors[0]

    def _edit(self, number: int, stop: float) -> None:
        mine = [file for file in self.current if file % self.threads == number]
        done = 0
        try:
            while mine and not self._stop and (done < LEAST or time.monotonic() < stop):
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
                    self.result.latencies["edit"].append(seconds)
                    self.result.edited += 2 * len(old)
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
