"""What the demos' reports are made of: one HTML file with its plots as inline SVG; no network, no plotting library."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from anabranch.cli.output import write_files

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 320, 66, 40, 34
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;color:#1d2126;max-width:960px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin:2rem 0 .4rem}.wide{overflow-x:auto}table{border-collapse:collapse}
td,th{padding:.3rem 1rem .3rem 0;border-bottom:1px solid #d8dce1;text-align:left}
svg{max-width:100%;min-width:520px;height:auto}
svg text{font:12px system-ui,sans-serif;fill:#444;paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}
svg text.on{stroke:none}
@media(max-width:600px){table{font-size:12px}td,th{padding:.25rem .4rem .25rem 0}}
pre{font:13px/1.45 ui-monospace,monospace;white-space:pre-wrap;border:1px solid #d8dce1;padding:.8rem}
.note{color:#555;margin:.2rem 0 .6rem}.key span{padding:.1rem .5rem;margin-right:.3rem}"""

Curve = tuple[str, str, Sequence[float], Sequence[float]]
"""A name, its colour, the seconds of each step and the bits per byte."""


def write_page(path: Path, title: str, heading: str, parts: Sequence[str]) -> None:
    """Writes the file whole or not at all."""
    write_files({path: page_text(title, heading, parts)})


def page_text(title: str, heading: str, parts: Sequence[str], style: str = "") -> str:
    """The page; `style` comes after that of all pages."""
    head = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width,initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style><h1>{html.escape(heading)}</h1>",
    ]
    return "\n".join([*head, *parts]) + "</html>\n"


def html_table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = []
    for position, row in enumerate(rows):
        tag = "td" if position else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


def svg_text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def svg(height: float, body: Sequence[str]) -> str:
    """A drawing of `WIDTH`; narrow windows scroll it, so that its letters stay readable."""
    open_tag = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img">'
    return "".join(["<div class=wide>", open_tag, *body, "</svg></div>"])


def frame(body: list[str], y_top: float, y_label: str, x_label: str) -> str:
    bottom = HEIGHT - BOTTOM
    lines = []
    for step in range(5):
        y = bottom - (bottom - TOP) * step / 4
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e7ea"/>')
        lines.append(svg_text(LEFT - 6, y + 4, f"{y_top * step / 4:.2g}", "end"))
    lines.append(
        f'<text transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">{y_label}</text>'
    )
    lines.append(svg_text((LEFT + WIDTH) / 2, HEIGHT - 4, x_label))
    return svg(HEIGHT, [*lines, *body])


def legend(items: Sequence[tuple[str, str]]) -> list[str]:
    """(name, colour) at the right of the top."""
    body, width = [], max(80, 34 + 6.5 * max((len(name) for name, _ in items), default=0))
    for position, (name, color) in enumerate(items):
        x = WIDTH - width * (len(items) - position)
        body.append(f'<rect x="{x}" y="6" width="12" height="12" fill="{color}"/>')
        body.append(svg_text(x + 17, 17, name, "start"))
    return body


def _smooth(values: Sequence[float]) -> list[float]:
    smoothed, weight = [values[0]], 0.95
    for position, value in enumerate(values[1:], 1):
        keep = min(weight, position / (position + 3))
        smoothed.append(keep * smoothed[-1] + (1 - keep) * value)
    return smoothed


def loss_plot(curves: Sequence[Curve], x_label: str = "seconds of training") -> str:
    """Bits per byte against seconds of training, or what else is given in their place, smoothed."""
    end = max((seconds[-1] for _, _, seconds, _ in curves if seconds), default=1.0)
    top, bottom, body = 6.0, HEIGHT - BOTTOM, legend([(name, color) for name, color, _, _ in curves])
    for _, color, seconds, train_bits in curves:
        if not seconds:
            continue
        step = max(1, len(seconds) // 400)
        points = " ".join(
            f"{LEFT + (WIDTH - LEFT) * t / end:.1f},{bottom - (bottom - TOP) * min(bits, top) / top:.1f}"
            for t, bits in list(zip(seconds, _smooth(train_bits), strict=True))[::step]
        )
        body.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
    for quarter in range(1, 5):
        body.append(svg_text(LEFT + (WIDTH - LEFT) * quarter / 4, bottom + 16, f"{end * quarter / 4:.0f}", "end"))
    return frame(body, top, "bits per byte", x_label)
