"""Bytes to train on: the Python standard library's own sources, or any file."""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

BYTE_CLASSES = ("letters", "digits", "punctuation", "indentation", "spaces", "newlines", "other")
_MIN_BYTES = 20_000
_MAX_BYTES = 8_000_000


def load_text(path: Path | None) -> tuple[Tensor, Tensor]:
    """Training and validation bytes, int64, without a shared file (a shared stretch, for a single file).

    Raises:
        OSError: the file cannot be read. ValueError: it is too short to train on.
    """
    if path is not None:
        data = path.read_bytes()
        if len(data) < _MIN_BYTES:
            raise ValueError(f"--text: {path} has {len(data)} bytes, must have at least {_MIN_BYTES}")
        cut = len(data) * 9 // 10
        return _to_tensor(data[:cut]), _to_tensor(data[cut:])
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(f for f in folder.glob("*.py")) + sorted(folder.glob("*/*.py"))
    files = [f for f in files if "site-packages" not in f.parts and "test" not in f.parts]
    random.Random(0).shuffle(files)
    train: list[bytes] = []
    validation: list[bytes] = []
    size = 0
    for position, file in enumerate(files):
        content = file.read_bytes()
        (validation if position % 10 == 0 else train).append(content)
        size += len(content)
        if size > _MAX_BYTES:
            break
    if size < _MIN_BYTES:
        raise ValueError(f"the standard library in {folder} has no sources; pass --text FILE")
    return _to_tensor(b"".join(train)), _to_tensor(b"".join(validation))


def classify(text: Tensor) -> Tensor:
    """Index into BYTE_CLASSES of every byte of one stretch; a blank is indentation until its line has begun."""
    classes, begun = [], False
    for byte in text.tolist():
        character = chr(byte)
        if character == "\n":
            classes.append("newlines")
            begun = False
            continue
        blank = character in " \t"
        begun = begun or not blank
        if blank:
            classes.append("spaces" if begun else "indentation")
        elif byte < 128 and character.isalpha():
            classes.append("letters")
        elif byte < 128 and character.isdigit():
            classes.append("digits")
        else:
            classes.append("punctuation" if 32 < byte < 127 else "other")
    return torch.tensor([BYTE_CLASSES.index(name) for name in classes])


def _to_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
