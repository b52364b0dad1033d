"""Curves over depth on a logarithmic scale, as SVG by hand: two panels beside each other."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 760, 352
_PANEL, _LEFT, _TOP, _BOTTOM = 290, 56, 78, 46
_INK, _FAINT = "#22282e", "#e1e5e9"
_COLORS = ("#2f6db3", "#d9822b", "#2e8b57", "#b5403a", "#7a4fb5", "#1b3f66", "#8a6d3b", "#5b6770")
_FLOOR = 1e-17  # below float64's rounding of numbers near 1


def chart(title: str, left: Mapping[str, Sequence[float]], right: Mapping[str, Sequence[float]]) -> str:
    """An SVG of two panels, singular values and gains; each curve has a value for depth 1, 2, ..."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'fill="{_INK}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(16, 24, title, "start", size=15),
        *_panel(_LEFT, "singular values", left),
        *_panel(_LEFT + _PANEL + 90, "gains", right),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _panel(x: float, name: str, curves: Mapping[str, Sequence[float]]) -> list[str]:
    logs = {
        label: [math.log10(max(value, _FLOOR)) if math.isfinite(value) else math.nan for value in values]
        for label, values in curves.items()
    }
    finite = [value for values in logs.values() for value in values if math.isfinite(value)] or [0.0]
    low, high = min(math.floor(min(finite)), -1), max(math.ceil(max(finite)), 1)
    depth = max(len(values) for values in logs.values())
    bottom = _HEIGHT - _BOTTOM

    def place(step: int, value: float) -> tuple[float, float]:
        along = step / (depth - 1) if depth > 1 else 0.5
        return x + along * _PANEL, bottom - (value - low) / (high - low) * (bottom - _TOP)

    parts = []
    for exponent in range(low, high + 1, max(1, (high - low) // 6)):
        y = place(0, exponent)[1]
        parts += [
            f'<line x1="{x}" x2="{x + _PANEL}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_FAINT}"/>',
            _text(x - 6, y + 4, f"1e{exponent}", "end", size=11),
        ]
    parts += [_text(x, bottom + 18, "depth 1", "start", size=11), _text(x + _PANEL, bottom + 18, str(depth), "end", 11)]
    parts.append(_text(x + _PANEL / 2, bottom + 34, f"{name} of the product", size=12))
    for index, (label, values) in enumerate(logs.items()):
        color = _COLORS[index % len(_COLORS)]
        points = [place(step, value) for step, value in enumerate(values) if math.isfinite(value)]
        drawn = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2" fill="{color}"/>' for across, down in points]
        at, row = x + index % 3 * _PANEL / 3, _TOP - 44 + index // 3 * 13
        parts += [
            f'<rect x="{at:.1f}" y="{row}" width="10" height="10" fill="{color}"/>',
            _text(at + 14, row + 9, label, "start", size=11),
        ]
    return parts


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{html.escape(text)}</text>'
