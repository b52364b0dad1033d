"""The report of the temporal demo: loss, quality of each part, and how the cache fills."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anabranch.cli.page import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, frame, html_table, legend, svg_text, write_page

if TYPE_CHECKING:
    from anabranch.cli.demo_temporal import TemporalResult

_COLORS = ("#2f6db3", "#d9622b", "#2e8b57")
HOPS = ("node itself", "hop 1", "hop 2")


def write_report(
    path: Path,
    result: TemporalResult,
    name: str,
    tables: Sequence[Sequence[tuple[str, ...]]],
    notes: Sequence[str],
) -> None:
    """Writes the report whole or not at all; works from any state of the result."""
    parts = [*(f"{html_table(rows)}<br>" for rows in tables), *(f"<p>{html.escape(note)}</p>" for note in notes)]
    if result.events:
        losses = _running_mean(result.losses, 20)
        parts += [
            "<h2>Loss</h2>",
            "<p class=note>Of events and negatives together, mean of the last 20 batches; guessing has 1.39.</p>",
            _plot([("", _COLORS[0], result.events, losses)], math.ceil(2.1 * max(losses)) / 2, "loss"),
        ]
    if result.parts:
        parts += [
            "<h2>Average precision</h2>",
            "<p class=note>Of all events, of those between nodes that training saw, and of the others.</p>",
            _bars(result),
        ]
    if result.points:
        for title, note, values in (
            ("Occupied slots", "Share of all nodes' slots that hold a neighbour.", result.occupancy),
            ("Collisions", "Share of the writes whose slot held another neighbour.", result.collisions),
        ):
            curves = [
                (hop, color, result.points, [point[place] for point in values])
                for place, (hop, color) in enumerate(zip(HOPS, _COLORS, strict=True))
            ]
            parts += [f"<h2>{title}</h2><p class=note>{note}</p>", _plot(curves, 1.0, "share")]
    write_page(path, "anabranch demo: temporal", f"The next links of {name}, predicted by NAT", parts)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def _plot(curves: Sequence[tuple[str, str, Sequence[float], Sequence[float]]], top: float, label: str) -> str:
    """Values against events of training."""
    end, bottom = max(max(xs) for _, _, xs, _ in curves), HEIGHT - BOTTOM
    body = legend([(name, color) for name, color, _, _ in curves if name])
    for _, color, xs, ys in curves:
        step = max(1, len(xs) // 400)
        points = " ".join(
            f"{LEFT + (WIDTH - LEFT) * x / end:.1f},{bottom - (bottom - TOP) * min(y, top) / top:.1f}"
            for x, y in list(zip(xs, ys, strict=True))[::step]
        )
        body.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
    for quarter in range(1, 5):
        body.append(svg_text(LEFT + (WIDTH - LEFT) * quarter / 4, bottom + 16, f"{end * quarter / 4:,.0f}", "end"))
    return frame(body, top, label, "events of training")


def _bars(result: TemporalResult) -> str:
    """Three bars a part, from 0 to 1, with their numbers."""
    bottom = HEIGHT - BOTTOM
    body = legend(list(zip(("all events", "transductive", "inductive"), _COLORS, strict=True)))
    width = (WIDTH - LEFT) / max(len(result.parts), 1)
    for place, (name, metrics) in enumerate(result.parts.items()):
        for side, scores in enumerate((metrics.all, metrics.transductive, metrics.inductive)):
            if scores.ap != scores.ap:
                continue
            x, y = LEFT + width * (place + 0.11 + 0.27 * side), bottom - (bottom - TOP) * scores.ap
            size = f'width="{0.24 * width:.1f}" height="{bottom - y:.1f}"'
            body.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{_COLORS[side]}"/>')
            body.append(svg_text(x + 0.12 * width, y - 4, f"{scores.ap:.3f}"))
        body.append(svg_text(LEFT + width * (place + 0.5), bottom + 16, name))
    return frame(body, 1.0, "average precision", "")
