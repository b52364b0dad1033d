"""The benchmark runs, records what it measured and compares like with like; how fast anything was is no test."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.cli.bench_chart import chart
from anabranch.cli.bench_experts import Experts, Shape
from anabranch.cli.bench_rows import Row, Workload
from anabranch.cli.machine import Limits
from anabranch.cli.main import main

pytestmark = pytest.mark.cpu
SHAPE = Shape(experts=8, hidden=128, inner=96, top_k=2)


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "anabranch", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def only_room(path: Path, name: str) -> Any:
    """The one room in the file."""
    (room,) = json.loads(path.read_text())["rooms"]
    assert room["room"] == name
    return room


def test_quick_bench_records_every_row(tmp_path: Path) -> None:
    chosen = ["--quick", "--tokens", 1, 9, "--repeats", 2, "--dtype", "bfloat16", "float32"]
    done = bench("experts", *chosen, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    record = only_room(tmp_path / "bench.json", "experts")
    assert [(row["dtype"], row["workload"], row["tokens"]) for row in record["rows"]] == [
        (dtype, name, tokens)
        for dtype in ("bfloat16", "float32")
        for name in ("forward", "variable k", "forward+backward")
        for tokens in (1, 9)
    ]
    for row in record["rows"]:
        assert row["limit_ms"] > 0
        assert all(time > 0 for time in row["medians_ms"].values())
        assert row["of_limit"] == row["limit_ms"] / row["medians_ms"][row["ours"]]
        assert row["spreads"].keys() == row["medians_ms"].keys()
    lines = done.stdout.splitlines()
    head = next(index for index, line in enumerate(lines) if "% of limit" in line)
    table = lines[head + 1 : head + 1 + len(record["rows"])]
    assert [line.split()[0] for line in table] == 2 * (["forward"] * 2 + ["variable"] * 2 + ["forward+backward"] * 2)
    assert all(len(line) == len(lines[head]) for line in table)
    drawn = ElementTree.parse(tmp_path / "experts.svg").getroot()
    numbers = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert numbers.count("9") == 6


def test_modes_and_dtypes_are_chosen(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    chosen = ["--quick", "--mode", "training", "--dtype", "float32", "--repeats", 1, "--json", out]
    assert bench("experts", *chosen).returncode == 0
    rows = only_room(out, "experts")["rows"]
    assert [(row["workload"], row["dtype"]) for row in rows] == [("forward+backward", "float32")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experts", "--tokens", 0], "at least 1"),
        (["--tokens", 5], "--tokens is of one room, but 5 are measured; "),
        (["cellar"], "invalid choice: room is 'cellar', must be one of experts, skip, mixers, index, temporal; "),
        (["--threads", 0], "at least 1"),
        (["--repeats", 0], "at least 1"),
        (["--json", "/nowhere/bench.json"], "no folder"),
        (["--out", "/dev/null"], "cannot be made a folder"),
        (["--out", "/proc"], "nothing can be written into /proc"),
        (["--compare", __file__], "is no file of bench --json"),
        (["skip", "--mode", "sideways"], "invalid choice"),
    ],
)
def test_bad_arguments_end_before_anything_is_measured(
    arguments: Sequence[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *map(str, arguments)]) == 2
    out, errors = capsys.readouterr()
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda"]) == 2
    assert "there is no GPU" in capsys.readouterr().err


@pytest.fixture(scope="module")
def experts() -> Experts:
    torch.manual_seed(1)
    return Experts(SHAPE, torch.float32, torch.device("cpu"))


def results(workload: Workload) -> dict[str, Any]:
    return {name: call() for name, call in workload.contenders.items()}


@pytest.mark.parametrize("mode", ["forward", "variable_k"])
def test_contenders_compute_the_same_output(experts: Experts, mode: str) -> None:
    with torch.no_grad():
        workload: Workload = getattr(experts, mode)(33)
        outputs = results(workload)
    fixed = outputs.pop("fixed k", None)
    assert (fixed is not None) == (mode == "variable_k")
    wanted = outputs.pop("torch")
    assert {"packed", "int8", "unpacked"} <= outputs.keys()
    for name, output in outputs.items():
        error = (output - wanted).norm() / wanted.norm()
        assert error < (0.03 if name == "int8" else 1e-4), name


@pytest.mark.parametrize("mode", ["training", "backward"])
def test_contenders_compute_the_same_gradients(experts: Experts, mode: str) -> None:
    gradients = results(getattr(experts, mode)(33))
    wanted = gradients.pop("torch")
    assert "unpacked" in gradients
    for name, found in gradients.items():
        assert len(found) == 4
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)


def test_work_is_counted_from_what_is_routed(experts: Experts) -> None:
    size = 3 * SHAPE.hidden * SHAPE.inner
    one = experts.forward(1)
    assert (one.pairs, one.flops) == (2, 2 * 2 * size)
    assert one.nbytes == 4 * (2 * size + 2 * SHAPE.hidden)
    assert one.int8_nbytes == 2 * size + 4 * 2 * SHAPE.hidden
    training = experts.training(1)
    assert training.flops == 3 * one.flops
    assert training.nbytes == 4 * (3 * 2 * size + 5 * SHAPE.hidden + 2 * 2 * 2 * SHAPE.inner)
    many = experts.variable_k(400)
    assert many.flops == 2 * many.pairs * size
    assert 2 * 400 < many.pairs < 4 * 400  # mean 3.06, cut at 8 experts
    assert many.nbytes == 4 * (SHAPE.experts * size + 2 * 400 * SHAPE.hidden)


def test_the_limit_is_the_slower_of_arithmetic_and_memory() -> None:
    limits = Limits(peak=1e9, bandwidth=1e8)
    assert limits.milliseconds(flops=2e6, nbytes=1e3) == pytest.approx(2.0)
    assert limits.milliseconds(flops=2e3, nbytes=1e6) == pytest.approx(10.0)


def test_measurements_refuse_what_they_cannot_do() -> None:
    ops = torch.ops.anabranch
    for seconds in (0.0, -1.0, float("nan"), 61.0):
        with pytest.raises(ValueError, match=r"peak_flops: seconds is .*, must be above 0"):
            ops.peak_flops(False, seconds)
    with pytest.raises(ValueError, match=r"read_bandwidth: bytes is 1023, must be at least 1048576; "):
        ops.read_bandwidth(1023, 1)
    with pytest.raises(ValueError, match=r"read_bandwidth: repeats is 0, must be 1 to 1000"):
        ops.read_bandwidth(1 << 20, 0)


def test_a_row_compares_the_preferred_variant() -> None:
    times = {"packed": 2.0, "int8": 1.0, "unpacked": 4.0, "torch": 6.0}
    row = Row("forward", "bfloat16", 1, 16, 128, times, dict.fromkeys(times, 0.0), 1.5, 0.8)
    assert row.ratio("torch") == 3.0
    assert row.ratio("transformers") is None
    assert row.of_limit("packed") == 0.75
    assert row.of_limit("int8") == 0.8
    assert row.of_limit("unpacked") == 0.375


def test_the_chart_is_well_formed_and_keeps_inside() -> None:
    times = {"packed": 1.0, "torch": 6.0}
    row = Row("forward", "bfloat16", 1, 16, 128, times, dict.fromkeys(times, 0.0), 3.0, None)
    root = ElementTree.fromstring(chart("a <machine> & more", [row]))
    width = float(root.attrib["width"])
    for element in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(element.get("x", "0")) + float(element.attrib["width"]) <= width
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a <machine> & more" in texts
    assert "300%" in texts
