"""The command line: the demo to its last line, interrupted, and with bad arguments."""

from __future__ import annotations

import html.parser
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu
SECTIONS = ("Loss against time", "Experts per byte, by class of byte", "Load per expert", "Held-out text")


class Text(html.parser.HTMLParser):
    """Collects what a reader would see, and that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.seen.append(data)


def parse(path: Path) -> Text:
    reader = Text()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("def f(x):\n    return x < 12 and '<script>'\n" * 700)
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "anabranch", *map(str, arguments)]


def test_demo_runs_to_its_last_line(tmp_path: Path, text_file: Path) -> None:
    out = tmp_path / "report.html"
    done = subprocess.run(
        command("demo", "--minutes", 0.05, "--text", text_file, "--out", out),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for name in ("dense", "top-2", "top-p"):
        # A bar where tqdm is installed, else lines now and then.
        assert re.search(
            rf"^{name} .*\d bits/byte, [\d,]+ tokens/s", done.stdout + done.stderr.replace("\r", "\n"), re.M
        )
    header, *rows = (re.split(r"  +", line.rstrip()) for line in done.stdout.splitlines()[-5:-1])
    assert header == ["variant", "validation bits/byte", "experts/byte", "FFN FLOPs executed / all experts", "tokens/s"]
    number = r"\d+\.\d+"
    for row, experts, share in zip(
        rows, ("dense", r"2\.00 ± 0\.00", f"{number} ± {number}"), ("100 %", r"25\.0%", f"{number}%"), strict=True
    ):
        for cell, wanted in zip(row[1:], (r"\d\.\d{3}", experts, share, r"[\d,]+"), strict=True):
            assert re.fullmatch(wanted, cell), row
    assert done.stdout.rstrip().endswith(f"wrote {out}")
    report = parse(out)
    seen = "".join(report.seen)
    for section in SECTIONS:
        assert section in seen
    assert "script" not in report.tags  # the text is shown, not run
    assert report.tags.count("svg") == 4


def test_interrupt_leaves_a_valid_report(tmp_path: Path, text_file: Path) -> None:
    out = tmp_path / "report.html"
    process = subprocess.Popen(
        command("demo", "--minutes", 5, "--text", text_file, "--out", out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as CI may be, hands its children an ignored Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.readline()  # training is about to start
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "Loss against time" in "".join(parse(out).seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--minutes", "0"], "must be positive"),
        (["demo", "--text", "/nowhere/at/all"], "No such file"),
        (["demo", "--text", __file__], "must have at least"),
        (["dance"], "invalid choice"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_info() -> None:
    done = subprocess.run(command("info"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "CPU kernels" in done.stdout
