"""The report of the mixers demo: losses, errors of the mixing matrices, and singular values through depth."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from anabranch import mixers
from anabranch.cli.mixers_measure import MixerResult
from anabranch.cli.mixers_model import STREAMS, VARIANTS
from anabranch.cli.page import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    html_table,
    legend,
    loss_plot,
    svg,
    svg_text,
    write_page,
)

_COLORS = dict(zip(VARIANTS, ("#7a7f87", "#d9622b", "#2f6db3", "#7a4fb5", "#2e8b57", "#b5403a"), strict=True))
_RIGHT, _FLOOR = 14, 1e-17  # below a double's resolution
_DEEP, _TOKENS = 60, 64


def write_report(
    path: Path, results: Sequence[MixerResult], rows: Sequence[tuple[str, ...]], notes: Sequence[str]
) -> None:
    """Writes the report whole or not at all; works from any state of the results."""
    parts = [html_table(rows), *(f"<p>{html.escape(note)}</p>" for note in notes)]
    own = [result for result in results if result.name in VARIANTS]
    if own:
        curves = [(r.name, _COLORS[r.name], range(1, len(r.bits) + 1), r.bits) for r in own]
        parts += [
            "<h2>Loss against steps</h2><p class=note>Training bits per byte, smoothed; equal batches for all.</p>",
            loss_plot(curves, "steps of training"),
        ]
    mixed = [result for result in own if result.spectrum]
    if mixed:
        parts += [
            "<h2>What the mixing matrices are</h2>",
            "<p class=note>By depth, a sub-layer each: the largest error of any row's sum / of any column's sum, and "
            "for Cayley max |H<sup>T</sup>H - I|, of any token of the first held-out batch. HC promises neither.</p>",
            html_table(_error_rows(mixed)),
            "<h2>Singular values through depth</h2>",
            "<p class=note>Of the product of all H up to each sub-layer: what residual streams keep of the first "
            f"ones. One line for each of the {STREAMS} values, medians of the tokens.</p>",
            _spectrum_plot([(r.name, r.spectrum) for r in mixed]),
        ]
    parts += [
        f"<h2>The same {_DEEP} deep, untrained</h2>",
        "<p class=note>Matrices of random logits of deviation 1 (HC: the identity plus a tenth of them): products of "
        "doubly stochastic ones forget all but the mean of the streams, orthogonal ones nothing.</p>",
        _spectrum_plot(list(deep_products().items())),
    ]
    write_page(path, "anabranch demo: mixers", "One language model, and what its residual streams are mixed by", parts)


def error_text(error: float) -> str:
    """Like 2e-7: two digits would feign that they mean something."""
    return f"{error:.0e}".replace("e-0", "e-").replace("e+00", "").replace("e+0", "e+")


def deep_products() -> dict[str, list[list[float]]]:
    """Per variant the singular values `[depth][n]` of products of random matrices."""
    random = torch.Generator().manual_seed(0)

    def logits(*shape: int) -> torch.Tensor:
        return torch.randn(_TOKENS, *shape, generator=random, dtype=torch.float64)

    n = STREAMS
    draws: dict[str, Callable[[], torch.Tensor]] = {
        "HC": lambda: torch.eye(n, dtype=torch.float64) + 0.1 * logits(n, n),
        "mHC-20": lambda: mixers.sinkhorn(logits(n, n)),
        "mHC-exact": lambda: mixers.sinkhorn(logits(n, n), tol=1e-6),
        "mHC-lite": lambda: mixers.permutation_mixture(logits(math.factorial(n))),
        "Cayley": lambda: mixers.cayley(logits(n, n)),
    }
    spectra = {name: mixers.spectrum([draw() for _ in range(_DEEP)]) for name, draw in draws.items()}
    return {name: found.singular_values.median(1).values.tolist() for name, found in spectra.items()}


def _error_rows(results: Sequence[MixerResult]) -> list[tuple[str, ...]]:
    depth = len(results[0].spectrum)
    rows: list[tuple[str, ...]] = [("residual", *(f"{layer + 1}" for layer in range(depth)))]
    for result in results:
        if VARIANTS[result.name] == "jpmhc":
            cells = [error_text(error) for error in result.orthogonality_errors]
        else:
            pairs = zip(result.row_errors, result.column_errors, strict=True)
            cells = [f"{error_text(row)} / {error_text(column)}" for row, column in pairs]
        rows.append((result.name, *cells))
    return rows


def _spectrum_plot(spectra: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> str:
    """Singular values on a logarithmic axis against depth."""
    values = [max(one, _FLOOR) for _, spectrum in spectra for at_depth in spectrum for one in at_depth]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    if high == low:
        high += 1
    depth = len(spectra[0][1])
    right, bottom = WIDTH - _RIGHT, HEIGHT - BOTTOM

    def place(layer: int, value: float) -> tuple[float, float]:
        across = layer / max(1, depth - 1)
        up = (math.log10(max(value, _FLOOR)) - low) / (high - low)
        return LEFT + (right - LEFT) * across, bottom - (bottom - TOP) * up

    body, step = [], max(1, math.ceil((high - low) / 6))
    for power in range(high, low - 1, -step):
        y = place(0, 10.0**power)[1]
        body.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e7ea"/>')
        body.append(svg_text(LEFT - 6, y + 4, f"1e{power}" if power else "1", "end"))
    for layer in range(0, depth, max(1, depth // 8)):
        body.append(svg_text(place(layer, 1.0)[0], bottom + 16, str(layer + 1)))
    body.append(
        f'<text transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">singular value</text>'
    )
    body.append(svg_text((LEFT + right) / 2, HEIGHT - 4, "sub-layers"))
    for name, spectrum in spectra:
        for index in range(STREAMS):
            points = " ".join(
                "{:.1f},{:.1f}".format(*place(layer, at_depth[index])) for layer, at_depth in enumerate(spectrum)
            )
            style = f'fill="none" stroke="{_COLORS[name]}" stroke-width="1.5" opacity=".85"'
            body.append(f'<polyline points="{points}" {style}/>')
    return svg(HEIGHT, [*body, *legend([(name, _COLORS[name]) for name, _ in spectra])])
