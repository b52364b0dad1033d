"""Files of benchmarks and demos: whole or not at all, and what goes wrong is said in one line."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from anabranch.cli import output
from anabranch.cli.main import main
from anabranch.cli.page import write_page

pytestmark = pytest.mark.cpu


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "anabranch", *map(str, arguments)]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The second file meets a full disk, or Ctrl-C: the first one keeps what it had."""
    first, second = tmp_path / "bench.json", tmp_path / "bench.html"
    output.write_files({first: "before"})
    write = output._write

    def failing(path: Path, text: str) -> None:
        write(path, text[:3])
        if "bench.html" in path.name:
            raise error

    monkeypatch.setattr(output, "_write", failing)
    with pytest.raises(type(error)) as raised:
        output.write_files({first: "after", second: "<html>"})
    if isinstance(error, OSError):
        assert str(raised.value) == (
            f"cannot write {second} (No space left on device); free space or name another folder"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    assert first.read_text() == "before"


def test_a_full_disk_is_an_error_of_the_demos_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full to write into")
    monkeypatch.setattr(output, "_temporary", lambda path: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # of /dev/full
    with pytest.raises(OSError, match=r"cannot write .*report.html \(No space left on device\); "):
        write_page(tmp_path / "report.html", "title", "heading", ["text"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--out", "/nowhere/report.html"], "/nowhere is no folder to write report.html into; make it first"),
        (["demo", "--out", "/proc/report.html"], "nothing can be written into /proc"),
        (["demo", "--out", "/tmp"], "/tmp is a folder, must be a file; name one in it"),
        (["demo", "--job", "temporal", "--epochs", "0"], "--epochs is 0, must be at least 1"),
        (["bench", "--json", "/proc/bench.json"], "nothing can be written into /proc"),
    ],
)
def test_where_nothing_can_be_written_no_work_begins(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(arguments)) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_ctrl_c_leaves_whole_files(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("bench", "skip", "--quick", "--out", tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("skip 30%"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("python -m anabranch bench: interrupted; ")
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.html", "skip.svg"}
    assert '"interrupted": true' in (tmp_path / "bench.json").read_text()
    page = (tmp_path / "bench.html").read_text()
    assert "Interrupted" in page and "not measured again at the end" in page


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    """As of `python -m anabranch bench | head -n 1`."""
    read, write = os.pipe()
    process = subprocess.Popen(
        command("bench", "skip", "--mode", "lowrank", "--quick", "--json", tmp_path / "bench.json"),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    os.read(read, 10)
    os.close(read)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 141
    assert "Traceback" not in errors and "BrokenPipe" not in errors
