"""`bench --compare old.json`: what is further from the machine's limit than it was.

Rows are matched by room, shape, workload, dtype, threads, tokens and contender. Times are not compared, but shares of
the limit that was measured beside them: machines differ, and one machine's hours do. A share has fallen when it lost
more than the largest of the contender's two spreads, of what the limits moved during either run, and of a tenth (of
three tenths where it ran only once). Only what fell of ours is a regression; a peer that fell says that the machine or
the peer is another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from anabranch.cli.bench_record import Record, RoomRecord
from anabranch.cli.bench_rows import OURS, Row

LEAST = 0.1  # that runs of one program differ by on a quiet machine
ONCE = 0.3  # of what ran once, whose spread nobody knows
_OURS = {*OURS, "int8", "lagged", "apart", "fixed k", "dense"}
_MOST_NAMED = 20

Key = tuple[str, str, str, int, int]
"""Room, workload, dtype, threads, tokens."""


@dataclasses.dataclass(frozen=True)
class Fall:
    """A contender of a row whose share of the limit fell; `allowed` is the part of it that it may lose."""

    key: Key
    contender: str
    before: float
    now: float
    allowed: float

    def __str__(self) -> str:
        return (
            f"{name(self.key)}, {self.contender}: {self.before:.1%} of the limit, now {self.now:.1%} "
            f"({self.now / self.before - 1:+.0%}, allowed -{self.allowed:.0%})"
        )


def compare(old: Record, new: Record) -> tuple[list[str], bool]:
    """What is to be said, line by line, and whether something of ours fell."""
    lines, compared, falls = [], 0, []
    before, now = ({room.room: room for room in record.rooms} for record in (old, new))
    for room in sorted(before.keys() ^ now.keys()):
        lines.append(f"only {'before' if room in before else 'now'}: all of {room}")
    for room in [name for name in now if name in before]:
        was, is_ = before[room], now[room]
        if was.shape != is_.shape:
            lines.append(f"not compared: {room}, whose shape was {was.shape} and is {is_.shape}")
            continue
        then, rows = _by_key(was), _by_key(is_)
        lines += _named("before", [key for key in then if key not in rows])
        lines += _named("now", [key for key in rows if key not in then])
        both = [key for key in rows if key in then]
        for key in both:
            one_sided = sorted(then[key].medians_ms.keys() ^ rows[key].medians_ms.keys())
            lines += [f"only {'before' if c in then[key].medians_ms else 'now'}: {name(key)}, {c}" for c in one_sided]
        compared += sum(bool(then[key].limit_ms and rows[key].limit_ms) for key in both)
        falls += [fall for key in both for fall in _falls(key, was, then[key], is_, rows[key])]
    regressions = [fall for fall in falls if fall.contender in _OURS]
    lines += [f"peer, no regression: {fall}" for fall in falls if fall.contender not in _OURS]
    lines += [f"REGRESSION: {fall}" for fall in regressions]
    lines.append(f"compared {compared} rows that have a limit: {len(regressions)} regressions")
    return sorted(lines[:-1], key=lambda line: line.startswith("REGRESSION")) + lines[-1:], bool(regressions)


def name(key: Key) -> str:
    room, workload, dtype, threads, tokens = key
    return f"{room}: {workload}, {dtype}, {threads} thread{'s' if threads > 1 else ''}, {tokens}"


def _by_key(room: RoomRecord) -> dict[Key, Row]:
    return {(room.room, row.workload, row.dtype, row.threads, row.tokens): row for row in room.rows}


def _named(when: str, keys: list[Key]) -> Iterator[str]:
    """A line for each, of many only the first ones."""
    for key in keys[:_MOST_NAMED]:
        yield f"only {when}: {name(key)}"
    if len(keys) > _MOST_NAMED:
        yield f"only {when}: {len(keys) - _MOST_NAMED} more rows of {keys[0][0]}"


def _falls(key: Key, was: RoomRecord, before: Row, is_: RoomRecord, now: Row) -> Iterator[Fall]:
    drift = max(room.drift(row.dtype, row.threads) for room, row in ((was, before), (is_, now)))
    for contender in now.medians_ms:
        then, share = before.of_limit(contender), now.of_limit(contender)
        if not then or not share:  # it did not run, or the row has no limit
            continue
        least = ONCE if 1 in (was.repeats, is_.repeats) else LEAST
        allowed = max(least, drift, before.spreads[contender], now.spreads[contender])
        if share < then * (1 - allowed):
            yield Fall(key, contender, then, share, allowed)
