"""What `bench temporal` is held to: each number beside the bar that it must reach and the one that is wished for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anabranch.cli.bench_index_bars import Bar
from anabranch.cli.bench_index_rows import IndexRow
from anabranch.cli.bench_rows import Row

# Events a second of NAT's release: UCI, batch 100, one thread, 100 edge features. Measured once, with a profiler on.
RELEASE = 665.0
PAIRS = 4096  # that the bar of pair_join is about, and more


def temporal_bars(rows: Sequence[Row]) -> list[Bar]:
    """Every bar whose rows are there."""
    return [bar for row in rows if isinstance(row, IndexRow) and row.threads == 1 for bar in _bars(row)]


def _bars(row: IndexRow) -> Iterator[Bar]:
    name, rate = f"{row.workload}, batch {row.tokens}", row.millions(row.ours)
    if row.workload == "ring 1M nodes":
        yield Bar(f"{name}, million edges/s", rate, 3.5, 4.5, True)
    if row.workload == "ring 9k nodes":
        for peer, how in (("ring", "called from Python"), ("ring C++", "in C++")):
            ratio = row.ratio(peer)
            if ratio is not None:
                yield Bar(f"{name}, over the plain ring {how}", ratio, 1.2, None, True)
    if row.workload.startswith("NAT UCI"):
        yield Bar(f"{name}, over the release's 665/s", 1e6 * rate / RELEASE, 10.0, None, True)
    if row.workload == "pair_join" and row.tokens >= PAIRS:
        yield Bar(
            f"pair_join, {row.tokens} pairs, over the limit", row.medians_ms[row.ours] / row.limit_ms, 2.0, None, False
        )
