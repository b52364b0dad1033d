"""Files that a command leaves behind: whole or not at all, and no hour of work before it turns out that they cannot be
written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

INTERRUPTED, PIPE_CLOSED = 130, 141  # exit statuses: 128 and the number of the signal, as shells have it


def check_file(option: str, path: Path) -> None:
    """Whether the file can be written, before anything is done for it.

    Args:
        option: what the user called it, like "--out".

    Raises:
        OSError: it is a folder, or its folder is missing or refuses files; one line that says what to do.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{option}: {path} is a folder, must be a file; name one in it")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{option}: {path.parent} is no folder to write {path.name} into; make it first")
    _try_folder(option, path.parent)


def check_folder(option: str, path: Path) -> None:
    """As `check_file`, of a folder that files go into. Makes it where its parent is there."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OSError(f"{option}: {path} cannot be made a folder ({error.strerror}); name another") from error
    _try_folder(option, path)


def _try_folder(option: str, folder: Path) -> None:
    probe = _temporary(folder / "probe")
    try:  # permissions do not tell of read-only file systems
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"{option}: nothing can be written into {folder} ({error.strerror}); name another") from error


def write_files(texts: Mapping[Path, str]) -> None:
    """Writes all the files or none: each beside its place, and moved there when all of them are whole.

    Raises:
        OSError: the disk is full or the like; what was in the files before is still there.
    """
    written: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            written[path] = _temporary(path)
            try:
                _write(written[path], text)
            except OSError as error:
                raise OSError(f"cannot write {path} ({error.strerror}); free space or name another folder") from error
        for path, temporary in written.items():
            os.replace(temporary, path)
    except BaseException:  # Ctrl-C too
        for temporary in written.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _write(path: Path, text: str) -> None:
    """A full disk may say so when the bytes are flushed, not when they are written."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
