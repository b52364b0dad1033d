"""The temporal demo: on a file and on its own stream, to its last line, out of time, interrupted, and on bad files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_demo import command, parse

from anabranch.cli.demo_temporal import TemporalResult, cache_rows, quality_rows
from anabranch.cli.main import main
from anabranch.cli.temporal_report import write_report
from anabranch.cli.temporal_stream import generated_stream

pytestmark = pytest.mark.cpu
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SECTIONS = ("Loss", "Average precision", "Occupied slots", "Collisions")


@pytest.fixture
def edge_file(tmp_path: Path) -> Path:
    edges = generated_stream(1500, 60, seed=0)
    path = tmp_path / "edges.csv"
    columns = (column.tolist() for column in (edges.src, edges.dst, edges.time))
    rows = [f"n{u},n{v},{t},{t % 7}" for u, v, t in zip(*columns, strict=True)]
    path.write_text("src,dst,time,weekday\n" + "\n".join(reversed(rows)) + "\n")
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    full = command("demo", "--job", "temporal", *arguments)
    return subprocess.run(full, capture_output=True, text=True, timeout=300, env=ONE_THREAD)


def test_a_file_to_the_last_line(tmp_path: Path, edge_file: Path) -> None:
    out = tmp_path / "report.html"
    done = run("--edges", edge_file, "--epochs", 4, "--hide-nodes", 0.1, "--out", out)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch("1,500 events among 5[0-9] nodes of edges.csv", lines[0])
    cells = [re.split(r"  +", line.rstrip()) for line in lines]
    parts = {(row[0], row[1]): row for row in cells if row[0] in ("validation", "test")}
    assert len(parts) == 6
    for part in ("validation", "test"):
        everything, known, new = (parts[part, which] for which in ("all", "transductive", "inductive"))
        assert all(re.fullmatch(r"0\.\d{4}", cell) for row in (everything, known, new) for cell in row[3:5])
        assert int(everything[2]) == int(known[2]) + int(new[2]) > 200
        assert int(known[2]) > 0 and int(new[2]) > 20  # of 5 hidden nodes
        assert float(everything[3]) > 0.55  # the stream can be predicted
    assert "are among the 5 that were hidden" in done.stdout
    hops = {row[0]: row for row in cells if row[0] in ("node itself", "hop 1", "hop 2")}
    assert all(0 < float(row[1].rstrip("%")) <= 100 for row in hops.values()) and len(hops) == 3
    assert hops["node itself"][2] == "0.0%" and float(hops["hop 2"][2].rstrip("%")) > 0
    trained = re.search(r"Trained on ([\d,]+) events \(4.00 epochs, batches of 100\)", done.stdout)
    assert trained and int(trained[1].replace(",", "")) < 4 * 1000  # 1050 with the hidden nodes' events
    assert lines[-1] == f"wrote {out}"
    report = parse(out)
    seen = "".join(report.seen)
    assert all(section in seen for section in SECTIONS)
    assert report.tags.count("svg") == 4
    assert set(tmp_path.iterdir()) == {edge_file, out}


def test_its_own_stream_when_time_is_short(tmp_path: Path) -> None:
    done = run("--minutes", 0.001, "--out", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2,000 events among 60 nodes of a generated stream")
    trained = re.search(r"Trained on ([\d,]+) events \((0\.\d\d) epochs", done.stdout)
    assert trained and 0 < int(trained[1].replace(",", "")) < 1400
    assert "\ntest " in done.stdout  # what could not be trained on was still seen


def test_interrupt_leaves_a_valid_report(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    process = subprocess.Popen(
        command("demo", "--job", "temporal", "--epochs", 50, "--out", out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ONE_THREAD,
        # A shell's background job, as CI may be, hands its children an ignored Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.readline()  # training is about to start
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted: the report holds what there is" in output
    assert "predicted by NAT" in "".join(parse(out).seen)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 2 3\n1 x 4\n", "line 2"), ("1 2 3\n1 2\n", "line 2"), ("1 2 3\n2 3 4\n", "events"), ("", "edges.csv")],
)
def test_bad_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    path = tmp_path / "edges.csv"
    path.write_text(text)
    assert main(["demo", "--job", "temporal", "--edges", str(path), "--out", str(tmp_path / "report.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert set(tmp_path.iterdir()) == {path}


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--job", "temporal", "--edges", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err


def test_a_report_of_nothing_yet(tmp_path: Path) -> None:
    result = TemporalResult()
    tables = [quality_rows(result), cache_rows(result)]
    write_report(tmp_path / "r.html", result, "<b>", tables, ["note"])
    assert "next links of <b>" in "".join(parse(tmp_path / "r.html").seen)
