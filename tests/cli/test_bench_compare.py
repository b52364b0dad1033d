"""`bench --compare`: what fell further from the limit than noise explains, and files that cannot be compared with."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from anabranch.cli.bench_compare import compare
from anabranch.cli.bench_index_rows import IndexRow
from anabranch.cli.bench_record import Record, RoomRecord, new_record, read_record, to_json
from anabranch.cli.bench_rows import Row, Target
from anabranch.cli.machine import Limits

pytestmark = pytest.mark.cpu
RESULTS = Path(__file__).parents[2] / "bench/results"


def record(*rooms: RoomRecord) -> Record:
    made = new_record(torch.device("cpu"), [], quick=True)
    made.rooms = list(rooms)
    return made


def room(name: str = "experts", drift: float = 0.0, repeats: int = 5, shape: int = 8) -> RoomRecord:
    limits = {("float32", 1): Limits(1e12, 1e10)}
    after = {("float32", 1): Limits(1e12 * (1 - drift), 1e10)}
    return RoomRecord(name, "tokens", {"experts": shape}, repeats, limits, after)


def row(workload: str = "forward", limit: float = 1.0, spread: float = 0.0, **times: float) -> Row:
    times = times or {"packed": 2.0}
    return Row(workload, "float32", 1, 16, 16, times, dict.fromkeys(times, spread), limit, None, flops=1e9, nbytes=1e7)


def compared(before: Row, now: Row, **options: float) -> tuple[list[str], bool]:
    first, second = room(), room(**options)  # type: ignore[arg-type]
    first.rows, second.rows = [before], [now]
    return compare(record(first), record(second))


def test_shares_of_the_limit_are_compared_and_not_times() -> None:
    slower_machine = row(limit=3.0, packed=6.0)
    assert compared(row(), slower_machine) == (["compared 1 rows that have a limit: 0 regressions"], False)
    lines, regressed = compared(row(), row(packed=2.5))
    assert regressed
    assert lines[0] == (
        "REGRESSION: experts: forward, float32, 1 thread, 16, packed: 50.0% of the limit, now 40.0% "
        "(-20%, allowed -10%)"
    )


@pytest.mark.parametrize(
    ("before", "now", "options"),
    [
        (row(spread=0.3), row(packed=2.5), {}),
        (row(), row(spread=0.3, packed=2.5), {}),
        (row(), row(packed=2.5), {"drift": 0.3}),
        (row(), row(packed=2.5), {"repeats": 1}),
        (row(), row(packed=2.2), {}),
        (row(limit=0.0), row(limit=0.0, packed=9.0), {}),
    ],
    ids=["spread before", "spread now", "limits that moved", "once", "a tenth", "no limit"],
)
def test_what_noise_explains_is_no_regression(before: Row, now: Row, options: dict[str, float]) -> None:
    lines, regressed = compared(before, now, **options)
    assert not regressed
    assert len(lines) == 1


def test_a_peer_that_fell_is_named_and_is_no_regression() -> None:
    lines, regressed = compared(row(packed=2.0, torch=4.0), row(packed=2.0, torch=8.0))
    assert not regressed
    assert lines[0].startswith("peer, no regression: experts: forward, float32, 1 thread, 16, torch: 25.0% ")


def test_what_is_in_one_file_alone_is_named() -> None:
    before, now, skip = room(), room(), room("skip")
    before.rows = [row("gone"), row(packed=2.0, torch=3.0)]
    now.rows = [row("new"), row(packed=2.0, PyG=3.0)]
    skip.rows = [row()]
    lines, regressed = compare(record(before, skip), record(now))
    assert not regressed
    assert lines[:-1] == [
        "only before: all of skip",
        "only before: experts: gone, float32, 1 thread, 16",
        "only now: experts: new, float32, 1 thread, 16",
        "only now: experts: forward, float32, 1 thread, 16, PyG",
        "only before: experts: forward, float32, 1 thread, 16, torch",
    ]
    lines, _ = compare(record(before), record(room(shape=16)))
    assert lines[0] == "not compared: experts, whose shape was {'experts': 8} and is {'experts': 16}"


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    first, second = room(), room("index")
    first.rows = [
        row(packed=2.0, int8=1.0),
        Row("b", "float32", 1, 1, 1, {"step": 1.0}, {"step": 0.0}, 1.0, None, target=Target("limit", 2.0)),
    ]
    second.rows = [
        IndexRow("find", "float32", 1, 5, 5, {"index": 1.0}, {"index": 0.1}, 1.0, None, p99_ns={"index": 3.0})
    ]
    made = record(first, second)
    path = tmp_path / "bench.json"
    path.write_text(to_json(made))
    assert read_record(path) == made
    assert json.loads(path.read_text())["rooms"][0]["rows"][1]["reached"] == 1.0


@pytest.mark.skipif(not RESULTS.is_dir(), reason="these tests run apart from the repository's results")
def test_files_from_before_there_were_several_rooms_are_read() -> None:
    files = sorted(RESULTS.glob("*.json"))
    assert files
    for path in files:
        found = read_record(path)
        lines, regressed = compare(found, found)
        assert not regressed
        assert len(lines) == 1
        slower = copy.deepcopy(found)
        for one in slower.rooms[0].rows:
            for name in one.medians_ms:
                one.medians_ms[name] *= 100
        assert compare(found, slower)[1], path


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", '"rooms"', '{"rooms": []}', '{"schema": 99, "rooms": []}', '{"rows": []}', "\xff"],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "old.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"old\.json is no file of bench --json .*; name one that it wrote") as raised:
        read_record(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("medians_ms", {"packed": 0.0}), ("medians_ms", {"torch": 1.0}), ("limit_ms", "long"), ("spreads", {})],
)
def test_rows_that_cannot_be_are_refused(tmp_path: Path, key: str, value: object) -> None:
    one = room()
    one.rows = [row()]
    content = json.loads(to_json(record(one)))
    content["rooms"][0]["rows"][0][key] = value
    path = tmp_path / "old.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is no file of bench --json"):
        read_record(path)
