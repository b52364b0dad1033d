"""Delimited text cut into cells by numpy: blocks of lines, and where each cell begins and ends.

A block is some megabytes of whole lines. Its cells are found by one search for delimiters, and every line must have as
many as the first; the first bad line is named.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

Array = np.ndarray[Any, Any]

_NEWLINE, _QUOTE = 10, b'"'
# Stands between cells once quotes are gone; no file of text has it.
_UNIT_SEPARATOR = b"\x1f"
_LONGEST_LINE = 1 << 26


class BadLine(Exception):
    """A line that is no event: its number, what is wrong, and what to do."""

    def __init__(self, line: int, problem: str, fix: str = "mend that line or take it out") -> None:
        super().__init__(line, problem, fix)
        self.line, self.problem, self.fix = line, problem, fix


@dataclass
class Block:
    """Some lines: their text, and where each of their cells begins and ends, `[lines, cells]` both."""

    text: Array
    starts: Array
    ends: Array
    line_numbers: Array

    def cell(self, line: int, column: int) -> str:
        text: bytes = self.text[self.starts[line, column] : self.ends[line, column]].tobytes()
        return text.decode()

    def texts_of_line(self, line: int) -> list[str]:
        return [self.cell(line, column) for column in range(self.starts.shape[1])]

    def texts(self, column: int) -> list[str]:
        """The cells of a column."""
        whole = self.text.tobytes()
        bounds = zip(self.starts[:, column].tolist(), self.ends[:, column].tolist(), strict=True)
        return [whole[start:end].decode() for start, end in bounds]

    def bad(self, line: int, column: int, name: str, must: str, fix: str = "mend that line or take it out") -> BadLine:
        value = self.cell(line, column)
        shown = repr(value if len(value) <= 40 else value[:40] + "...")
        return BadLine(int(self.line_numbers[line]), f"{name} is {shown}, must be {must}", fix)


def lines_in_blocks(file: IO[bytes], block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines, about `block_bytes` at a time, each ended by a newline, and the number of the first, from 1."""
    rest, line = b"", 1
    while more := file.read(block_bytes):
        cut = more.rfind(b"\n") + 1
        if cut == 0:
            rest += more
            if len(rest) > _LONGEST_LINE:
                raise BadLine(line, f"has more than {_LONGEST_LINE} bytes, must be an event", "is this a text file?")
            continue
        text, rest = rest + more[:cut], more[cut:]
        yield line, text
        line += text.count(b"\n")
    if rest:
        yield line, rest + b"\n"


def cut_into_cells(text: bytes, first_line: int, delimiter: str, num_cells: int | None) -> Block:
    """The cells of whole lines, blank lines left out, spaces around cells too.

    Raises:
        BadLine: not UTF-8, quotes that do not close, or a line of more or fewer than `num_cells` cells (None: than
            the first line has).
    """
    _check_utf8(text, first_line)
    text = text.replace(b"\r\n", b"\n")
    separator = b" " if delimiter.isspace() and delimiter != "\t" else delimiter.encode()
    if _QUOTE in text:
        text, separator = _without_quotes(text, first_line, delimiter), _UNIT_SEPARATOR
    else:
        text = _without_spaces(text, separator)
    kept, text = _without_blank_lines(text)
    data = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero((data == separator[0]) | (data == _NEWLINE))
    newlines = np.flatnonzero(data[ends] == _NEWLINE)
    cells = np.diff(newlines, prepend=-1)
    if num_cells is None:
        num_cells = int(cells[0]) if len(cells) else 1
    wrong = np.flatnonzero(cells != num_cells)
    if len(wrong):
        line = first_line + int(kept[wrong[0]])
        raise BadLine(line, f"has {cells[wrong[0]]} cells, must have {num_cells} like the first line of data")
    starts = np.concatenate([np.zeros(min(1, len(ends)), ends.dtype), ends[:-1] + 1])
    return Block(data, starts.reshape(-1, num_cells), ends.reshape(-1, num_cells), first_line + kept)


def _check_utf8(text: bytes, first_line: int) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line = first_line + text.count(b"\n", 0, error.start)
        raise BadLine(line, f"has the byte 0x{text[error.start]:02x}, must be UTF-8 text") from None


def _without_spaces(text: bytes, separator: bytes) -> bytes:
    """Without the spaces around cells; where spaces divide cells, with one space for several."""
    if separator == b" ":
        if b"\t" in text or b"  " in text:
            text = re.sub(rb"[ \t]+", b" ", text)
        if text.startswith(b" ") or b"\n " in text or b" \n" in text:
            text = re.sub(rb" ?\n ?", b"\n", text).lstrip(b" ")
        return text
    if b" " not in text and (b"\t" not in text or separator == b"\t"):
        return text  # most files; the search below is slow
    space = rb"[ ]" if separator == b"\t" else rb"[ \t]"
    border = b"[" + re.escape(separator) + rb"\n]"
    if re.search(space + border + b"|" + border + space + b"|^" + space, text):
        text = re.sub(b"^" + space + b"+", b"", text)
        text = re.sub(space + b"*(" + border + b")" + space + b"*", rb"\1", text)
    return text


def _without_quotes(text: bytes, first_line: int, delimiter: str) -> bytes:
    """Cells as the csv module reads them, a line at a time, divided by unit separators."""
    rows = []
    for number, line in enumerate(text.decode().split("\n")[:-1], first_line):
        pieces: list[str]
        try:
            if delimiter.isspace() and delimiter != "\t":
                line = " ".join(line.split())
            pieces = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True), [])
        except csv.Error as error:
            raise BadLine(number, f"has quotes that do not close ({error}), must have them in pairs") from None
        if any("\n" in piece or "\x1f" in piece for piece in pieces):
            raise BadLine(number, "has a control character in a cell, must have none")
        rows.append("\x1f".join(piece.strip() for piece in pieces))
    return ("\n".join(rows) + "\n").encode()


def _without_blank_lines(text: bytes) -> tuple[Array, bytes]:
    """Which lines are not blank, counted from 0, and the text of those."""
    if not text.startswith(b"\n") and b"\n\n" not in text:
        return np.arange(text.count(b"\n")), text
    lines = text.split(b"\n")[:-1]
    kept = [number for number, line in enumerate(lines) if line]
    return np.array(kept, np.int64), b"".join(lines[number] + b"\n" for number in kept)
