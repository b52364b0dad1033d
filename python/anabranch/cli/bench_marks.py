"""How contenders are drawn: each name's shape and colour, legible on white and on black."""

from __future__ import annotations

OURS_COLOR = "#2f6db3"
OURS_MARK = ("disc", OURS_COLOR)
# Name, its shape and colour; shapes differ so that no one needs to tell colours apart.
MARKS = {
    "int8": ("diamond", "#7a4fb5"),
    "unpacked": ("line", "#17859b"),
    "torch": ("circle", "#d9822b"),
    "transformers": ("square", "#b5403a"),
    "eager": ("circle", "#d9822b"),
    "naive": ("square", "#b5403a"),
    "onednn": ("diamond", "#7a4fb5"),
    "grouped": ("circle", "#2e8b57"),
    "compiled": ("square", "#b5403a"),
    "apart": ("diamond", "#7a4fb5"),
    "std::map": ("square", "#b5403a"),
    "numpy": ("square", "#b5403a"),
    "sortedcontainers": ("diamond", "#7a4fb5"),
    "BTrees": ("line", "#17859b"),
    "dict": ("circle", "#2e8b57"),
    "ring": ("square", "#b5403a"),
    "ring C++": ("circle", "#2e8b57"),
    "dim=0": ("line", "#17859b"),
    "PyG": ("diamond", "#7a4fb5"),
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
