"""Files of an index: round trips, damage of every byte of the header, truncation, newer versions, crashes."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import stat
import struct
import time
import zlib
from pathlib import Path

import pytest
import torch

from anabranch.index import BSkipList, files

pytestmark = pytest.mark.cpu
KINDS = ("int64", "uint64", "float64", "pair")


def an_index(kind: str = "int64", n: int = 300, value: str = "int64") -> BSkipList:
    numbers = range(0, 3 * n, 3)
    keys = [(i // 10, -i) for i in numbers] if kind == "pair" else numbers
    return BSkipList(((key, i) for i, key in enumerate(keys)), key=kind, value=value)


@pytest.mark.parametrize("value", ["int64", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, value: str, tmp_path: Path) -> None:
    for n in (0, 1, 2000):
        index = an_index(kind, n, value)
        index.save(tmp_path / "index")
        loaded = BSkipList.load(str(tmp_path / "index"))
        assert loaded == index and (loaded.key, loaded.value) == (kind, value) and loaded._validate() == ""
        assert (tmp_path / "index").stat().st_size == 64 + n * (24 if kind == "pair" else 16)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_the_format_is_as_written_down(tmp_path: Path) -> None:
    BSkipList({3: 9, -7: 49}).save(tmp_path / "index")
    data = (tmp_path / "index").read_bytes()
    body = struct.pack("<4q", -7, 3, 49, 9)
    header = struct.pack("<8s4IQ28x", b"anbrindx", 1, 0, 0, zlib.crc32(body), 2)
    assert data == header + struct.pack("<I", zlib.crc32(header)) + body


def refused(path: Path, data: bytes, text: str) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        BSkipList.load(path)
    assert text in str(error.value) and str(path) in str(error.value), str(error.value)


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "index"
    an_index().save(path)
    data = path.read_bytes()
    for position in [*range(64), 64, 65, 100, 64 + 2400, len(data) - 1]:
        for flip in (1, 0x80):
            damaged = bytearray(data)
            damaged[position] ^= flip
            refused(path, bytes(damaged), "BSkipList: ")


def test_every_length_but_its_own_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "index"
    an_index(n=40).save(path)
    data = path.read_bytes()
    for length in [*range(0, 70), *range(71, len(data), 13), len(data) - 1]:
        refused(path, data[:length], "look for a copy")
    refused(path, data + b"\0", "bytes, must have 704; it is truncated")


def test_a_newer_file_asks_for_a_newer_library(tmp_path: Path) -> None:
    path = tmp_path / "index"
    an_index().save(path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, 2)
    struct.pack_into("<I", data, 60, zlib.crc32(data[:60]))
    refused(path, bytes(data), "has version 2, must be at most 1; upgrade anabranch")
    refused(path, b"PK\x03\x04" + bytes(200), "must be a whole file of BSkipList.save")


@pytest.mark.parametrize("keys", [(3, 3), (4, 3)])
def test_keys_that_do_not_ascend_are_no_index(keys: tuple[int, int], tmp_path: Path) -> None:
    values = torch.arange(2).numpy()
    files.save(tmp_path / "index", (torch.tensor(keys).numpy(), values, "int64", "int64"))
    refused(tmp_path / "index", (tmp_path / "index").read_bytes(), "is no index, must be intact; look for a copy")


def test_nan_in_a_file_is_no_key(tmp_path: Path) -> None:
    keys = torch.tensor([1.0, float("nan")], dtype=torch.float64).numpy()
    files.save(tmp_path / "index", (keys, torch.arange(2).numpy(), "float64", "int64"))
    refused(tmp_path / "index", (tmp_path / "index").read_bytes(), "keys[1] is NaN")


def test_kinds_of_a_newer_file_with_this_version_are_refused(tmp_path: Path) -> None:
    an_index().save(tmp_path / "index")
    data = bytearray((tmp_path / "index").read_bytes())
    for offset in (12, 16):
        damaged = bytearray(data)
        struct.pack_into("<I", damaged, offset, 9)
        struct.pack_into("<I", damaged, 60, zlib.crc32(damaged[:60]))
        refused(tmp_path / "index", bytes(damaged), "must be ")


def test_what_the_system_refuses_is_an_oserror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BSkipList.load(tmp_path / "nowhere")
    with pytest.raises(OSError, match="nowhere"):
        an_index().save(tmp_path / "nowhere" / "index")
    with pytest.raises(OSError):
        BSkipList.load(tmp_path)
    path = tmp_path / "index"
    an_index(n=10).save(path)
    for step in ("fsync", "replace"):

        def fails(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, step, fails)
            with pytest.raises(OSError, match="No space left"):
                an_index(n=20).save(path)
        assert len(BSkipList.load(path)) == 10 and [entry.name for entry in tmp_path.iterdir()] == ["index"]
    with pytest.raises(MemoryError):
        an_index(n=2000).save(path) or BSkipList.load(path, max_bytes=4096)


def test_a_link_stays_a_link_and_rights_are_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "index")
    an_index().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and len(BSkipList.load(tmp_path / "there" / "index")) == 300
    usual = tmp_path / "usual"
    usual.touch()
    assert stat.S_IMODE((tmp_path / "there" / "index").stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_a_damaged_pickle_is_refused() -> None:
    data = bytearray(pickle.dumps(an_index()))
    data[len(data) // 2] ^= 1
    with pytest.raises(ValueError, match="the pickle"):
        pickle.loads(bytes(data))


def test_a_killed_process_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "index"
    old, new = an_index(n=1000), an_index(n=5000)
    old.save(path)
    seen = set()
    for attempt in range(15):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    new.save(path)
                    old.save(path)
            finally:
                os._exit(1)
        time.sleep(0.004 + 0.0013 * attempt)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        loaded = BSkipList.load(path)
        assert loaded in (old, new)
        seen.add(len(loaded))
    assert seen <= {1000, 5000}
