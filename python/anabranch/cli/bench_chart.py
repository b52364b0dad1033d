"""The benchmark as a picture: how much of the machine's limit each contender reaches, row by row."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby

from anabranch.cli.bench_marks import MARKS, NAMES, OURS_COLOR, mark
from anabranch.cli.bench_rows import Row

_WIDTH, _LEFT, _RIGHT, _TOP = 760, 90, 78, 74
_ROW, _GROUP = 20, 34
_INK, _FAINT = "#22282e", "#e1e5e9"


def chart(title: str, rows: Sequence[Row], peers: Sequence[str] = tuple(MARKS), unit: str = "tokens") -> str:
    """An SVG: a bar per row for our preferred variant and a mark per other one, at limit / time in percent.

    Rows are grouped by workload, dtype and threads; those without a limit, where nothing runs, are left out. The axis
    ends at 100 %; a contender beyond it, which means that the limit was measured in a worse moment than the contender,
    is drawn at the end and its number says so. `peers` are the contenders that get marks.
    """
    order: dict[tuple[str, str, int], int] = {}
    for row in rows:
        order.setdefault((row.workload, row.dtype, row.threads), len(order))
    rows = [row for row in rows if row.kept != 0.0 and row.limit_ms > 0]
    rows = sorted(rows, key=lambda row: order[row.workload, row.dtype, row.threads])
    body, y = [], float(_TOP)
    for (workload, dtype, threads), group in groupby(rows, key=lambda row: (row.workload, row.dtype, row.threads)):
        of_group = list(group)
        on = (
            f", {threads} thread{'s' if threads > 1 else ''}"
            if row_names(rows) & {"packed", "index", "temporal"}
            else ""
        )
        body.append(_text(_LEFT, y + 20, f"{workload}, {dtype}{on}", "start", "bold"))
        y += _GROUP - 6
        for row in of_group:
            body += _row(row, y, peers)
            y += _ROW
        y += 6
    bottom = y + 2
    grid = []
    for percent in range(0, 101, 20):
        x = _x(percent / 100)
        grid.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom:.1f}" stroke="{_FAINT}"/>')
        grid.append(_text(x, bottom + 16, f"{percent} %"))
    height = bottom + 28
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
            f'height="{height:.0f}" font-family="system-ui, sans-serif" font-size="12" fill="{_INK}">',
            f'<rect width="{_WIDTH}" height="{height:.0f}" fill="white"/>',
            _text(16, 22, f"Percent of the machine's limit, by number of {unit}", "start", "bold", 15),
            _text(16, 40, title, "start"),
            *_legend(row_names(rows), peers),
            *grid,
            *body,
            "</svg>\n",
        ]
    )


def row_names(rows: Sequence[Row]) -> set[str]:
    """Every contender that any row has."""
    return {name for row in rows for name in row.medians_ms}


def _x(share: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(share, 0.0), 1.0)


def _row(row: Row, y: float, peers: Sequence[str]) -> list[str]:
    middle, share = y + _ROW / 2, row.of_limit(row.ours) or 0.0
    lines = [
        _text(_LEFT - 8, middle + 4, f"{row.tokens}", "end"),
        f'<rect x="{_LEFT}" y="{y + 4:.1f}" width="{_x(share) - _LEFT:.1f}" height="{_ROW - 8}" fill="{OURS_COLOR}"/>',
        _text(_WIDTH - 16, middle + 4, f"{share:.0%}", "end", "bold"),
    ]
    for name, (shape, color) in MARKS.items():
        reached = row.of_limit(name) if name in peers else None
        if reached is not None and name != row.ours:
            lines.append(mark(shape, color, _x(reached), middle))
    return lines


def _legend(names: set[str], peers: Sequence[str]) -> list[str]:
    ours = "ours: packed, or as they are in training" if "packed" in names else "ours"
    items = [f'<rect x="16" y="52" width="14" height="12" fill="{OURS_COLOR}"/>', _text(36, 62, ours, "start")]
    x = 56 + 6.4 * len(ours)
    for name, (shape, color) in MARKS.items():
        if name in names and name in peers and not (name == "unpacked" and "packed" not in names):
            label = NAMES.get(name, name)
            items += [mark(shape, color, x, 58), _text(x + 11, 62, label, "start")]
            x += 34 + 6.4 * len(label)
    return items


def _text(x: float, y: float, text: str, anchor: str = "middle", weight: str = "normal", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}">'
        f"{html.escape(text)}</text>"
    )
