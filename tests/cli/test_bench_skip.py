"""`bench skip` runs and records every row, and its contenders compute the same."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from test_bench import bench, only_room

from anabranch.cli import peers_skip as peers
from anabranch.cli.bench_chart import chart
from anabranch.cli.bench_rows import CpuStopwatch, Row, Workload, measure
from anabranch.cli.bench_skip import Skip, SkipShape
from anabranch.cli.machine import Limits
from anabranch.cli.main import main

pytestmark = pytest.mark.cpu
SHAPE = SkipShape(hidden=128, inner=320, rank=4, layers=3)
INFERENCE = [("forward", 16), ("forward", 1), ("skipped", 3), ("width", 9), ("lowrank", 4)]


def test_quick_bench_records_every_row(tmp_path: Path) -> None:
    done = bench("skip", "--quick", "--repeats", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    record = only_room(tmp_path / "bench.json", "skip")
    names = [*(f"skip {share}%" for share in (0, 30, 50, 75)), "all skipped"]
    names += [*(f"width {share}%" for share in (25, 50, 75)), "low rank", "train skip 50%"]
    tokens = [16] * 4 + [1] + [16] * 3 + [4, 64]
    assert [(row["dtype"], row["workload"], row["tokens"]) for row in record["rows"]] == [
        ("bfloat16", *row) for row in zip(names, tokens, strict=True)
    ]
    for row in record["rows"]:
        assert all(time > 0 for time in row["medians_ms"].values())
        assert row["of_limit"] == row["limit_ms"] / row["medians_ms"][row["ours"]]
        assert (row["of_ideal"] is not None) == row["workload"].startswith(("skip", "width"))
    lines = done.stdout.splitlines()
    head = next(index for index, line in enumerate(lines) if "% of limit" in line)
    table = lines[head + 1 : head + 1 + len(record["rows"])]
    assert all(len(line) == len(lines[head]) for line in table)
    drawn = [
        element.text
        for element in ElementTree.parse(tmp_path / "skip.svg").getroot().iter("{http://www.w3.org/2000/svg}text")
    ]
    assert "width 50%, bfloat16, 1 thread" in drawn
    assert not any(text is not None and text.startswith("all skipped") for text in drawn)


def test_a_mode_of_another_room_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "skip", "--mode", "variable_k"]) == 2
    out, errors = capsys.readouterr()
    assert "invalid choice: 'variable_k', must be one of forward, skipped, width, lowrank, training; " in errors
    assert out == ""


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def room(request: pytest.FixtureRequest) -> Skip:
    torch.manual_seed(1)
    return Skip(SHAPE, request.param, torch.device("cpu"))


@pytest.mark.parametrize(("mode", "tokens"), INFERENCE)
def test_contenders_compute_the_same_output(
    room: Skip, mode: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anabranch.cli.bench_skip._repeat", lambda call, times: call)
    tolerance = 2e-2 if room.dtype == torch.bfloat16 else 1e-4
    seen = 0
    for workload in room.workloads(mode, tokens):
        with torch.no_grad():
            outputs = {name: call() for name, call in workload.contenders.items()}
        wanted = outputs.pop("unpacked")
        whole = {name: outputs.pop(name) for name in ("dense", "eager", "onednn") if name in outputs}
        if mode in ("width", "lowrank"):
            outputs["eager"] = whole.pop("eager")
        for name, output in outputs.items():
            assert (output - wanted).norm() <= tolerance * wanted.norm(), (workload.name, name)
        for name, output in whole.items():
            assert (output - whole["dense"]).norm() <= tolerance * wanted.norm(), (workload.name, name)
        seen += 1
    assert seen == {"forward": 4 if tokens == 16 else 1, "width": 3}.get(mode, 1)


def test_contenders_compute_the_same_gradients(room: Skip) -> None:
    (workload,) = room.workloads("training", 33)
    gradients = {name: call() for name, call in workload.contenders.items()}
    wanted = gradients.pop("naive")
    assert gradients.keys() == {"unpacked", "masked"}
    tolerance = 2e-2 if room.dtype == torch.bfloat16 else 1e-4
    for name, found in gradients.items():
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours - theirs).norm() <= tolerance * theirs.norm(), name


@pytest.mark.parametrize("kept", [0, 3, 8])
def test_the_peer_without_a_host_read_computes_the_same(kept: int) -> None:
    room = Skip(SHAPE, torch.bfloat16, torch.device("cpu"))  # written for CUDA, where it is timed
    x, keep = torch.randn(8, SHAPE.hidden).bfloat16(), torch.arange(8) < kept
    torch.testing.assert_close(
        peers.grouped(room.block, x, keep), peers.naive(room.block, x, keep), rtol=2e-2, atol=2e-2
    )


def test_work_is_counted_from_what_is_kept() -> None:
    room, size = Skip(SHAPE, torch.float32, torch.device("cpu")), 3 * SHAPE.hidden * SHAPE.inner
    half = list(room.forward(16))[2]
    assert (half.name, half.pairs, half.kept) == ("skip 50%", 8, 0.5)
    assert (half.flops, half.nbytes) == (2 * 8 * size, 4 * (size + 2 * 16 * SHAPE.hidden))
    narrow = room.width(16, 0.25)
    assert (narrow.kept, narrow.flops) == (0.25, 2 * 16 * size // 4)
    assert narrow.nbytes == 4 * (size // 4 + 2 * 16 * SHAPE.hidden)
    assert room.training(16).flops == 6 * 8 * size
    assert [workload.pairs for workload in room.forward(4)] == [4, 3, 2, 1]
    assert [workload.pairs for workload in room.forward(1)] == [1]  # a single row is kept or skipped whole
    assert room.lowrank(2).flops == 4 * 3 * 2 * 128 * 4


def test_ideal_is_the_share_of_the_dense_time_or_the_floor() -> None:
    times = {"packed": 3.0, "dense": 4.0, "onednn": 8.0}
    row = Row("skip 50%", "bfloat16", 1, 16, 8, times, dict.fromkeys(times, 0.0), 1.0, None, [], 0.5, 2.5)
    assert row.of_ideal("dense") == 3.0 / 2.5  # reading takes longer than half of the dense time
    assert row.of_ideal("onednn") == 3.0 / 4.0
    assert row.of_ideal("grouped") is None


def test_short_work_is_timed_many_times_per_call() -> None:
    workload = Workload("all skipped", 1, 0, {"unpacked": lambda: sum(range(10000))}, 0, 8, kept=0.0, calls=10)
    row = measure(workload, "float32", 1, Limits(1e9, 1e6), CpuStopwatch(), 3)
    once = measure(
        Workload("one", 1, 0, workload.contenders, 0, 8, kept=0.0), "float32", 1, Limits(1e9, 1e6), CpuStopwatch(), 3
    )
    assert row.medians_ms["unpacked"] < once.medians_ms["unpacked"]
    assert row.floor_ms == pytest.approx(8e-3)


def test_rows_of_one_group_stand_together_in_the_picture() -> None:
    times = {"packed": 1.0, "eager": 6.0, "torch": 9.0}
    rows = [
        Row(name, "bfloat16", 1, tokens, 1, times, dict.fromkeys(times, 0.0), 0.5, None, [], kept)
        for tokens, name, kept in ((1, "a", 1.0), (1, "b", 0.5), (16, "a", 1.0), (16, "b", 0.5), (16, "none", 0.0))
    ]
    root = ElementTree.fromstring(chart("machine", rows, ("eager",)))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text and text.endswith("1 thread")] == [
        "a, bfloat16, 1 thread",
        "b, bfloat16, 1 thread",
    ]
    assert "eager" in texts and "torch" not in texts
