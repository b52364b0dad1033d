"""capacity_schedule: its total, bounds and shape in every small case, against the curve computed on its own."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.experts import capacity_schedule

CURVES: dict[Any, Any] = {
    "uniform": lambda z, waves: 0.5,
    "descending": lambda z, waves: 1 - z,
    "ascending": lambda z, waves: z,
    "pyramid": lambda z, waves: 1 - abs(2 * z - 1),
    "inverted_pyramid": lambda z, waves: abs(2 * z - 1),
    "wave": lambda z, waves: (1 + math.cos(2 * math.pi * waves * z)) / 2,
}
every_kind = pytest.mark.parametrize("kind", CURVES)
SMALL = [(layers, low, high) for layers in range(1, 10) for low in (1, 2) for high in range(low, low + 6)]


def curve(kind: Any, layers: int, low: int, high: int, waves: int = 1) -> list[float]:
    depths = [layer / (layers - 1) if layers > 1 else 0.5 for layer in range(layers)]
    return [low + (high - low) * CURVES[kind](z, waves) for z in depths]


@every_kind
@pytest.mark.parametrize("waves", [1, 2, 3])
def test_default_total_follows_the_curve(kind: Any, waves: int) -> None:
    for layers, low, high in SMALL:
        wanted = curve(kind, layers, low, high, waves)
        counts = capacity_schedule(kind, layers, low, high, waves=waves)
        assert sum(counts) == math.floor(sum(wanted) + 0.5 + 1e-9)
        # The total is at most half a unit from the curve's sum, so no layer moves by more than that and a rounding.
        assert all(low <= count <= high for count in counts)
        assert all(abs(count - value) < 1.5 + 1e-9 for count, value in zip(counts, wanted, strict=True))


def by_bisection(kind: Any, layers: int, low: int, high: int, total: int) -> list[int]:
    """The rule of the docstring another way: the shift by bisection, then the largest remainders."""
    values = curve(kind, layers, low, high)

    def shifted(shift: float) -> list[float]:
        return [min(max(value + shift, low), high) for value in values]

    left, right = float(low - high), float(high - low)
    for _ in range(80):
        middle = (left + right) / 2
        left, right = (middle, right) if sum(shifted(middle)) < total else (left, middle)
    moved = [round(value, 9) for value in shifted(right)]
    counts = [math.floor(value) for value in moved]
    missing = total - sum(counts)
    for layer in sorted(range(layers), key=lambda i: (round(counts[i] - moved[i], 5), i))[:missing]:
        counts[layer] += 1
    return counts


@every_kind
def test_every_total_of_every_small_case(kind: Any) -> None:
    for layers, low, high in SMALL:
        for total in range(layers * low, layers * high + 1):
            counts = capacity_schedule(kind, layers, low, high, total=total)
            assert len(counts) == layers
            assert sum(counts) == total
            assert all(low <= count <= high for count in counts)
            assert counts == by_bisection(kind, layers, low, high, total)


def monotone(counts: list[int]) -> bool:
    return all(a <= b for a, b in itertools.pairwise(counts))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.sampled_from(sorted(CURVES)), st.integers(1, 30), st.integers(1, 6), st.integers(0, 9), st.data())
def test_shapes(kind: Any, layers: int, low: int, extra: int, data: st.DataObject) -> None:
    total = data.draw(st.none() | st.integers(layers * low, layers * (low + extra)))
    waves = data.draw(st.integers(1, 3)) if kind == "wave" else 1
    counts = capacity_schedule(kind, layers, low, low + extra, total=total, waves=waves)
    half = counts[: (layers + 1) // 2]
    if kind == "ascending":
        # Layers of different height never swap.
        assert monotone(counts)
    elif kind == "descending":
        assert monotone(counts[::-1])
    elif kind == "uniform":
        assert max(counts) - min(counts) <= 1
        assert monotone(counts[::-1])  # the earlier layers get what does not divide
    elif kind == "pyramid":
        assert monotone(half)
    elif kind == "inverted_pyramid":
        assert monotone(half[::-1])
    if kind in ("pyramid", "inverted_pyramid", "wave"):
        # Layers at equal height differ by the rounding alone, and the earlier one has more.
        for layer in range(layers // 2):
            assert counts[layer] - counts[-1 - layer] in (0, 1)


def test_known_schedules() -> None:
    assert capacity_schedule("descending", 5, 1, 5) == [5, 4, 3, 2, 1]
    assert capacity_schedule("ascending", 5, 1, 5) == [1, 2, 3, 4, 5]
    assert capacity_schedule("pyramid", 5, 1, 5) == [1, 3, 5, 3, 1]
    assert capacity_schedule("inverted_pyramid", 5, 1, 5) == [5, 3, 1, 3, 5]
    assert capacity_schedule("wave", 5, 1, 5) == [5, 3, 1, 3, 5]
    assert capacity_schedule("wave", 5, 1, 5, waves=2) == [5, 1, 5, 1, 5]
    assert capacity_schedule("uniform", 4, 1, 2) == [2, 2, 1, 1]
    assert capacity_schedule("ascending", 1, 2, 4) == [3]


def test_kinds_compare_at_equal_totals() -> None:
    for kind in CURVES:
        assert sum(capacity_schedule(kind, 12, 1, 8, total=40)) == 40
        assert capacity_schedule(kind, 12, 1, 8, total=12) == [1] * 12
        assert capacity_schedule(kind, 12, 1, 8, total=96) == [8] * 12


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("flat", 3, 1, 2), "kind is 'flat', must be one of"),
        (("wave", 0, 1, 2), "num_layers is 0, must be at least 1"),
        (("wave", 3, 0, 2), "low is 0, must be at least 1"),
        (("wave", 3, 3, 2), "high is 2, must be at least 3"),
    ],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"capacity_schedule: {message}")):
        capacity_schedule(*arguments)


def test_bad_totals_and_waves() -> None:
    for total in (2, 7):
        with pytest.raises(ValueError, match=f"capacity_schedule: total is {total}, must be between"):
            capacity_schedule("wave", 3, 1, 2, total=total)
    with pytest.raises(ValueError, match="capacity_schedule: waves is 0, must be at least 1"):
        capacity_schedule("wave", 3, 1, 2, waves=0)
