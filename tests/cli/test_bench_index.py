"""`bench index` runs and records every row; its contenders hold the same keys; bars are held the right way round."""

from __future__ import annotations

import re
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_bench import bench, only_room

from anabranch.cli import bench_index, peers_index
from anabranch.cli.bench_index import KINDS, MAPS, WORKS, Index, IndexShape
from anabranch.cli.bench_index_bars import Bar, index_bars
from anabranch.cli.bench_index_batches import Batches
from anabranch.cli.bench_index_rows import IndexRow, Rate, measure_rates
from anabranch.cli.bench_rows import CpuStopwatch, Row, Workload
from anabranch.cli.bench_tables import bar_lines
from anabranch.cli.machine import Limits
from anabranch.core.library import ops

pytestmark = pytest.mark.cpu
BATCHES = ["batch find", "batch insert 1000", "batch erase 1000", "batch insert all", "bulk load"]
CPU = torch.device("cpu")


def test_quick_bench_records_every_row(tmp_path: Path) -> None:
    chosen = ["--quick", "--tokens", 2000, "--repeats", 1, "--without", "numpy"]
    done = bench("index", *chosen, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    record = only_room(tmp_path / "bench.json", "index")
    kinds = [f"{work} timestamps" for work in WORKS]
    assert [row["workload"] for row in record["rows"]] == [*WORKS, *kinds, *BATCHES, "get", "set"]
    for row in record["rows"]:
        assert (row["dtype"], row["ours"], row["threads"], row["tokens"]) == ("int64", "index", 1, 2000)
        numbers = [*row["medians_ms"].values(), *row["p99_ns"].values(), *row["bytes_per_key"].values()]
        assert all(number > 0 for number in [*numbers, row["limit_ms"]])
        assert row["of_limit"] == row["limit_ms"] / row["medians_ms"]["index"]
    assert record["rows"][0]["medians_ms"].keys() == record["rows"][0]["p99_ns"].keys() == set(MAPS)
    assert all(limit["lines"] > 0 for limit in record["limits"])
    assert record["bars"] == []  # they are about more keys
    lines = done.stdout.splitlines()
    head = next(index for index, line in enumerate(lines) if "% of limit" in line)
    table = lines[head + 1 : head + 1 + len(record["rows"])]
    assert all(len(line) == len(lines[head]) for line in table)
    drawn = [
        element.text
        for element in ElementTree.parse(tmp_path / "index.svg").getroot().iter("{http://www.w3.org/2000/svg}text")
    ]
    assert "load timestamps, int64, 1 thread" in drawn
    assert "Percent of the machine's limit, by number of keys" in drawn


def test_works_and_kinds_are_in_the_order_of_the_header() -> None:
    header = (Path(__file__).parents[2] / "include/anabranch/index/workloads.hpp").read_text()
    works = re.search(r"index_works\[\] = \{(.*?)\}", header, re.DOTALL)
    kinds = re.search(r"enum class IndexKeys \{ (.*?) \}", header)
    assert works is not None
    assert kinds is not None
    order = dict(zip(re.findall(r"IndexWork::(\w+)", works[1]), WORKS, strict=True))
    assert order["load"] == "load"
    assert (order["find_zipf"], order["update_zipf"], order["scan"]) == ("find zipf", "YCSB A", "YCSB E")
    assert (order["insert_find"], order["erase_insert"]) == ("paper's A", "window")
    assert tuple(kinds[1].split(", ")) == KINDS


@pytest.mark.parametrize("map_", [0, 1])
@pytest.mark.parametrize("threads", [1, 2])
def test_throughput_measures_every_work(map_: int, threads: int) -> None:
    measured = ops.bskiplist_throughput(map_, KINDS.index("odd"), 1000, threads)
    assert measured.shape == (len(WORKS), 4)
    assert measured.dtype == torch.float64
    assert (measured > 0).all()
    assert (measured[:, 1] <= measured[:, 2]).all()  # p50 and p99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 0, 1000, 1), "map is 2, must be 0 "),
        ((0, 5, 1000, 1), "keys is 5, must be 0 to 4"),
        ((0, 0, 999, 1), "num_keys is 999, must be 1000 to 2\\^32"),
        ((0, 0, 1000, 0), "num_threads is 0, must be 1 to 1000"),
    ],
)
def test_throughput_refuses(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"bskiplist_throughput: {message}"):
        ops.bskiplist_throughput(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1023, 1, 1), "bytes is 1023"), ((1 << 20, 0, 1), "lines is 0"), ((1 << 20, 1, 0), "repeats is 0")],
)
def test_random_line_rate_refuses(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"random_line_rate: {message}, must be "):
        ops.random_line_rate(*arguments)


