"""Delimited text cut into cells by numpy: blocks of lines, where each cell begins and ends, numbers from digits.

A block is some megabytes of whole lines. Its cells are found by one search for delimiters, and every line must have as
many as the first. Numbers are read from the bytes a digit of all lines at a time; what is wrong is found by the same
pass, so there is no second parser for errors, and the first bad line is named.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from typing import IO, Any

import numpy as np

Array = np.ndarray[Any, Any]

_NEWLINE, _QUOTE = 10, b'"'
# Stands between cells once quotes are gone; no file of text has it.
_UNIT_SEPARATOR = b"\x1f"
# Longer cells are no numbers; it bounds what a block of numbers takes.
_WIDEST_NUMBER = 64
_LONGEST_LINE = 1 << 26
_DATE_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?(?:(Z)|([+-])(\d\d):?(\d\d))?", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


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
