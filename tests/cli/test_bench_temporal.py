"""`bench temporal` runs and records every row; its peers compute what ours do; bars are those of the issue."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_bench import bench, only_room

from anabranch.cli import bench_temporal as room
from anabranch.cli import peers_temporal as peers
from anabranch.cli.bench_chart import chart
from anabranch.cli.bench_index_rows import IndexRow, measure_rates
from anabranch.cli.bench_rooms import ROOMS
from anabranch.cli.bench_rows import CpuStopwatch, Workload
from anabranch.cli.bench_tables import temporal_row
from anabranch.cli.bench_temporal_bars import temporal_bars
from anabranch.cli.machine import Limits
from anabranch.cli.peers_nat import ComposedNAT, join
from anabranch.cli.temporal_stream import generated_stream
from anabranch.core.library import ops
from anabranch.integrations import pyg
from anabranch.papers.nat import NAT
from anabranch.temporal import EdgeList, RecentNeighbors, csr_from_edges, pair_join, row_set_sum

pytestmark = pytest.mark.cpu
CPU = torch.device("cpu")
NAMES = [
    *("ring 200k nodes", "ring 0.3k nodes", "NAT generated", "NAT generated, 100 zeros"),
    *("pair_join", "pair_encode", "pair_encode +backward", "row_set_sum", "NCache.update", "memory step"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second one costs models of a few numbers more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_quick_bench_records_every_row(tmp_path: Path) -> None:
    chosen = ["--quick", "--tokens", 50, "--repeats", 1, "--without", "PyG", "dim=0"]
    done = bench("temporal", *chosen, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("limits after, 1 thread") for line in lines)
    record = only_room(tmp_path / "bench.json", "temporal")
    assert [row["workload"] for row in record["rows"]] == NAMES
    for row in record["rows"]:
        assert (row["dtype"], row["ours"], row["threads"], row["tokens"]) == ("float32", "temporal", 1, 50)
        peer = {"ring": {"ring", "ring C++"}, "memo": set()}.get(row["workload"][:4], {"torch"})
        assert row["medians_ms"].keys() == {"temporal"} | peer
        assert min(row["medians_ms"].values()) > 0
        assert (row["limit_ms"] > 0) == (row["workload"] != "ring 0.3k nodes")  # so few nodes lie in the caches
    assert record["bars"] == []  # they are about more nodes, and UCI
    head = next(index for index, line in enumerate(lines) if "% of limit" in line)
    assert all(len(line) == len(lines[head]) for line in lines[head : head + 1 + len(NAMES)])
    picture = (tmp_path / "temporal.svg").read_text()
    assert "pair_join, float32, 1 thread" in picture
    assert "ring 0.3k" not in picture


def row(name: str, batch: int, millions: float, limit: float = 8.0, threads: int = 1, **others: float) -> IndexRow:
    rates = {"temporal": millions} | others
    times = {contender: 1e3 / rate for contender, rate in rates.items()}
    return IndexRow(name, "float32", threads, batch, 1, times, dict.fromkeys(times, 0.0), 1e3 / limit, None)


def test_bars_are_those_of_the_issue() -> None:
    rows = [
        row("ring 1M nodes", 100, 3.4, ring=2.0),
        row("ring 1M nodes", 4000, 3.6),
        row("ring 9k nodes", 100, 12.0, **{"ring": 10.0, "ring C++": 12.0}),
        row("ring 9k nodes", 1000, 12.0),
        row("NAT UCI", 100, 0.0067),
        row("NAT UCI, 100 zeros", 2000, 0.0066),
        row("NAT generated", 100, 0.1),
        row("pair_join", 4096, 3.9),
        row("pair_join", 100, 3.9),
        row("pair_join", 4096, 3.9, threads=2),
    ]
    found = [(bar.what, round(bar.value, 3), bar.must, bar.goal, bar.holds) for bar in temporal_bars(rows)]
    assert found == [
        ("ring 1M nodes, batch 100, million edges/s", 3.4, 3.5, 4.5, False),
        ("ring 1M nodes, batch 4000, million edges/s", 3.6, 3.5, 4.5, True),
        ("ring 9k nodes, batch 100, over the plain ring called from Python", 1.2, 1.2, None, True),
        ("ring 9k nodes, batch 100, over the plain ring in C++", 1.0, 1.2, None, False),
        ("NAT UCI, batch 100, over the release's 665/s", 10.075, 10.0, None, True),
        ("NAT UCI, 100 zeros, batch 2000, over the release's 665/s", 9.925, 10.0, None, False),
        ("pair_join, 4096 pairs, over the limit", 2.051, 2.0, None, False),
    ]


def test_rows_without_a_limit_say_so() -> None:
    call = {"temporal": lambda: room.Rate(2e6), "ring": lambda: room.Rate(4e6)}
    limits = Limits(1e9, 1e9, lines=1e8)
    found = [
        measure_rates(Workload("a", 5, 5, call, flops, 0, lines=lines), "float32", 1, limits, CpuStopwatch(), 1)
        for flops, lines in ((0, 0), (100, 0), (0, 12))
    ]
    assert [one.limit_ms for one in found] == pytest.approx([0.0, 100.0, 120.0])
    assert temporal_row(found[0]).split() == ["a", "1", "5", "2000.0", "0%", "0.50", *"------"]
    assert temporal_row(found[2]).split()[-2:] == ["8333.3", "24.0%"]
    assert ">a, float32" not in chart("t", found[:1])


@pytest.mark.parametrize("batch", [1, 20])
def test_the_plain_ring_finds_the_same_lists(batch: int) -> None:
    ring, recent = peers.PlainRing(6, 3), RecentNeighbors(6, 3)
    for start in (0, 40):
        src, dst = torch.randint(6, (2, 40))  # self-loops among them
        edges = peers.Edges(src, dst, (start + torch.arange(40)) // 3, torch.randint(6, (40, 3)))
        found = ring.run(edges, batch)
        for part in edges.batches(batch):
            wanted = recent.lookup_and_insert(*part)
        ids = found[..., 0].contiguous().view(torch.int32).view(*found.shape[:-1], 2)
        for got, one in zip((ids[..., 0], found[..., 1], ids[..., 1]), wanted, strict=True):
            assert torch.equal(got.long(), one)


def test_the_plain_ring_refuses() -> None:
    ring, two, queries = peers.PlainRing(3, 2), torch.tensor([0, 2]), torch.zeros(2, 1, dtype=torch.int64)
    state = ring.records, ring.oldest
    for changed, message in (
        ((two, two + 1, two, queries, 0, 1), r"dst\[1\] is 3, must be in \[0, 3\); "),
        ((two, two, two, queries - 1, 0, 1), r"queries\[0, 0\] is -1, must be in \[0, 3\); "),
        ((two, two, two[:1], queries, 0, 1), "time has shape \\(1,\\), must have 2 entries like src; "),
        ((two, two, two, queries.int(), 0, 1), "queries is int32, must be int64"),
        ((two, two, two, queries, -1, 1), "first_event is -1, must be 0 to "),
        ((two, two, two, queries, 0, 3), "batch is 3, must divide the 2 events; "),
    ):
        with pytest.raises(ValueError, match=f"plain_ring_run: {message}"):
            ops.plain_ring_run(*state, *changed)
    with pytest.raises(ValueError, match="records has shape \\(3, 2\\), must be \\(num_nodes, k, 2\\)"):
        ops.plain_ring_clear(ring.records[..., 0].contiguous(), ring.oldest)
    assert (ring.records == -1).all()


@pytest.mark.parametrize("num_keys", [None, 40])
def test_the_composed_join_is_pair_join(num_keys: int | None) -> None:
    keys = torch.stack([torch.randperm(40)[:6] for _ in range(8)])
    keys[0], keys[2, 3] = -1, -1
    z, codes = torch.randn(8, 6, 2), torch.tensor([1, 2, 2, 2, 2, 2], dtype=torch.int32)
    left, right = torch.tensor([0, 1, 4, 6, 0]), torch.tensor([1, 2, 5, 7, 0])
    wanted_keys, wanted_codes, wanted_z, counts = pair_join(keys, z, codes, left, right)
    found = join(keys, z, codes, left, right, num_keys)
    assert found.pairs.bincount(minlength=5).tolist() == counts.tolist()
    for pair, count in enumerate(counts):
        order = wanted_keys[pair, :count].argsort()
        mine = found.pairs == pair
        assert torch.equal(found.keys[mine], wanted_keys[pair][order])
        assert torch.equal(found.codes[mine], wanted_codes[pair][order].long())
        torch.testing.assert_close(found.z[mine], wanted_z[pair][order])


def test_common_neighbors_are_those_of_row_set_sum() -> None:
    offsets, columns = csr_from_edges(*torch.randint(12, (2, 30)), 13)  # the last node has none
    edges = torch.repeat_interleave(offsets.diff()) * 13 + columns
    x, (left, right) = torch.randn(13, 4), torch.randint(13, (2, 40))
    found = peers.common_neighbor_sum(x, offsets, columns, edges, left, right)
    torch.testing.assert_close(found, row_set_sum(x, offsets, columns, left, right))


def test_the_composed_nat_is_nat() -> None:
    edges = generated_stream(300, 30, seed=1)
    edges = EdgeList.from_events(
        torch.cat([edges.src, edges.src[:20]]),
        torch.cat([edges.dst, edges.src[:20]]),  # self-loops
        torch.cat([edges.time, edges.time[:20]]),
        torch.randn(320, 3),
        num_nodes=30,
    )
    options = {"slots": (8, 4), "self_size": 6, "hidden_size": 5, "dropout": 0.0, "replace_probability": 1.0, "seed": 3}
    model = NAT(30, edges.features, time_origin=int(edges.time[0]), time_scale=1e-3, **options)
    composed = ComposedNAT(30, edges.features, time_origin=int(edges.time[0]), time_scale=1e-3, **options)
    composed.load_state_dict(model.state_dict())
    for batch in edges.batches(32):
        negatives = torch.randint(30, (len(batch), 1))
        results = [one(batch.src, batch.dst, negatives) for one in (model, composed)]
        for mine, other in zip(results[0][:2], results[1][:2], strict=True):
            torch.testing.assert_close(other, mine, rtol=1e-4, atol=1e-5)
        for one, result in zip((model, composed), results, strict=True):
            one.zero_grad()
            (result[0].sum() - result[1].square().sum()).backward()
            one.insert(batch, result[2])
    for (name, mine), other in zip(model.named_parameters(), composed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, mine.grad, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
    state = composed.state_dict()
    for name in ("keys", "event_ids", "times", "states"):
        torch.testing.assert_close(state[f"cache.{name}"], getattr(model.cache, name), rtol=1e-4, atol=1e-5)


def test_pyg_takes_part_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "pyg_tgn", lambda: pyg)  # our classes of the same names, in place of PyG's
    shape = copy.copy(ROOMS["temporal"].quick_shape)
    temporal = room.Temporal(shape, torch.float32, CPU)
    for mode, rows in (("ring", 2), ("memory", 1)):
        workloads = list(temporal.workloads(mode, 50))
        assert len(workloads) == rows
        for workload in workloads:
            assert all(workload.contenders[name]().per_second > 0 for name in ("temporal", "PyG"))  # type: ignore[attr-defined]


def test_the_stream_is_uci_where_it_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANABRANCH_DATA", str(tmp_path))
    shape = room.TemporalShape(seen=20, events=10)
    name, edges = room.stream(shape)
    assert (name, len(edges), edges.num_nodes) == ("generated", 60_000, 1900)
    (tmp_path / "uci").mkdir()
    (tmp_path / "uci" / "CollegeMsg.txt").write_text("1 2 100\n2 3 101\n")
    name, edges = room.stream(shape)
    assert (name, len(edges), edges.num_nodes) == ("UCI", 2, 3)
