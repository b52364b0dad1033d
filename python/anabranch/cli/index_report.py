"""The report of the index demo: latencies of each operation, and entries edited a second over time."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

from anabranch.cli.index_measure import IndexResult
from anabranch.cli.page import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, frame, html_table, legend, svg_text, write_page

_COLORS = ("#2f6db3", "#7a7f87", "#d9622b")
_NARROW, _NAMES, _NUMBERS, _ROW, _HEAD = 400, 130, 118, 20, 26  # of the plot of latencies, which fits a phone
_WINDOWS = 40
_OPERATIONS = {"prefix": "prefix query", "latest": "latest 10"}


def write_report(
    path: Path, results: Sequence[IndexResult], tables: Sequence[Sequence[tuple[str, ...]]], notes: Sequence[str]
) -> None:
    """Writes the report whole or not at all; works from any state of the results."""
    parts = [*(f"{html_table(rows)}<br>" for rows in tables), *(f"<p>{html.escape(note)}</p>" for note in notes)]
    if groups := latency_groups(results):
        parts += [
            "<h2>Latency</h2><p class=note>The median (bar) and the 99th percentile (line), logarithmic.</p>",
            latency_plot(groups),
        ]
    if any(throughput(run.over_time) for result in results for run in result.runs):
        parts += [
            "<h2>Entries edited a second</h2><p class=note>Taken out and put in, in millions. Dashed: while another "
            "thread always asks.</p>",
            throughput_plot(results),
        ]
    write_page(path, "anabranch demo: index", "Every word of the standard library in one ordered map", parts)


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[int(q * (len(values) - 1))]


def time_text(seconds: float) -> str:
    """With a unit that leaves up to three digits before the point."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


Bars = list[tuple[str, str, float, float]]
"""Of each map its name, colour, median and 99th percentile."""


def latency_groups(results: Sequence[IndexResult]) -> list[tuple[str, Bars]]:
    """Of each operation that was measured its name and its bars."""
    found: dict[str, Bars] = {}

    def add(label: str, number: int, name: str, seconds: Sequence[float]) -> None:
        if seconds:
            bar = (name, _COLORS[number % len(_COLORS)], quantile(seconds, 0.5), quantile(seconds, 0.99))
            found.setdefault(label, []).append(bar)

    for number, result in enumerate(results):
        for operation, label in _OPERATIONS.items():
            add(label, number, result.name, result.latencies.get(operation, []))
    for number, result in enumerate(results):
        for run in result.runs:
            name = f"{result.name} ({run.reader})" if run.queries else result.name
            add("edit of a file (while so asked)", number, name, run.edits)
            add("latest 10 during edits", number, name, run.queries)
    return list(found.items())


def latency_plot(groups: Sequence[tuple[str, Bars]]) -> str:
    """A bar to the median, a line on to the 99th percentile, and both as numbers, one map under the other."""
    low = math.floor(math.log10(min(median for _, bars in groups for _, _, median, _ in bars)) - 0.3)
    high = math.ceil(math.log10(max(top for _, bars in groups for *_, top in bars)))
    left, right = _NAMES, _NARROW - _NUMBERS

    def x(seconds: float) -> float:
        return left + (right - left) * (math.log10(seconds) - low) / (high - low)

    body, y = [], 4.0
    for label, bars in groups:
        body.append(f'<text x="0" y="{y + 16:.1f}" style="font-weight:600">{html.escape(label)}</text>')
        y += _HEAD
        for name, color, median, top in bars:
            middle = y + _ROW / 2
            body.append(svg_text(left - 6, middle + 4, name, "end"))
            body.append(
                f'<rect x="{left}" y="{y + 3:.1f}" width="{x(median) - left:.1f}" height="{_ROW - 6}" fill="{color}"/>'
                f'<line x1="{x(median):.1f}" x2="{x(top):.1f}" y1="{middle:.1f}" y2="{middle:.1f}" stroke="{color}" '
                'stroke-width="3"/>'
            )
            body.append(svg_text(_NARROW, middle + 4, f"{time_text(median)}, {time_text(top)}", "end"))
            y += _ROW
        y += 6
    for power in range(low, high + 1):
        body.insert(0, f'<line x1="{x(10.0**power):.1f}" x2="{x(10.0**power):.1f}" y1="0" y2="{y}" stroke="#e4e7ea"/>')
    style = f'style="min-width:0;width:100%;max-width:{1.3 * _NARROW:.0f}px"'
    return f'<svg viewBox="0 0 {_NARROW} {y:.0f}" {style} role="img">{"".join(body)}</svg>'


def throughput(over_time: Sequence[tuple[float, int]]) -> list[tuple[float, float]]:
    """The ends of up to `_WINDOWS` stretches of time, in seconds, and the millions a second in each."""
    if not over_time:
        return []
    step, rates, last = over_time[-1][0] / _WINDOWS, [], (0.0, 0)
    for at, edited in over_time:
        if at - last[0] >= step:
            rates.append((at, (edited - last[1]) / (at - last[0]) / 1e6))
            last = at, edited
    return rates


def throughput_plot(results: Sequence[IndexResult]) -> str:
    """Millions of entries a second against seconds."""
    curves = [
        (number, dashed, rates)
        for number, result in enumerate(results)
        for dashed, run in enumerate(result.runs)
        if (rates := throughput(run.over_time))
    ]
    end = max(rates[-1][0] for _, _, rates in curves)
    top = max(0.1, *(rate for _, _, rates in curves for _, rate in rates))
    bottom, body = HEIGHT - BOTTOM, legend([(r.name, _COLORS[n % len(_COLORS)]) for n, r in enumerate(results)])
    for number, dashed, rates in curves:
        points = " ".join(
            f"{LEFT + (WIDTH - LEFT) * at / end:.1f},{bottom - (bottom - TOP) * rate / top:.1f}" for at, rate in rates
        )
        style = f'stroke="{_COLORS[number % len(_COLORS)]}" stroke-width="2"' + ' stroke-dasharray="5 3"' * dashed
        body.append(f'<polyline points="{points}" fill="none" {style}/>')
    for quarter in range(1, 5):
        body.append(svg_text(LEFT + (WIDTH - LEFT) * quarter / 4, bottom + 16, f"{end * quarter / 4:.2g}", "end"))
    return frame(body, top, "million entries a second", "seconds of editing")