def test_maps_take_turns_and_no_run_is_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def throughput(map_: int, *rest: int) -> torch.Tensor:
        runs.append(map_)
        return torch.full((len(WORKS), 4), 1e6 * len(runs))

    monkeypatch.setattr(bench_index, "ops", types.SimpleNamespace(bskiplist_throughput=throughput))
    room, limits = Index(IndexShape(), torch.int64, CPU), Limits(1e9, 1e9, lines=1e8)
    rows = [measure_rates(one, "int64", 1, limits, CpuStopwatch(), 3) for one in room.workloads("operations", 1000)]
    assert runs == [0, 1, 0, 1, 0, 1]
    assert [row.workload for row in rows] == list(WORKS)
    assert {row.millions("index") for row in rows} == {3.0}
    assert {row.millions("std::map") for row in rows} == {4.0}
    assert rows[0].spreads["index"] == pytest.approx((1000 - 200) / (1000 / 3))
    assert rows[0].limit_ms == pytest.approx(10.0)  # a line for each of a million


def test_structures_hold_the_same_after_every_call() -> None:
    torch.manual_seed(1)
    batches = Batches(7, 100, 300, CPU)
    structures = batches._structures()
    wanted = dict(zip(batches.keys.tolist(), batches.values.tolist(), strict=True))
    probes = torch.cat([batches.keys, batches.fresh])

    def content(name: str, structure: Any) -> dict[int, int]:
        found = structure.find(probes.numpy() if name == "numpy" else probes)
        values, is_found = (torch.as_tensor(one) for one in found)
        return dict(zip(probes[is_found].tolist(), values[is_found].tolist(), strict=True))

    for erases in (False, True):
        for name, contender in batches._writes(structures, erases).items():
            assert contender().per_second > 0
            assert content(name, structures[name]) == wanted, (name, erases)
    assert structures.keys() == {"index", "ops", "torch", "numpy"}


def test_every_batch_contender_measures_itself() -> None:
    for workload in Batches(5, 50, 200, CPU).workloads():
        assert {"index", "ops", "torch"} <= workload.contenders.keys()
        for name, contender in workload.contenders.items():
            assert contender().per_second > 0, (workload.name, name)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_sorted_arrays_are_maps(kind: str) -> None:
    keys, values = torch.tensor([2, 4, 6, 8]), torch.tensor([20, 40, 60, 80])
    make, array = (peers_index.TorchSorted, torch.tensor) if kind == "torch" else (peers_index.NumpySorted, np.array)
    peer = make(keys, values) if kind == "torch" else make(keys.numpy(), values.numpy())
    peer.insert(array([9, 1, 5]), array([90, 10, 50]))
    peer.erase(array([8, 2]))
    assert peer.keys.tolist() == [1, 4, 5, 6, 9]
    assert peer.values.tolist() == [10, 40, 50, 60, 90]
    found_values, found = peer.find(array([6, 7, 99, 1]))
    assert found_values.tolist() == [60, 0, 0, 10]
    assert found.tolist() == [True, False, False, True]


