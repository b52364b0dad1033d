"""Rooflines: what each row reaches, by its FLOPs per byte, under what the machine's memory and arithmetic allow.

One panel for each dtype and number of threads, since each has limits of its own. A row's point is at its least FLOPs
over its least bytes, so that its height under the roof is its share of the limit in the table. Arithmetic in float32
beside that of the dtype counts as `bench_rows.Row.flops` says.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence

from anabranch.cli.bench_marks import MARKS, OURS_MARK, mark
from anabranch.cli.bench_rows import Row
from anabranch.cli.machine import Limits

WIDTH, HEIGHT = 400, 320  # a phone's width: letters of 12 stay readable
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 18, 40
_LABEL = (12.0, 12.0)  # room for a row's number

Numbered = Sequence[tuple[int, Row]]
"""Rows with their numbers in the room's table."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def has_roofline(row: Row) -> bool:
    """Whether both its FLOPs and its bytes are counted, and something runs."""
    return row.flops > 0 and row.nbytes > 0 and row.limit_ms > 0


class _Axes:
    """Logarithmic axes in whole decades around some points (FLOPs per byte, FLOPs a second) and the roof."""

    def __init__(self, points: Sequence[tuple[float, float]], limits: Limits) -> None:
        ridge = limits.peak / limits.bandwidth
        xs, ys = [x for x, _ in points] + [ridge], [y for _, y in points] + [limits.peak]
        self.x_low, self.x_high = math.floor(math.log10(min(xs)) - 0.1), math.ceil(math.log10(max(xs)) + 0.2)
        self.y_low, self.y_high = math.floor(math.log10(min(ys)) - 0.1), math.ceil(math.log10(max(ys)) + 0.1)

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (math.log10(value) - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        bottom = HEIGHT - _BOTTOM
        return bottom - (bottom - _TOP) * (math.log10(value) - self.y_low) / (self.y_high - self.y_low)


def roofline(rows: Numbered, limits: Limits, peers: Sequence[str]) -> str:
    """An SVG of rows that have one dtype and number of threads; `peers` are the contenders that get marks."""
    points = [(*point, number, row, name) for number, row in rows for name, point in _points(row, peers)]
    axes = _Axes([(x, y) for x, y, *_ in points], limits)
    body = [*_grid(axes), *_roof(axes, limits)]
    ours: list[tuple[float, float, int]] = []
    for flops_per_byte, flops, number, row, name in sorted(points, key=lambda point: point[4] == point[3].ours):
        x, y = axes.x(flops_per_byte), axes.y(flops)
        is_ours = name == row.ours
        if is_ours:
            ours.append((x, y, number))
        drawn = mark(*(OURS_MARK if is_ours else MARKS[name]), x, y)
        about = (
            f"{number}: {row.workload}, {row.tokens}: {name} {flops / 1e9:.3g} GFLOP/s at {flops_per_byte:.3g} FLOP/B, "
            f"{row.of_limit(name):.0%} of the limit"
        )
        body.append(f'<g class="{"ours" if is_ours else "peer"}"><title>{html.escape(about)}</title>{drawn}</g>')
    body += _labels(ours, _roof_texts(axes, limits))
    title = f"Roofline: {len(rows)} rows under {limits.peak / 1e9:.0f} GFLOP/s and {limits.bandwidth / 1e9:.1f} GB/s"
    return (
        f'<svg class="roofline" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(body)}</svg>"
    )


def _points(row: Row, peers: Sequence[str]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Of each contender that is drawn its FLOPs per byte and FLOPs a second."""
    for name, milliseconds in row.medians_ms.items():
        if name == row.ours or (name in peers and name in MARKS):
            nbytes = row.int8_nbytes if name == "int8" and row.int8_nbytes else row.nbytes
            yield name, (row.flops / nbytes, 1e3 * row.flops / milliseconds)


def _grid(axes: _Axes) -> Iterator[str]:
    bottom = HEIGHT - _BOTTOM
    for power in range(axes.x_low, axes.x_high + 1):
        x = axes.x(10.0**power)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
        anchor = "start" if power == axes.x_low else "end" if power == axes.x_high else "middle"
        yield text(x, bottom + 14, power_text(power), anchor)
    for power in range(axes.y_low, axes.y_high + 1):
        y = axes.y(10.0**power)
        yield f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield text(_LEFT - 5, y + 4, power_text(power - 9), "end")
    yield text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8, "FLOP per byte")
    middle = (_TOP + bottom) / 2
    yield f'<text transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle">GFLOP/s</text>'


def _slope(axes: _Axes, limits: Limits) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both ends of the roof's slope."""
    ridge, left = limits.peak / limits.bandwidth, max(10.0**axes.x_low, 10.0**axes.y_low / limits.bandwidth)
    return (axes.x(left), axes.y(left * limits.bandwidth)), (axes.x(ridge), axes.y(limits.peak))


def _roof(axes: _Axes, limits: Limits) -> Iterator[str]:
    """The slope of the bandwidth, the peak from the ridge on, and what they are."""
    start, top = _slope(axes, limits)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (start, top, (WIDTH - _RIGHT, top[1])))
    yield f'<polyline class="roof" points="{points}"/>'
    yield text(WIDTH - _RIGHT - 2, top[1] - 5, f"{limits.peak / 1e9:.0f} GFLOP/s", "end", "bound")
    angle = math.degrees(math.atan2(top[1] - start[1], top[0] - start[0]))
    x, y = (start[0] + top[0]) / 2, (start[1] + top[1]) / 2
    yield (
        f'<text class="bound" transform="translate({x:.1f} {y - 9:.1f}) rotate({angle:.1f})" text-anchor="middle">'
        f"{limits.bandwidth / 1e9:.1f} GB/s</text>"
    )


def _roof_texts(axes: _Axes, limits: Limits) -> list[Box]:
    """Where the words of `_roof` are, nearly."""
    start, top = _slope(axes, limits)
    x, y = (start[0] + top[0]) / 2, (start[1] + top[1]) / 2 - 13
    return [(WIDTH - _RIGHT - 90, top[1] - 17, WIDTH - _RIGHT, top[1] - 1), (x - 26, y - 12, x + 26, y + 12)]


def _labels(points: Sequence[tuple[float, float, int]], covered: Sequence[Box]) -> Iterator[str]:
    """Each row's number beside its point, where it covers no other point, number or word; else a little away."""
    taken = [*covered, *((x - 5, y - 5, x + 5, y + 5) for x, y, _ in points)]
    for x, y, number in points:
        width, height = _LABEL[0] + 7 * (len(str(number)) - 1), _LABEL[1]
        best = None
        for distance in (10, 18, 28, 40, 54):
            for turn in range(12):
                angle = math.pi * (2 * turn / 12 + 0.25)
                cx, cy = x + distance * 1.15 * math.cos(angle), y - distance * math.sin(angle)
                box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
                inside = box[0] > _LEFT and box[2] < WIDTH - 1 and box[1] > 1 and box[3] < HEIGHT - _BOTTOM
                if inside and not any(_overlap(box, other) for other in taken):
                    best = (cx, cy, box)
                    break
            if best is not None:
                break
        if best is None:  # its title and the table still tell
            continue
        cx, cy, box = best
        taken.append(box)
        if distance > 10:
            yield f'<line class="lead" x1="{x:.1f}" y1="{y:.1f}" x2="{cx:.1f}" y2="{cy:.1f}"/>'
        yield text(cx, cy + 4, str(number), "middle", "number")


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def power_text(power: int) -> str:
    """10 to this power, short."""
    return f"{10.0**power:g}" if -3 <= power <= 3 else f"1e{power}"


def text(x: float, y: float, content: str, anchor: str = "middle", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(content)}</text>'
