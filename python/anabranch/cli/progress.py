"""How training shows that it goes on, and tables on the terminal."""

from __future__ import annotations

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
