"""How training shows that it goes on, and tables on the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


def table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns, header first."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def progress_bar(name: str, total: float) -> Any:
    """A bar of `total` seconds: tqdm's where it is installed."""
    with suppress(ImportError):
        from tqdm import tqdm

        layout = "{desc:6} {percentage:3.0f}%|{bar:24}| {elapsed} {postfix}"
        return tqdm(total=total, desc=name, bar_format=layout, mininterval=0.5)
    return _PlainProgress(name, total)


class StatusLine:
    """What is being done, on stderr: on a terminal one line that is written over, elsewhere only whole lines."""

    def __init__(self) -> None:
        self._is_terminal, self._width = sys.stderr.isatty(), 0

    def line(self, text: str) -> None:
        """A line that stays where there is no terminal."""
        if self._is_terminal:
            self.show(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def show(self, text: str) -> None:
        if self._is_terminal:
            self.clear()
            text = text[: shutil.get_terminal_size().columns - 1]
            self._width = len(text)
            print(text, end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Before a line goes to stdout, which may be the same terminal."""
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", file=sys.stderr, flush=True)
            self._width = 0


class _PlainProgress:
    """Stands in for tqdm where it is not installed: a line now and then."""

    def __init__(self, name: str, total: float) -> None:
        self.name, self.total, self.n, self.shown = name, total, 0.0, 0.0

    def update(self, amount: float) -> None:
        self.n += amount

    def set_postfix_str(self, text: str) -> None:
        if self.n - self.shown > self.total / 10:
            self.shown = self.n
            print(f"{self.name:6} {self.n / self.total:4.0%}  {text}", flush=True)

    def close(self) -> None:
        pass
