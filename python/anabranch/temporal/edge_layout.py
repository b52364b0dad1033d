"""What a file of edges is like: what the caller says of it, and what its first lines say of all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anabranch.temporal.edge_numbers import date_time_parts
from anabranch.temporal.edge_text import BadLine, Block

_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class Options:
    """What the caller said."""

    path: Path
    delimiter: str | None
    header: bool | None
    columns: Sequence[int | str] | None
    ids: str | None
    bipartite: bool
    time_scale: int

    def __post_init__(self) -> None:
        if self.delimiter is not None and (
            len(self.delimiter) != 1
            or self.delimiter in '"\r\n+-.'
            or not self.delimiter.isascii()
            or self.delimiter.isalnum()
        ):
            raise ValueError(
                f"load_edges: delimiter is {self.delimiter!r}, must be one sign that is no part of a number; "
                "give ',' or '\\t', or ' ' for any spaces"
            )
        if self.ids not in (None, "numeric", "text"):
            raise ValueError(f"load_edges: ids is {self.ids!r}, must be 'numeric' or 'text'; or leave it out")
        if not 1 <= self.time_scale <= 10**18:
            raise ValueError(
                f"load_edges: time_scale is {self.time_scale}, must be in [1, 10^18]; give ticks per unit of time"
            )
        if self.columns is not None and len(self.columns) < 3:
            raise ValueError(
                f"load_edges: columns is {self.columns!r}, must be src, dst, time and then features; name three or more"
            )


def positions_of(columns: Sequence[int | str], names: Sequence[str], num_columns: int, where: object) -> list[int]:
    """Positions of columns given by position or name; ValueError for one that is not there."""
    found = []
    for column in columns:
        place = (names.index(column) if column in names else -1) if isinstance(column, str) else column
        if not 0 <= place < num_columns:
            known = f"a name of {', '.join(map(repr, names))} or " if names else ""
            raise ValueError(
                f"load_edges: column {column!r} of {where} is not there, must be {known}a position below "
                f"{num_columns}; give others in columns="
            )
        found.append(place)
    return found


@dataclass(frozen=True)
class Layout:
    """What the first lines say of all."""

    delimiter: str
    num_cells: int
    columns: list[int]
    names: list[str]
    numeric: bool
    date_times: bool

    def name(self, column: int) -> str:
        """A column for an error message."""
        named = f" ({self.names[column]})" if column < len(self.names) else ""
        place = self.columns.index(column)
        return (("src", "dst", "time")[place] if place < 3 else f"feature {place - 3}") + named


def delimiter_of(line: bytes) -> str:
    return next((sign for sign in ",\t;" if line.count(sign.encode()) >= 2), " ")


def is_header(first: Block, options: Options) -> bool:
    if options.header is not None:
        return options.header
    cells = first.texts_of_line(0)
    return len(cells) >= 3 and not any(_is_number(cell) or date_time_parts(cell) for cell in cells)


def _is_number(cell: str) -> bool:
    """NaN and infinity too: they are numbers, if bad ones."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def layout_of(first: Block, names: list[str], delimiter: str, options: Options) -> Layout:
    cells = first.texts_of_line(0)
    line = int(first.line_numbers[0])
    if options.columns is not None:
        columns = positions_of(options.columns, names, len(cells), f"line {line} of {options.path}")
    elif len(cells) < 3:
        raise BadLine(line, f"has {len(cells)} cells, must have src, dst and time", "give delimiter= or another file")
    else:
        others = range(3, len(cells))
        columns = [0, 1, 2, *(column for column in others if not cells[column] or _is_number(cells[column]))]
    ids = options.ids or ("numeric" if all(_INTEGER.fullmatch(cells[column]) for column in columns[:2]) else "text")
    date_times = date_time_parts(cells[columns[2]]) is not None
    return Layout(delimiter, len(cells), columns, names, ids == "numeric", date_times)
