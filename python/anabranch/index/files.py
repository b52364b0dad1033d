"""An index in one file.

Layout, little endian: a header of 64 bytes (magic "anbrindx", uint32 version, uint32 kind of key and of value, uint32
CRC-32 of what follows the header, uint64 number of keys, zeros, uint32 CRC-32 of the header before it), the sorted keys
of 8 or 16 bytes, the values of 8.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from anabranch.index.arrays import KEYS, VALUES

_MAGIC, _VERSION = b"anbrindx", 1
_HEADER = struct.Struct("<8sIIIIQ28s")
_HEADER_BYTES = _HEADER.size + 4
_STRETCH = 1 << 22
_KEY_NAMES, _VALUE_NAMES = list(KEYS), list(VALUES)

#: Sorted keys, their values, and the names of their kinds.
Content = tuple[np.ndarray, np.ndarray, str, str]


def write(file: IO[bytes], content: Content) -> None:
    """Writes a header and the arrays; reads them twice."""
    keys, values, key, value = content
    parts = [_little(array) for array in (keys, values)]
    checksum = 0
    for part in parts:
        for stretch in _stretches(part):
            checksum = zlib.crc32(stretch, checksum)
    kinds = _KEY_NAMES.index(key), _VALUE_NAMES.index(value)
    header = _HEADER.pack(_MAGIC, _VERSION, *kinds, checksum, len(values), bytes(28))
    file.write(header + struct.pack("<I", zlib.crc32(header)))
    for part in parts:
        for stretch in _stretches(part):
            file.write(stretch)


def read(file: IO[bytes], size: int, name: str) -> Content:
    """The arrays of a file of `size` bytes.

    Raises:
        ValueError: `name` is no index, or truncated, damaged, or of a newer version; nothing large was allocated
            before its length was found right.
    """
    header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or header[:8] != _MAGIC:
        raise ValueError(f"BSkipList: {name} begins otherwise, must be a whole file of BSkipList.save; look for a copy")
    _, version, key, value, checksum, count, _ = _HEADER.unpack(header[:-4])
    if version > _VERSION:
        raise ValueError(f"BSkipList: {name} has version {version}, must be at most {_VERSION}; upgrade anabranch")
    if zlib.crc32(header[:-4]) != struct.unpack("<I", header[-4:])[0]:
        raise ValueError(f"BSkipList: {name} has another header than its checksum, must be intact; look for a copy")
    if key >= len(KEYS) or value >= len(VALUES):
        raise ValueError(
            f"BSkipList: {name} has keys of kind {key} and values of {value}, must be known ones; upgrade anabranch"
        )
    columns = 2 if _KEY_NAMES[key] == "pair" else 1
    expected = _HEADER_BYTES + count * 8 * (columns + 1)
    if size != expected:
        raise ValueError(f"BSkipList: {name} has {size} bytes, must have {expected}; it is truncated, look for a copy")
    keys = np.empty((count, 2) if columns == 2 else count, KEYS[_KEY_NAMES[key]].newbyteorder("<"))
    values = np.empty(count, VALUES[_VALUE_NAMES[value]].newbyteorder("<"))
    found = 0
    for array in (keys, values):
        for stretch in _stretches(array):
            read_bytes = file.readinto(stretch)  # type: ignore[attr-defined]
            found = zlib.crc32(stretch[:read_bytes], found)
    if found != checksum:
        raise ValueError(f"BSkipList: {name} has another content than its checksum, must be intact; look for a copy")
    key_name, value_name = _KEY_NAMES[key], _VALUE_NAMES[value]
    return keys.astype(KEYS[key_name], copy=False), values.astype(VALUES[value_name], copy=False), key_name, value_name


def save(path: str | os.PathLike[str], content: Content) -> None:
    """Writes a file beside `path` and renames it: whoever reads, even after a crash, has the old file or the new one.

    A process that is killed may leave `.NAME.RANDOM.tmp` behind.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; `path` is as it was.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file, content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: str | os.PathLike[str]) -> Content:
    """What `save` wrote. Raises OSError where `path` cannot be read, ValueError as `read` does."""
    with open(path, "rb") as file:
        return read(file, os.fstat(file.fileno()).st_size, os.fspath(path))


def to_bytes(content: Content) -> bytes:
    file = io.BytesIO()
    write(file, content)
    return file.getvalue()


def from_bytes(data: bytes) -> Content:
    return read(io.BytesIO(data), len(data), "the pickle")


def _little(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _stretches(array: np.ndarray) -> Iterator[memoryview]:
    flat: Any = array.reshape(-1).view(np.uint8)
    view = memoryview(flat)
    for start in range(0, len(view), _STRETCH):
        yield view[start : start + _STRETCH]
