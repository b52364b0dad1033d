"""Every word of the Python standard library's sources, as entries of an index."""

from __future__ import annotations

import bisect
import dataclasses
import re
import sysconfig
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.int64]
POSITION_BITS = 40
_WORD = re.compile(r"[A-Za-z_]\w*")


@dataclasses.dataclass
class Corpus:
    """Words in the order in which they were read, the files that changed last at the end.

    A key is the number of the word in the sorted vocabulary and below it the position, so that all words with
    one prefix are one range of keys and the latest of a word are the last of its range; its value is file and line.
    """

    vocabulary: list[str]
    files: list[Path]
    bounds: list[int]  # of each file its first position, and behind them the end
    keys: Words
    values: Words

    def file_entries(self, file: int) -> tuple[Words, Words]:
        """Keys and values of one file."""
        stretch = slice(self.bounds[file], self.bounds[file + 1])
        return self.keys[stretch], self.values[stretch]

    def range_of(self, prefix: str) -> tuple[int, int]:
        """The keys of all words that begin so: the first, and the first behind them."""
        first = bisect.bisect_left(self.vocabulary, prefix)
        last = (
            bisect.bisect_left(self.vocabulary, prefix[:-1] + chr(ord(prefix[-1]) + 1))
            if prefix
            else len(self.vocabulary)
        )
        return first << POSITION_BITS, last << POSITION_BITS

    def word_range(self, word: int) -> tuple[int, int]:
        """The keys of one word, as `range_of`."""
        return word << POSITION_BITS, (word + 1) << POSITION_BITS


def source_files(folder: Path | None = None) -> list[Path]:
    """Python sources below the folder, default the standard library's, those that changed last at the end.

    Raises ValueError where it is no folder.
    """
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    if not root.is_dir():
        raise ValueError(f"--text: {root} is no folder, must be one with Python files; name it, or leave --text out")
    others = {"site-packages", "dist-packages"}
    files = [file for file in root.rglob("*.py") if not others & set(file.relative_to(root).parts) and file.is_file()]
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file))


def read_corpus(files: list[Path], seconds: float) -> Corpus:
    """All words of as many files as can be read in that time, at least one.

    Raises ValueError where the files hold no word.
    """
    end = time.monotonic() + seconds
    words: list[str] = []
    lines: list[int] = []
    bounds = [0]
    read: list[Path] = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            found = _WORD.findall(line)
            words += found
            lines += [(len(read) << 32) | number] * len(found)
        read.append(file)
        bounds.append(len(words))
        if time.monotonic() > end:
            break
    if not words:
        raise ValueError(f"--text: {len(files)} Python files hold no words, must hold some; name another folder")
    vocabulary = sorted(set(words))
    numbers = {word: number for number, word in enumerate(vocabulary)}
    word_numbers = np.fromiter(map(numbers.__getitem__, words), np.int64, len(words))
    keys = (word_numbers << POSITION_BITS) | np.arange(len(words), dtype=np.int64)
    return Corpus(vocabulary, read, bounds, keys, np.array(lines, dtype=np.int64))
