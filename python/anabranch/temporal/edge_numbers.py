"""Numbers and times from the cells of a block of text.

They are read from the bytes, a digit of all lines at a time; what is wrong is found by the same pass, so there is no
second parser for errors.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation

import numpy as np

from anabranch.temporal.edge_text import Array, Block

# Longer cells are no numbers; it bounds what a block of numbers takes.
_WIDEST_NUMBER = 64
_DATE_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?(?:(Z)|([+-])(\d\d):?(\d\d))?", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def whole_numbers(block: Block, column: int) -> tuple[Array, Array]:
    """int64 of a column, and whether each cell is one: an optional sign and digits, below 2^63 in size."""
    starts, ends = block.starts[:, column], block.ends[:, column]
    last = len(block.text) - 1
    first = block.text[np.minimum(starts, last)]
    negative = first == ord("-")
    begin = starts + (negative | (first == ord("+")))
    width = ends - begin
    good = (width > 0) & (width <= 19)
    value = np.zeros(len(starts), np.uint64)
    for place in range(int(width[good].max()) if good.any() else 0):
        digit = block.text[np.minimum(begin + place, last)] - np.uint8(ord("0"))  # not a digit: wraps to 10 or more
        within = place < width
        good &= ~within | (digit < 10)
        value = np.where(within, value * np.uint64(10) + digit, value)
    good &= value < np.uint64(1 << 63)
    signed = value.astype(np.int64)
    return np.where(negative, -signed, signed), good


_IN_A_FLOAT = np.zeros(256, bool)
_IN_A_FLOAT[list(b"0123456789+-.eE")] = True


def real_numbers(block: Block, column: int, name: str) -> Array:
    """float32 of a column of finite numbers; each is rounded from the float64 that it names."""
    starts, ends = block.starts[:, column], block.ends[:, column]
    width = ends - starts
    widest = min(int(width.max(initial=1)), _WIDEST_NUMBER)
    places = starts[:, None] + np.arange(max(widest, 1))
    within = places < ends[:, None]
    letters = np.where(within, block.text[np.minimum(places, len(block.text) - 1)], np.uint8(0))
    good = (width > 0) & (width <= _WIDEST_NUMBER) & (_IN_A_FLOAT[letters] | ~within).all(1)
    values = np.zeros(len(starts))
    words = np.ascontiguousarray(letters).view(f"S{letters.shape[1]}")[:, 0]
    try:
        values[good] = words[good].astype(np.float64)
    except ValueError:
        for line in np.flatnonzero(good):
            try:
                values[line] = float(words[line])
            except ValueError:
                good[line] = False
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    good &= np.isfinite(rounded)
    if not good.all():
        raise block.bad(int(np.argmin(good)), column, name, "a finite number (in the range of float32)")
    return rounded


def date_time_parts(text: str) -> tuple[int, str] | None:
    """Whole seconds since 1970 in UTC and the digits of the fraction; None where the text is no ISO date-time."""
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        return None
    away = 60 * (60 * int(match[10] or 0) + int(match[11] or 0)) * (-1 if match[9] == "-" else 1)
    since = moment - _EPOCH
    return since.days * 86400 + since.seconds - away, match[7] or ""


def scaled_time(text: str, is_date_time: bool, scale: int) -> int | None:
    """`scale` times the number or date-time that the text is; None where it is none, or that is no int64.

    In decimals, so that nothing is rounded: 0.1 times 10 is 1, and 0.15 times 10 is no int64.
    """
    if is_date_time:
        parts = date_time_parts(text)
        if parts is None:
            return None
        seconds, fraction = parts
        rest = int(fraction or 0) * scale
        ticks, lost = divmod(rest, 10 ** len(fraction))
        value = seconds * scale + ticks
        return None if lost or abs(value) >= 1 << 63 else value
    if not text or len(text) > _WIDEST_NUMBER or not all(_IN_A_FLOAT[list(text.encode())]):
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number:
        return 0
    # Beyond these it is no int64 at any scale, and what follows would work with huge powers of 10.
    if not -_WIDEST_NUMBER <= number.adjusted() <= 19:
        return None
    numerator, denominator = number.as_integer_ratio()
    value, lost = divmod(numerator * scale, denominator)
    return None if lost or abs(value) >= 1 << 63 else value
