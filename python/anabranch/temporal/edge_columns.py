"""The columns of a block of lines as arrays: ids, times and features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from anabranch.temporal.edge_layout import Layout
from anabranch.temporal.edge_numbers import real_numbers, scaled_time, whole_numbers
from anabranch.temporal.edge_text import Array, Block

_LARGEST = (1 << 63) - 1


def columns_of(block: Block, layout: Layout, scale: int) -> Iterator[Any]:
    src, dst, time, *features = layout.columns
    for column in (src, dst):
        yield (_numeric_ids if layout.numeric else _text_ids)(block, column, layout.name(column))
    yield _times(block, time, layout, scale)
    yield [real_numbers(block, column, layout.name(column)) for column in features]


def _numeric_ids(block: Block, column: int, name: str) -> Array:
    values, good = whole_numbers(block, column)
    good &= values >= 0
    if not good.all():
        must = "a whole number from 0 to 2^63 - 1 like the first line's"
        raise block.bad(int(np.argmin(good)), column, name, must, "mend that line, or give ids='text'")
    return values


def _text_ids(block: Block, column: int, name: str) -> list[str]:
    empty = block.starts[:, column] == block.ends[:, column]
    if empty.any():
        raise block.bad(int(np.argmax(empty)), column, name, "the name of a node")
    return block.texts(column)


def _times(block: Block, column: int, layout: Layout, scale: int) -> Array:
    if layout.date_times:
        values, good = np.zeros(len(block.starts), np.int64), np.zeros(len(block.starts), bool)
    else:
        values, good = whole_numbers(block, column)
        good &= np.abs(values) <= _LARGEST // scale
        values = np.where(good, values, 0) * scale
    for line in np.flatnonzero(~good).tolist():
        value = scaled_time(block.cell(line, column), layout.date_times, scale)
        if value is None:
            must = "an ISO date-time" if layout.date_times else "a number"
            raise block.bad(
                line,
                column,
                layout.name(column),
                f"{must} that is whole after time_scale {scale}, and an int64",
                "mend that line, or give time_scale=1000 for times with three decimals",
            )
        values[line] = value
    return values
