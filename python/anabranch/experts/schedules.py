"""Capacity schedules: how many experts each layer gets, at one total over the depth of the network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

Kind = Literal["uniform", "descending", "ascending", "pyramid", "inverted_pyramid", "wave"]

_KINDS = ("uniform", "descending", "ascending", "pyramid", "inverted_pyramid", "wave")


def capacity_schedule(
    kind: Kind, num_layers: int, low: int, high: int, *, total: int | None = None, waves: int = 1
) -> list[int]:
    """Experts per layer along a curve over depth, as whole numbers with a fixed sum.

    DynaMoE (arXiv 2603.01697) compares six schedules and names five of them; the formulas, and the inverted
    pyramid as the sixth, are ours. Layer l of L lies at depth `z = l / (L - 1)` (a single layer at 1/2) and
    wants `low + (high - low) * s(z)` experts:

    ================  ===================================
    kind              s(z)
    ================  ===================================
    uniform           1/2
    descending        1 - z
    ascending         z
    pyramid           1 - abs(2z - 1)
    inverted_pyramid  abs(2z - 1)
    wave              (1 + cos(2 pi waves z)) / 2
    ================  ===================================

    For another total than the curve's own, all layers are shifted by one common amount and clipped to `[low,
    high]`, so that kinds can be compared at equal numbers of experts. Then every layer is rounded down, and
    the experts that are missing from the total go to the largest remainders, the earlier layer first where
    remainders are equal.

    Args:
        kind: one of the six.
        num_layers: at least 1.
        low: fewest experts in a layer, at least 1.
        high: most experts in a layer, at least `low`.
        total: sum over the layers, from `num_layers * low` to `num_layers * high`; default: the curve's own
            sum, rounded to the nearest whole number, halves up.
        waves: periods of "wave" over the depth, at least 1; the other kinds have none.

    Returns:
        `num_layers` numbers in `[low, high]` that sum to `total`.

    Raises:
        ValueError: an unknown kind or an argument out of range.

    Cost:
        O(num_layers^2) on the host, exact in rational numbers.
    """
    op = "capacity_schedule"
    if kind not in _KINDS:
        raise ValueError(f"{op}: kind is {kind!r}, must be one of {_KINDS}; pass one of these")
    least_values = {"num_layers": (num_layers, 1), "low": (low, 1), "high": (high, low), "waves": (waves, 1)}
    for name, (value, least) in least_values.items():
        if value < least:
            raise ValueError(f"{op}: {name} is {value}, must be at least {least}; raise it")
    wanted = [low + (high - low) * _shape(kind, layer, num_layers, waves) for layer in range(num_layers)]
    if total is None:
        # Six digits, so that a wave whose cosines sum to a half rounds up in spite of their last bits.
        total = math.floor(round(sum(wanted, Fraction(0)), 6) + Fraction(1, 2))
    if not num_layers * low <= total <= num_layers * high:
        raise ValueError(
            f"{op}: total is {total}, must be between num_layers * low = {num_layers * low} and "
            f"num_layers * high = {num_layers * high}; pass None for the curve's own"
        )
    return _round_to(total, _shift_to(total, wanted, low, high))


def _shape(kind: Kind, layer: int, num_layers: int, waves: int) -> Fraction:
    depth = Fraction(layer, num_layers - 1) if num_layers > 1 else Fraction(1, 2)
    if kind == "uniform":
        return Fraction(1, 2)
    if kind == "descending":
        return 1 - depth
    if kind == "ascending":
        return depth
    if kind == "pyramid":
        return 1 - abs(2 * depth - 1)
    if kind == "inverted_pyramid":
        return abs(2 * depth - 1)
    # Twelve digits, so that layers at equal height stay equal in spite of the cosine's last bits.
    return Fraction(round((1 + math.cos(2 * math.pi * float(waves * depth))) / 2, 12))


def _shift_to(total: int, values: Sequence[Fraction], low: int, high: int) -> list[Fraction]:
    """The values plus one common shift, clipped to [low, high], with the given sum."""

    def shifted(shift: Fraction) -> list[Fraction]:
        return [min(max(value + shift, Fraction(low)), Fraction(high)) for value in values]

    # The sum rises with the shift, linearly between the shifts at which a layer meets a bound.
    corners = sorted({bound - value for value in values for bound in (low, high)})
    for left, right in itertools.pairwise(corners):
        below, above = sum(shifted(left)), sum(shifted(right))
        if below <= total <= above:
            return shifted(left + (right - left) * (total - below) / (above - below))
    return shifted(corners[0])


def _round_to(total: int, values: Sequence[Fraction]) -> list[int]:
    counts = [math.floor(value) for value in values]
    by_remainder = sorted(range(len(values)), key=lambda layer: counts[layer] - values[layer])
    for layer in by_remainder[: total - sum(counts)]:
        counts[layer] += 1
    return counts
