"""Rates beside their roofs, for rows that have no FLOPs or no bytes to draw a roofline of.

A row is one line of the picture: a mark for each contender at its rate, and an upright line where the machine's limit
is: cache lines from random places, bandwidth or arithmetic, as named beside it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence

from anabranch.cli.bench_index_rows import OPERATIONS, IndexRow
from anabranch.cli.bench_marks import MARKS, OURS_MARK, mark
from anabranch.cli.bench_roofline import Numbered, power_text, text
from anabranch.cli.bench_rows import Row
from anabranch.cli.machine import Limits

WIDTH = 400
_LEFT, _RIGHT, _ROW, _TOP = 10, 10, 34, 4


def rates(rows: Numbered, limits: Limits, peers: Sequence[str], unit: str) -> str:
    """An SVG of rows that have one dtype and number of threads, in units a second."""
    shown = [(number, row, list(_rates(row, peers))) for number, row in rows]
    values = [value for _, row, found in shown for _, value in [*found, *_roof(row)]]
    low, high = math.floor(math.log10(min(values)) - 0.05), math.ceil(math.log10(max(values)) + 0.05)
    bottom = _TOP + _ROW * len(shown)

    def x(rate: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (math.log10(rate) - low) / (high - low)

    body = []
    for power in range(low, high + 1):
        at = x(10.0**power)
        anchor = "start" if power == low else "end" if power == high else "middle"
        body.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        body.append(text(at, bottom + 14, power_text(power), anchor))
    for place, (number, row, found) in enumerate(shown):
        body += _line(_TOP + _ROW * place, number, row, found, limits, x)
    body.append(text(WIDTH / 2, bottom + 30, f"{unit} a second"))
    label = f"Rates of {len(rows)} rows and their limits"
    return (
        f'<svg class="rates" viewBox="0 0 {WIDTH} {bottom + 36}" role="img" aria-label="{label}">{"".join(body)}</svg>'
    )


def _line(
    y: float,
    number: int,
    row: Row,
    found: Sequence[tuple[str, float]],
    limits: Limits,
    x: Callable[[float], float],
) -> Iterator[str]:
    middle = y + 24
    share = row.of_limit(row.ours)
    verdict = f"{share:.0%} of {bound(row, limits)}" if share else "no limit here"
    yield text(_LEFT, y + 13, f"{number}  {row.workload}, {row.tokens:,}", "start", "number")
    yield text(WIDTH - _RIGHT, y + 13, verdict, "end")
    yield f'<line class="rail" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{middle}" y2="{middle}"/>'
    for _, roof in _roof(row):
        at = f"{x(roof):.1f}"
        yield f'<line class="roof" x1="{at}" x2="{at}" y1="{middle - 8}" y2="{middle + 8}"/>'
    for name, rate in found:
        is_ours = name == row.ours
        drawn = mark(*(OURS_MARK if is_ours else MARKS[name]), x(rate), middle)
        about = html.escape(f"{name}: {rate:.3g} a second")
        yield f'<g class="{"ours" if is_ours else "peer"}"><title>{about}</title>{drawn}</g>'


def _rates(row: Row, peers: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Peers first: ours is drawn over them."""
    for name in sorted(row.medians_ms, key=lambda name: name == row.ours):
        if name == row.ours or (name in peers and name in MARKS):
            yield name, 1e3 * _count(row) / row.medians_ms[name]


def _roof(row: Row) -> list[tuple[str, float]]:
    return [("limit", 1e3 * _count(row) / row.limit_ms)] if row.limit_ms else []


def _count(row: Row) -> int:
    """What the times of the row are about."""
    return OPERATIONS if isinstance(row, IndexRow) else row.tokens


def bound(row: Row, limits: Limits) -> str:
    """Which limit it is: the slowest of three."""
    seconds = {
        "arithmetic": row.flops / limits.peak,
        "bandwidth": row.nbytes / limits.bandwidth,
        "lines": row.lines / limits.lines if limits.lines else 0.0,
    }
    return max(seconds, key=lambda kind: seconds[kind])
