"""The demo's report: one HTML file with its plots as inline SVG; no network, no plotting library."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Sequence
from pathlib import Path

_COLORS = {"dense": "#7a7f87", "top-2": "#2f6db3", "top-p": "#d9622b"}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 320, 66, 40, 34
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;color:#1d2126;max-width:960px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin:2rem 0 .4rem}table{border-collapse:collapse}
td,th{padding:.3rem 1rem .3rem 0;border-bottom:1px solid #d8dce1;text-align:left}
svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#444}
pre{font:13px/1.45 ui-monospace,monospace;white-space:pre-wrap;border:1px solid #d8dce1;padding:.8rem}
.note{color:#555;margin:.2rem 0 .6rem}.key span{padding:.1rem .5rem;margin-right:.3rem}"""


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
        "<!doctype html><html lang=en><meta charset=utf-8><title>anabranch demo</title>",
        f"<style>{_STYLE}</style><h1>Three language models, equal active compute</h1>",
        _table(rows),
        "<h2>Loss against time</h2><p class=note>Training bits per byte, smoothed; lower is better.</p>",
        _loss_plot(results),
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
    temporary = path.with_name(path.name + ".part")
    temporary.write_text("\n".join(parts) + "</html>\n", encoding="utf-8")
    os.replace(temporary, path)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = []
    for position, row in enumerate(rows):
        tag = "td" if position else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _frame(body: list[str], y_top: float, y_label: str, x_label: str) -> str:
    bottom = _HEIGHT - _BOTTOM
    lines = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img">']
    for step in range(5):
        y = bottom - (bottom - _TOP) * step / 4
        lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e7ea"/>')
        lines.append(_text(_LEFT - 6, y + 4, f"{y_top * step / 4:.2g}", "end"))
    lines.append(
        f'<text transform="translate(12 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">{y_label}</text>'
    )
    lines.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 4, x_label))
    return "".join([*lines, *body, "</svg>"])


def _legend(names: Sequence[str]) -> list[str]:
    items = []
    for position, name in enumerate(names):
        x = _WIDTH - 80 * (len(names) - position)
        items.append(f'<rect x="{x}" y="6" width="12" height="12" fill="{_COLORS[name]}"/>')
        items.append(_text(x + 17, 17, name, "start"))
    return items


def _smooth(values: Sequence[float]) -> list[float]:
    smoothed, weight = [values[0]], 0.95
    for position, value in enumerate(values[1:], 1):
        keep = min(weight, position / (position + 3))
        smoothed.append(keep * smoothed[-1] + (1 - keep) * value)
    return smoothed


def _loss_plot(results: Sequence[Result]) -> str:
    end = max((result.seconds[-1] for result in results if result.seconds), default=1.0)
    top, bottom, body = 6.0, _HEIGHT - _BOTTOM, _legend([result.name for result in results])
    for result in results:
        if not result.seconds:
            continue
        step = max(1, len(result.seconds) // 400)
        points = " ".join(
            f"{_LEFT + (_WIDTH - _LEFT) * t / end:.1f},{bottom - (bottom - _TOP) * min(bits, top) / top:.1f}"
            for t, bits in list(zip(result.seconds, _smooth(result.train_bits), strict=True))[::step]
        )
        body.append(f'<polyline points="{points}" fill="none" stroke="{_COLORS[result.name]}" stroke-width="2"/>')
    for quarter in range(1, 5):
        body.append(_text(_LEFT + (_WIDTH - _LEFT) * quarter / 4, bottom + 16, f"{end * quarter / 4:.0f}", "end"))
    return _frame(body, top, "bits per byte", "seconds of training")


def _bars(groups: Sequence[tuple[str, Sequence[tuple[str, float]]]], top: float) -> list[str]:
    """Groups of (colour, value) bars with a label under each group."""
    bottom, body, slot = _HEIGHT - _BOTTOM, [], (_WIDTH - _LEFT) / max(1, len(groups))
    for position, (label, bars) in enumerate(groups):
        width = slot * 0.72 / len(bars)
        for index, (color, value) in enumerate(bars):
            x = _LEFT + slot * (position + 0.14) + width * index
            height = (bottom - _TOP) * min(value, top) / top
            size = f'width="{width:.1f}" height="{height:.1f}"'
            body.append(f'<rect x="{x:.1f}" y="{bottom - height:.1f}" {size} fill="{color}"/>')
        body.append(_text(_LEFT + slot * (position + 0.5), bottom + 16, label))
    return body


def _class_plot(results: Sequence[Result]) -> str:
    names = list(results[0].per_class)
    groups = [(name, [(_COLORS[r.name], r.per_class.get(name, 0.0)) for r in results]) for name in names]
    return _frame(_bars(groups, 4.0) + _legend([r.name for r in results]), 4.0, "experts per byte", "class of byte")


def _load_plot(result: Result) -> str:
    num_experts = len(result.load[0])
    shades = ("#9ec3e6", "#4f8fce", "#1f5fa0", "#123c68")
    groups = [
        (str(expert), [(shades[layer % 4], layer_load[expert]) for layer, layer_load in enumerate(result.load)])
        for expert in range(num_experts)
    ]
    top = max(0.3, max(max(layer) for layer in result.load))
    body = _bars(groups, top)
    y = _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) / num_experts / top
    body.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#c33" stroke-dasharray="5 4"/>')
    caption = f"<p class=note>{html.escape(result.name)}: one bar per layer, first layer lightest</p>"
    return caption + _frame(body, top, "share of pairs", "expert")


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
