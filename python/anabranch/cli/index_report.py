"""The report of the index demo: latencies of each operation, and entries edited over time."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

from anabranch.cli.index_measure import IndexResult
from anabranch.cli.page import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, frame, html_table, legend, svg, svg_text, write_page

_COLORS = ("#2f6db3", "#d9622b", "#7a7f87")
_OPERATIONS = {"prefix": "prefix query", "latest": "latest 10", "edit": "edit of a file"}


def write_report(
    path: Path, results: Sequence[IndexResult], rows: Sequence[tuple[str, ...]], notes: Sequence[str]
) -> None:
    """Writes the report whole or not at all; works from any state of the results."""
    parts = [html_table(rows), *(f"<p>{html.escape(note)}</p>" for note in notes)]
    if any(result.latencies.get(name) for result in results for name in _OPERATIONS):
        parts += [
            "<h2>Latency</h2><p class=note>From the median (bar) to the 99th percentile (line), logarithmic.</p>",
            latency_plot(results),
        ]
    if any(len(result.over_time) > 1 for result in results):
        parts += [
            "<h2>Entries edited</h2><p class=note>Taken out and put in, in millions, while queries ran.</p>",
            progress_plot(results),
        ]
    write_page(path, "anabranch demo: index", "Every word of the standard library in one ordered map", parts)


def latency_plot(results: Sequence[IndexResult]) -> str:
    """A bar from the axis to the median for each operation and map, and a line on to the 99th percentile."""
    found = {
        (name, position): sorted(result.latencies[name])
        for name in _OPERATIONS
        for position, result in enumerate(results)
        if result.latencies.get(name)
    }
    ends = {at: (values[len(values) // 2], values[int(0.99 * (len(values) - 1))]) for at, values in found.items()}
    low = math.floor(math.log10(min(median for median, _ in ends.values())) - 0.3)
    high = math.ceil(math.log10(max(top for _, top in ends.values())))
    bottom, body = HEIGHT - BOTTOM, []

    def y(seconds: float) -> float:
        return bottom - (bottom - TOP) * (math.log10(seconds) - low) / (high - low)

    for power in range(low, high + 1):
        body.append(
            f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y(10.0**power):.1f}" y2="{y(10.0**power):.1f}" stroke="#e4e7ea"/>'
        )
        body.append(svg_text(LEFT - 6, y(10.0**power) + 4, _power_text(power), "end"))
    group = (WIDTH - LEFT) / len(_OPERATIONS)
    bar = group * 0.7 / max(1, len(results))
    for place, (name, label) in enumerate(_OPERATIONS.items()):
        body.append(svg_text(LEFT + group * (place + 0.5), bottom + 18, label))
        for position in range(len(results)):
            if (name, position) not in ends:
                continue
            median, top = ends[name, position]
            x = LEFT + group * (place + 0.15) + bar * position
            color = _COLORS[position % len(_COLORS)]
            height, middle = bottom - y(median), x + bar / 2 - 1.5
            box = f'x="{x:.1f}" y="{y(median):.1f}" width="{bar - 3:.1f}" height="{height:.1f}"'
            tail = f'x1="{middle:.1f}" x2="{middle:.1f}" y1="{y(median):.1f}" y2="{y(top):.1f}"'
            body.append(f'<rect {box} fill="{color}"/><line {tail} stroke="{color}" stroke-width="3"/>')
    return svg(HEIGHT, [*body, *_names(results)])


def progress_plot(results: Sequence[IndexResult]) -> str:
    """Millions of entries against seconds."""
    end = max(at for result in results for at, _ in result.over_time)
    top = max(1, *(edited for result in results for _, edited in result.over_time)) / 1e6
    bottom, body = HEIGHT - BOTTOM, list(_names(results))
    for position, result in enumerate(results):
        points = " ".join(
            f"{LEFT + (WIDTH - LEFT) * at / end:.1f},{bottom - (bottom - TOP) * edited / 1e6 / top:.1f}"
            for at, edited in [(0.0, 0), *result.over_time]
        )
        color = _COLORS[position % len(_COLORS)]
        body.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
    for quarter in range(1, 5):
        body.append(svg_text(LEFT + (WIDTH - LEFT) * quarter / 4, bottom + 16, f"{end * quarter / 4:.2g}", "end"))
    return frame(body, top, "million entries", "seconds of editing")


def _names(results: Sequence[IndexResult]) -> list[str]:
    return legend([(result.name, _COLORS[position % len(_COLORS)]) for position, result in enumerate(results)])


def _power_text(power: int) -> str:
    units = {
        -9: "1 ns",
        -8: "10 ns",
        -7: "100 ns",
        -6: "1 µs",
        -5: "10 µs",
        -4: "100 µs",
        -3: "1 ms",
        -2: "10 ms",
        -1: "100 ms",
    }
    return units.get(power, f"{10.0**power:g} s")