def row(name: str, millions: float, threads: int = 1, keys: int = 10_000_000, **peers: float) -> IndexRow:
    rates = {"index": millions} | peers
    return IndexRow(
        name,
        "int64",
        threads,
        keys,
        1_000_000,
        {map_: 1e3 / rate for map_, rate in rates.items()},
        dict.fromkeys(rates, 0.0),
        1.0,
        None,
        p99_ns={"index": 500.0 * threads},
        bytes_per_key={"index": 20.0 + len(name)},
    )


def test_bars_are_those_of_the_issue() -> None:
    names = ["load", "find", "find zipf", "YCSB A", "YCSB E", "batch find", "batch insert 1000", "bulk load"]
    bars = {bar.what: bar for bar in index_bars([row(name, 2.1) for name in names])}
    assert [(bar.must, bar.goal) for bar in bars.values()] == [
        *((2.0, 4.0), (2.2, 4.0), (3.0, 6.0), (2.5, 5.0), (1.0, 1.5), (7.0, 16.0), (1.2, 2.5), (50.0, 100.0)),
        (26.0, 20.0),
    ]
    assert [bar.holds for bar in bars.values()] == [True, False, False, False, True, False, True, False, True]
    assert bars["load, million/s"].value == pytest.approx(2.1)
    assert bars["bytes per key after load"].value == 24.0


def test_bars_compare_rows() -> None:
    rows: list[Row] = [
        row("find", 2.0),
        row("find", 3.5, threads=2),
        row("find odd", 1.5),
        row("YCSB A", 9.0, threads=2),
    ]
    rows += [row("load", 2.0), row("load odd", 1.7), row("batch insert all", 4.0, keys=1_000_000, sortedcontainers=0.5)]
    rows += [row("get", 4.0, keys=1_000_000, dict=10.0), row("set", 1.0, keys=1_000_000, dict=2.0)]
    bars = {bar.what: bar for bar in index_bars(rows)}
    expected = {
        "find, 2 threads over 1": (1.75, False),
        "YCSB A, 2 threads, p99 in us": (1.0, True),
        "find odd over random": (0.75, False),
        "load odd over random": (0.85, True),
        "bytes per key odd over random": (28 / 24, True),
        "batch insert all over sortedcontainers": (8.0, False),
        "Python get, ns above 1.5 x dict": (250 - 150, True),
        "Python set, ns above 1.5 x dict": (1000 - 750, False),
    }
    for what, (value, holds) in expected.items():
        assert bars[what].value == pytest.approx(value), what
        assert bars[what].holds == holds, what
    assert index_bars([row("load", 9.0, keys=2000)]) == []


def test_bars_are_held_the_right_way_round() -> None:
    assert Bar("speed", 2.0, 2.0, None, True).holds
    assert not Bar("speed", 1.9, 2.0, None, True).holds
    assert Bar("bytes", 2.0, 2.0, None, False).holds
    assert not Bar("bytes", 2.1, 2.0, None, False).holds
    lines = bar_lines([Bar("speed", 1.9, 2.0, 4.0, True), Bar("bytes", 1.9, 2.0, None, False)])
    assert [line.split()[1:] for line in lines[1:]] == [
        ["1.90", ">=", "2.00", "4.00", "MISSED"],
        ["1.90", "<=", "2.00", "-", "ok"],
    ]
    assert bar_lines([]) == []


def test_rates_without_latencies_have_none() -> None:
    contenders = {"index": lambda: Rate(2e6, 300.0, 20.0), "torch": lambda: Rate(1e6)}
    found = measure_rates(Workload("a", 5, 5, contenders, 0, 32), "int64", 1, Limits(1e9, 3.2e9), CpuStopwatch(), 1)
    assert found.p99_ns == {"index": 300.0}
    assert found.bytes_per_key == {"index": 20.0}
    assert found.ratio("torch") == pytest.approx(2.0)
    assert found.limit_ms == pytest.approx(10.0)
