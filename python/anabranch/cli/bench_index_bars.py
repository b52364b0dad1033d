"""What `bench index` is held to: each number beside the bar that it must reach and the one that is wished for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from anabranch.cli.bench_index_rows import IndexRow
from anabranch.cli.bench_rows import Row

KEYS = 10_000_000  # that bars are about, and more
PYTHON_KEYS = 1_000_000  # of those where peers take part that hold Python objects
# Million operations a second on one thread.
_RATES = {
    "load": (2.0, 4.0),
    "find": (2.2, 4.0),
    "find zipf": (3.0, 6.0),
    "YCSB A": (2.5, 5.0),
    "YCSB E": (1.0, 1.5),
    "batch find": (7.0, 16.0),
    "batch insert 1000": (1.2, 2.5),
    "bulk load": (50.0, 100.0),
}
_TWO_THREADS = ("load", "find", "find zipf", "YCSB A", "YCSB E", "batch find")


@dataclasses.dataclass(frozen=True)
class Bar:
    """What one number must be, at least or at most, and what is wished for."""

    what: str
    value: float
    must: float
    goal: float | None
    at_least: bool

    @property
    def holds(self) -> bool:
        return self.value >= self.must if self.at_least else self.value <= self.must


def index_bars(rows: Sequence[Row]) -> list[Bar]:
    """Every bar whose rows are there."""
    found: dict[tuple[str, int], IndexRow] = {}
    python: dict[str, IndexRow] = {}
    for row in rows:
        if isinstance(row, IndexRow) and row.tokens >= KEYS:
            found.setdefault((row.workload, row.threads), row)
        if isinstance(row, IndexRow) and row.threads == 1 and row.tokens >= PYTHON_KEYS:
            python.setdefault(row.workload, row)
    return [*_speed(found), *_threads(found), *_kinds_of_keys(found), *_python(python)]


def _speed(found: dict[tuple[str, int], IndexRow]) -> Iterator[Bar]:
    for name, (must, goal) in _RATES.items():
        if row := found.get((name, 1)):
            yield Bar(f"{name}, million/s", row.millions(row.ours), must, goal, True)
    if row := found.get(("load", 1)):
        yield Bar("bytes per key after load", row.bytes_per_key[row.ours], 26.0, 20.0, False)


def _threads(found: dict[tuple[str, int], IndexRow]) -> Iterator[Bar]:
    for name in _TWO_THREADS:
        one, two = found.get((name, 1)), found.get((name, 2))
        if one and two:
            yield Bar(f"{name}, 2 threads over 1", two.millions(two.ours) / one.millions(one.ours), 1.8, 1.95, True)
    for name in ("YCSB A", "paper's A"):
        if row := found.get((name, 2)):
            yield Bar(f"{name}, 2 threads, p99 in us", 1e-3 * row.p99_ns[row.ours], 2.0, None, False)


def _kinds_of_keys(found: dict[tuple[str, int], IndexRow]) -> Iterator[Bar]:
    for kind in ("odd", "multiples", "timestamps"):
        for name in ("load", "find"):
            random, other = found.get((name, 1)), found.get((f"{name} {kind}", 1))
            if random and other:
                share = other.millions(other.ours) / random.millions(random.ours)
                yield Bar(f"{name} {kind} over random", share, 0.8, None, True)
                if name == "load":
                    share = other.bytes_per_key[other.ours] / random.bytes_per_key[random.ours]
                    yield Bar(f"bytes per key {kind} over random", share, 1.2, None, False)


def _python(found: dict[str, IndexRow]) -> Iterator[Bar]:
    for name in ("batch insert all", "batch find"):
        for peer in ("sortedcontainers", "sortedcontainers, one by one"):
            row = found.get(name)
            ratio = row.ratio(peer) if row else None
            if ratio is not None:
                yield Bar(f"{name} over {peer}", ratio, 10.0, 30.0, True)
    for name in ("get", "set"):
        row = found.get(name)
        if row and "dict" in row.medians_ms:  # milliseconds of a million are nanoseconds of one
            yield Bar(
                f"Python {name}, ns above 1.5 x dict",
                row.medians_ms[row.ours] - 1.5 * row.medians_ms["dict"],
                150.0,
                None,
                False,
            )
