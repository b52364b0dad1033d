"""`load_edges`: edge streams from CSV, tab or space separated text, gzipped or not, and from Parquet."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from anabranch.temporal.edge_list import EdgeList
from anabranch.temporal.edge_nodes import Collected
from anabranch.temporal.edge_text import (
    Array,
    BadLine,
    Block,
    cut_into_cells,
    date_time_parts,
    lines_in_blocks,
    real_numbers,
    scaled_time,
    whole_numbers,
)

_BLOCK_BYTES = 1 << 23
_LARGEST = (1 << 63) - 1
_INTEGER = re.compile(r"[+-]?[0-9]+")
_COMMENT = (b"#", b"%")


def load_edges(
    path: str | os.PathLike[str],
    *,
    delimiter: str | None = None,
    header: bool | None = None,
    columns: Sequence[int | str] | None = None,
    ids: Literal["numeric", "text"] | None = None,
    bipartite: bool = False,
    time_scale: int = 1,
) -> EdgeList:
    """An edge stream from a file of `src dst time [features...]`: all of it, or a ValueError that names the line.

    Text is UTF-8, one event a line, every line with as many cells; gzip and Parquet are known by their first bytes.
    Blank lines are passed over, and so are lines of comment (`#`, `%`) before the first event. What is not said is
    read off the first line of data, and all others must be alike.

    Args:
        path: the file.
        delimiter: between cells; a space stands for any run of spaces and tabs. Default: the first of comma, tab and
            semicolon that the first line has twice, else spaces. Cells may be in double quotes, but end in their line.
        header: whether the first line names the columns. Default: where it has three cells or more and none of them is
            a number or a date-time.
        columns: which hold src, dst, time and then features, by position from 0 or by the name in the header. Default:
            the first three, and of the others those that are numbers in the first line; `feature_names` tells which.
        ids: "numeric" are whole numbers from 0 to 2^63 - 1, "text" are any names. Default: numeric where the first
            line's both are.
        bipartite: an id of a source and the same id of a destination are two nodes.
        time_scale: ticks of the result in one unit of the file's times, or in one second of date-times; 1000 for
            milliseconds.

    Returns:
        EdgeList on the CPU, sorted by time, those of one time in the order of the file. Numeric ids become nodes in
        their ascending order, names in the order in which they come first (source before destination); with
        `bipartite` all sources come before all destinations. `node_names` has them.

        Times are int64: a number or an ISO date-time (UTC where it names no zone) times `time_scale`, in decimals as
        written, so that nothing is rounded. One that is not whole then is an error. Features are float32, rounded.

    Raises:
        ValueError: a line that does not fit the first, a cell that is no number where one must be, NaN or infinite
            features, negative ids, times or ids beyond int64, a column that is not there, no event at all, a damaged
            gzip or Parquet file. Nothing of a file is returned then.
        OSError: the file cannot be read.
        ModuleNotFoundError: Parquet without pyarrow.

    Cost:
        Text is read 8 MB at a time; what stays is the result, up to three times that while it is sorted. Numeric ids
        and times take about 0.4 s a million lines on one core, names and date-times some seconds.
    """
    options = _Options(Path(path), delimiter, header, columns, ids, bipartite, time_scale)
    with open(path, "rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic == b"PAR1":
            from anabranch.temporal.edge_parquet import load_parquet

            return load_parquet(file, options.path, columns, bipartite, time_scale)
        try:
            if magic[:2] == b"\x1f\x8b":
                with gzip.open(file) as unpacked:
                    return _load_text(cast(IO[bytes], unpacked), options)
            return _load_text(file, options)
        except BadLine as bad:
            message = f"load_edges: line {bad.line} of {path}: {bad.problem}; {bad.fix}"
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            message = f"load_edges: {path} is a damaged gzip file ({error}), must be whole; fetch or pack it again"
    raise ValueError(str(message))


@dataclass(frozen=True)
class _Options:
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
class _Layout:
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


def _load_text(file: IO[bytes], options: _Options) -> EdgeList:
    collected, layout = None, None
    header: list[str] | None = None
    for first_line, text in lines_in_blocks(file, _BLOCK_BYTES):
        if first_line == 1:
            text = text.removeprefix(b"\xef\xbb\xbf")
        start = 0
        while layout is None and start < len(text):
            end = text.index(b"\n", start)
            line = text[start:end]
            if line.strip() and not line.startswith(_COMMENT):
                delimiter = options.delimiter or _delimiter_of(line)
                first = cut_into_cells(line + b"\n", first_line, delimiter, None)
                if not len(first.line_numbers):
                    pass  # a line of empty quotes is blank
                elif header is None and _is_header(first, options):
                    header = first.texts_of_line(0)
                else:
                    layout = _layout_of(first, header or [], delimiter, options)
                    break
            first_line, start = first_line + 1, end + 1
        if layout is None:
            continue
        if collected is None:
            features = layout.columns[3:]
            names = tuple(layout.names[column] for column in features if column < len(layout.names))
            collected = Collected(layout.numeric, options.bipartite, names, len(features))
        block = cut_into_cells(text[start:], first_line, layout.delimiter, layout.num_cells)
        if len(block.line_numbers):
            collected.add(*_columns_of(block, layout, options.time_scale))
    if collected is None:
        raise ValueError(f"load_edges: {options.path} has no event, must have one or more; is it the right file?")
    return collected.finish()


def _delimiter_of(line: bytes) -> str:
    return next((sign for sign in ",\t;" if line.count(sign.encode()) >= 2), " ")


def _is_header(first: Block, options: _Options) -> bool:
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


def _layout_of(first: Block, names: list[str], delimiter: str, options: _Options) -> _Layout:
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
    return _Layout(delimiter, len(cells), columns, names, ids == "numeric", date_times)


def _columns_of(block: Block, layout: _Layout, scale: int) -> Iterator[Any]:
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


def _times(block: Block, column: int, layout: _Layout, scale: int) -> Array:
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
