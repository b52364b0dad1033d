"""The report of the experts' demo."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path

from anabranch.cli.page import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    frame,
    html_table,
    legend,
    loss_plot,
    svg_text,
    write_page,
)

_COLORS = {"dense": "#7a7f87", "top-2": "#2f6db3", "top-p": "#d9622b"}


@dataclasses.dataclass
class Result:
    """What one variant has shown so far; a report can be written from it at any time."""

    name: str
    seconds: list[float] = dataclasses.field(default_factory=list)
    train_bits: list[float] = dataclasses.field(default_factory=list)
    tokens_per_second: float = 0.0
    validation_bits: float | None = None
    experts_mean: float = 1.0
    experts_std: float = 0.0
    executed_flops: int = 0
    dense_flops: int = 0
    per_class: dict[str, float] = dataclasses.field(default_factory=dict)
    load: list[list[float]] = dataclasses.field(default_factory=list)
    sample: list[tuple[int, float]] = dataclasses.field(default_factory=list)


def write_report(path: Path, results: Sequence[Result], rows: Sequence[tuple[str, ...]]) -> None:
    """Writes the report whole or not at all; works from any state of the results."""
    parts = [
        html_table(rows),
        "<h2>Loss against time</h2><p class=note>Training bits per byte, smoothed; lower is better.</p>",
        loss_plot([(r.name, _COLORS[r.name], r.seconds, r.train_bits) for r in results]),
    ]
    routed = [result for result in results if result.load]
    if routed:
        parts += [
            "<h2>Experts per byte, by class of byte</h2>",
            "<p class=note>Mean over held-out text and layers: what the model spends more on.</p>",
            _class_plot(routed),
            "<h2>Load per expert</h2><p class=note>Share of a layer's routed pairs; the line is perfect balance.</p>",
            *(_load_plot(result) for result in routed),
        ]
    for result in routed[-1:]:
        parts += [
            f"<h2>Held-out text, coloured by experts per byte ({html.escape(result.name)})</h2>",
            _colored_text(result.sample),
        ]
    write_page(path, "anabranch demo", "Three language models, equal active compute", parts)


def _bars(groups: Sequence[tuple[str, Sequence[tuple[str, float]]]], top: float) -> list[str]:
    """Groups of (colour, value) bars with a label under each group."""
    bottom, body, slot = HEIGHT - BOTTOM, [], (WIDTH - LEFT) / max(1, len(groups))
    for position, (label, bars) in enumerate(groups):
        width = slot * 0.72 / len(bars)
        for index, (color, value) in enumerate(bars):
            x = LEFT + slot * (position + 0.14) + width * index
            height = (bottom - TOP) * min(value, top) / top
            size = f'width="{width:.1f}" height="{height:.1f}"'
            body.append(f'<rect x="{x:.1f}" y="{bottom - height:.1f}" {size} fill="{color}"/>')
        body.append(svg_text(LEFT + slot * (position + 0.5), bottom + 16, label))
    return body


def _class_plot(results: Sequence[Result]) -> str:
    names = list(results[0].per_class)
    groups = [(name, [(_COLORS[r.name], r.per_class.get(name, 0.0)) for r in results]) for name in names]
    return frame(
        _bars(groups, 4.0) + legend([(r.name, _COLORS[r.name]) for r in results]),
        4.0,
        "experts per byte",
        "class of byte",
    )


def _load_plot(result: Result) -> str:
    num_experts = len(result.load[0])
    shades = ("#9ec3e6", "#4f8fce", "#1f5fa0", "#123c68")
    groups = [
        (str(expert), [(shades[layer % 4], layer_load[expert]) for layer, layer_load in enumerate(result.load)])
        for expert in range(num_experts)
    ]
    top = max(0.3, max(max(layer) for layer in result.load))
    body = _bars(groups, top)
    y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) / num_experts / top
    body.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#c33" stroke-dasharray="5 4"/>')
    caption = f"<p class=note>{html.escape(result.name)}: one bar per layer, first layer lightest</p>"
    return caption + frame(body, top, "share of pairs", "expert")


def _shade(experts: float) -> str:
    strength = min(1.0, max(0.0, (experts - 1) / 3))
    red, green, blue = (round(255 + (end - 255) * strength) for end in (226, 96, 40))
    return f"rgb({red},{green},{blue})"


def _colored_text(sample: Sequence[tuple[int, float]]) -> str:
    spans = []
    for byte, experts in sample:
        character = chr(byte) if 32 <= byte < 127 or byte in (9, 10) else "·"
        spans.append(f'<span style="background:{_shade(experts)}">{html.escape(character)}</span>')
    key = "".join(f'<span style="background:{_shade(n)}">{n}</span>' for n in (1, 1.5, 2, 2.5, 3, 4))
    return f'<p class="note key">experts, mean of the layers: {key}</p><pre>{"".join(spans)}</pre>'
