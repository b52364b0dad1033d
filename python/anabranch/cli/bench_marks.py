"""How contenders are drawn: each name's shape and colour, legible on white and on black."""

from __future__ import annotations

OURS_COLOR = "#3a7fcb"
OURS_MARK = ("disc", OURS_COLOR)
# Name, its shape and colour; shapes differ so that no one needs to tell colours apart.
MARKS = {
    "int8": ("diamond", "#9266cc"),
    "unpacked": ("line", "#17859b"),
    "torch": ("circle", "#d9822b"),
    "transformers": ("square", "#cd5149"),
    "eager": ("circle", "#d9822b"),
    "naive": ("square", "#cd5149"),
    "onednn": ("diamond", "#9266cc"),
    "grouped": ("circle", "#2e8b57"),
    "compiled": ("square", "#cd5149"),
    "apart": ("diamond", "#9266cc"),
    "std::map": ("square", "#cd5149"),
    "numpy": ("square", "#cd5149"),
    "sortedcontainers": ("diamond", "#9266cc"),
    "BTrees": ("line", "#17859b"),
    "dict": ("circle", "#2e8b57"),
    "ring": ("square", "#cd5149"),
    "ring C++": ("circle", "#2e8b57"),
    "dim=0": ("line", "#17859b"),
    "PyG": ("diamond", "#9266cc"),
}
NAMES = {"int8": "int8, of its own limit"}


def mark(shape: str, color: str, x: float, y: float) -> str:
    """A mark of about 10 around (x, y), with an outline that keeps it apart from its neighbours."""
    style = f'fill="{color}" stroke="white" class="mark"'
    if shape in ("circle", "disc"):
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4.5 if shape == "circle" else 6}" {style}/>'
    if shape == "square":
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" {style}/>'
    if shape == "line":
        return f'<rect x="{x - 2:.1f}" y="{y - 9:.1f}" width="4" height="18" {style}/>'
    return f'<path d="M{x - 6:.1f} {y:.1f}l6 -6l6 6l-6 6z" {style}/>'
