"""`load_edges`: edge streams from CSV, tab or space separated text, gzipped or not, and from Parquet."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal, cast

from anabranch.temporal.edge_columns import columns_of
from anabranch.temporal.edge_layout import Options, delimiter_of, is_header, layout_of
from anabranch.temporal.edge_list import EdgeList
from anabranch.temporal.edge_nodes import Collected
from anabranch.temporal.edge_text import BadLine, cut_into_cells, lines_in_blocks

_BLOCK_BYTES = 1 << 23
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
    options = Options(Path(path), delimiter, header, columns, ids, bipartite, time_scale)
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


def _load_text(file: IO[bytes], options: Options) -> EdgeList:
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
                delimiter = options.delimiter or delimiter_of(line)
                first = cut_into_cells(line + b"\n", first_line, delimiter, None)
                if not len(first.line_numbers):
                    pass  # a line of empty quotes is blank
                elif header is None and is_header(first, options):
                    header = first.texts_of_line(0)
                else:
                    layout = layout_of(first, header or [], delimiter, options)
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
            collected.add(*columns_of(block, layout, options.time_scale))
    if collected is None:
        raise ValueError(f"load_edges: {options.path} has no event, must have one or more; is it the right file?")
    return collected.finish()
