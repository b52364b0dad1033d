"""The report of the skip demo: speed against quality, and which layers ran."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

from anabranch.cli.page import BOTTOM, LEFT, TOP, WIDTH, html_table, loss_plot, svg, svg_text, write_page
from anabranch.cli.skip_measure import SkipResult

_COLORS = {
    "dense": "#1d2126",
    "contiguous": "#7a7f87",
    "uniform": "#2f6db3",
    "cosine": "#d9622b",
    "router": "#2e8b57",
    "temporal": "#7a4fb5",
}
_HEIGHT, _RIGHT, _CELL = 400, 14, 26


def write_report(
    path: Path,
    train_seconds: Sequence[float],
    train_bits: Sequence[float],
    results: Sequence[SkipResult],
    rows: Sequence[tuple[str, ...]],
    notes: Sequence[str],
) -> None:
    """Writes the report whole or not at all; works from any state of the results."""
    parts = [html_table(rows), *(f"<p>{html.escape(note)}</p>" for note in notes)]
    measured = [result for result in results if result.bits is not None and result.rates]
    if measured:
        parts += [
            "<h2>Speed against quality</h2>",
            "<p class=note>Right is faster, low is better; each point is a policy at one budget, with the share of "
            "FFNs that ran while decoding. Lines join a policy's budgets, dashed ones cross at the dense model.</p>",
            _scatter(measured),
        ]
    layered = [result for result in results if result.layer_shares]
    if layered:
        parts += [
            "<h2>Which FFNs ran</h2>",
            "<p class=note>Share of decoded bytes that ran each layer's FFN; the darker, the more.</p>",
            _layers(layered),
        ]
    parts += [
        "<h2>Training of the model</h2><p class=note>Bits per byte, smoothed, with layers left out by chance.</p>",
        loss_plot([("model", _COLORS["uniform"], train_seconds, train_bits)]),
    ]
    write_page(path, "anabranch demo: skip", "One language model, and what may be skipped in it", parts)


def _scatter(results: Sequence[SkipResult]) -> str:
    x_ticks = _ticks([result.tokens_per_second for result in results], 6)
    y_ticks = _ticks([result.bits or 0.0 for result in results], 5)
    bottom, right = _HEIGHT - BOTTOM, WIDTH - _RIGHT

    def place(speed: float, bits: float) -> tuple[float, float]:
        across = (speed - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (bits - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + (right - LEFT) * across, bottom - (bottom - TOP) * up

    body: list[str] = []
    for tick in y_ticks:
        y = place(x_ticks[0], tick)[1]
        body.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e7ea"/>')
        body.append(svg_text(LEFT - 6, y + 4, f"{tick:.4g}", "end"))
    for tick in x_ticks:
        x = place(tick, y_ticks[0])[0]
        body.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" stroke="#e4e7ea"/>')
        body.append(svg_text(x, bottom + 16, f"{tick:.4g}"))
    middle = (TOP + bottom) / 2
    body.append(f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">bits per byte</text>')
    body.append(svg_text((LEFT + right) / 2, _HEIGHT - 4, "bytes per second, one sequence"))
    families = list(dict.fromkeys(result.family for result in results))
    x_legend = float(LEFT)
    for family in families:
        x, x_legend = x_legend, x_legend + 34 + 6.6 * len(family)
        body.append(f'<circle cx="{x + 6:.1f}" cy="12" r="5" fill="{_COLORS[family]}"/>')
        body.append(svg_text(x + 16, 16, family, "start"))
        points = [place(r.tokens_per_second, r.bits or 0.0) for r in results if r.family == family]
        if family == "dense":
            x, y = points[0]
            dashed = 'stroke="#1d2126" stroke-dasharray="4 4" opacity=".45"'
            body.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" {dashed}/>')
            body.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" {dashed}/>')
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        body.append(f'<polyline points="{line}" fill="none" stroke="{_COLORS[family]}" stroke-width="1.5"/>')
    body += _points(results, [place(result.tokens_per_second, result.bits or 0.0) for result in results])
    return svg(_HEIGHT, body)


def _points(results: Sequence[SkipResult], places: Sequence[tuple[float, float]]) -> list[str]:
    """Points, and labels where they hide neither a point nor another label."""
    body, taken = [], [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for result, (x, y) in zip(results, places, strict=True):
        name = html.escape(f"{result.name}: {result.bits:.3f} bits/byte, {result.tokens_per_second:.0f} bytes/s")
        circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{_COLORS[result.family]}" stroke="white">'
        body.append(f"{circle}<title>{name}</title></circle>")
        if result.family == "dense":
            continue
        label = f"{result.ffn_share:.0%}"
        for dx, dy, anchor in ((9, 4, "start"), (-9, 4, "end"), (0, -9, "middle"), (0, 18, "middle")):
            width = 7.0 * len(label)
            left = x + dx - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
            box = (left, y + dy - 10, left + width, y + dy + 2)
            if box[2] <= WIDTH and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                body.append(svg_text(x + dx, y + dy, label, anchor))
                break
    return body


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ticks(values: Sequence[float], number: int) -> list[float]:
    """Round numbers at even distances around all values, two at least."""
    low, high = min(values), max(values)
    span = max(high - low, 1e-3 * max(abs(high), 1.0))
    raw = span / number
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw)
    first, last = math.floor((low - 0.02 * span) / step), math.ceil((high + 0.02 * span) / step)
    return [step * index for index in range(first, last + 1)]


def _layers(results: Sequence[SkipResult]) -> str:
    left, columns = 210, len(results[0].layer_shares)
    width, height = (WIDTH - left - _RIGHT) / columns, _CELL * len(results) + 24
    body = [svg_text(left + width * (layer + 0.5), 14, f"layer {layer}") for layer in range(columns)]
    for row, result in enumerate(results):
        y = 22 + row * _CELL
        body.append(svg_text(left - 8, y + 16, result.name, "end"))
        for layer, share in enumerate(result.layer_shares):
            x, fill = left + layer * width, _COLORS[result.family]
            size = f'width="{width - 2:.1f}" height="{_CELL - 3}"'
            body.append(f'<rect x="{x:.1f}" y="{y}" {size} fill="#eef0f2"/>')
            body.append(f'<rect x="{x:.1f}" y="{y}" {size} fill="{fill}" opacity="{0.75 * share:.2f}"/>')
            if 0.005 < share < 0.995:
                body.append(svg_text(x + width / 2 - 1, y + 16, f"{share:.0%}").replace("<text", "<text class=on"))
    return svg(height, body)
