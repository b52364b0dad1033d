"""Edge files: what is read of them, and what is refused with its line."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anabranch.temporal import EdgeList, edge_files, load_edges

pytestmark = pytest.mark.cpu
DATA = Path(os.environ.get("ANABRANCH_DATA", Path(__file__).parents[3] / "shared" / "data"))


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def load(path: Path, text: str | bytes, **options: Any) -> EdgeList:
    return load_edges(write(path / "edges.txt", text), **options)


def rows(edges: EdgeList) -> list[tuple[int, ...]]:
    return list(zip(edges.src.tolist(), edges.dst.tolist(), edges.time.tolist(), edges.row.tolist(), strict=True))


PLAIN = [(0, 1, 5, 1), (2, 0, 7, 0), (1, 2, 7, 2)]  # of ids 10, 20, 30: lines (30 10 7), (10 20 5), (20 30 7)


@pytest.mark.parametrize(
    "text",
    [
        "30,10,7\n10,20,5\n20,30,7\n",
        "30 10 7\n10 20 5\n20 30 7",
        "  30  10\t7 \r\n10 20 5\r\n\r\n \t\n20 30 7\r\n\r\n",
        "# a comment\n% another\n\n30\t10\t7\n10\t20\t5\n20\t30\t7\n",
        "\ufeffu;v;t\n30 ;10; 7\n10;20;5.0\n 20;30;70e-1\n",
        '"from","to, or not","time"\n"30","10",7\n10,"20",5\n20,30,"7"\n',
        gzip.compress(b"source target when\n30 10 7\n10 20 5\n20 30 +7\n"),
    ],
)
def test_every_form_of_text_gives_the_same_edges(tmp_path: Path, text: str | bytes) -> None:
    edges = load(tmp_path, text)
    assert rows(edges) == PLAIN
    assert isinstance(edges.node_names, torch.Tensor) and edges.node_names.tolist() == [10, 20, 30]
    assert edges.event_id.tolist() == [0, 1, 2] and edges.num_nodes == 3 and edges.features is None
    for column in (edges.src, edges.dst, edges.time):
        assert column.dtype == torch.int64


def test_blocks_of_any_size_give_the_same_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    lines = [
        f"{draw.randrange(99)},{draw.randrange(10**18)},{draw.randrange(50)},{draw.random():.3f}" for _ in range(300)
    ]
    text = "u,v,t,x\n" + "\n".join(lines)
    whole = load(tmp_path, text)
    expected = sorted((int(line.split(",")[2]), row) for row, line in enumerate(lines))
    assert [(time, row) for _, _, time, row in rows(whole)] == expected
    assert whole.feature_names == ("x",) and whole.features is not None
    assert whole.features[:, 0].tolist() == [np.float32(lines[row].split(",")[3]) for _, row in expected]
    names = torch.as_tensor(whole.node_names)
    assert names[whole.dst].tolist() == [int(lines[row].split(",")[1]) for _, row in expected]
    for size in (1, 17, 1000):
        monkeypatch.setattr(edge_files, "_BLOCK_BYTES", size)
        again = load(tmp_path, text)
        assert rows(again) == rows(whole) and again.features is not None and again.features.equal(whole.features)


def test_names_bipartite_and_chosen_columns(tmp_path: Path) -> None:
    text = "kind,when,who,what,score\nx,3,eve,adam,1\ny,2,adam,eve,-2.5e-1\nz,2,7,eve,3\n"
    edges = load(tmp_path, text, columns=("who", "what", "when", 4))
    assert edges.node_names == ("eve", "adam", "7") and edges.feature_names == ("score",)
    assert rows(edges) == [(1, 0, 2, 1), (2, 0, 2, 2), (0, 1, 3, 0)]
    assert edges.features is not None and edges.features.tolist() == [[-0.25], [3], [1]]
    two_sided = load(tmp_path, text, columns=(2, 3, 1), bipartite=True)
    assert two_sided.node_names == ("eve", "adam", "7", "adam", "eve") and two_sided.num_nodes == 5
    assert rows(two_sided) == [(1, 4, 2, 1), (2, 4, 2, 2), (0, 3, 3, 0)]
    numbers = load(tmp_path, "5,5,0\n9,5,1\n5,2,2\n", bipartite=True)
    assert torch.as_tensor(numbers.node_names).tolist() == [5, 9, 2, 5] and numbers.dst.tolist() == [3, 3, 2]
    assert load(tmp_path, "10,9,1\n9,10,2\n", ids="text").node_names == ("10", "9")
    # Of columns that nobody chose, those of numbers are features: "z" is not, and neither is what comes after it.
    assert load(tmp_path, "a,b,t,kind,x\n1,2,3,z,4\n").feature_names == ("x",)


@pytest.mark.parametrize(
    ("time", "scale", "expected"),
    [
        ("0", 1, 0),
        ("-7", 3, -21),
        ("9223372036854775807", 1, 2**63 - 1),
        ("9007199254740993.0", 1, 2**53 + 1),
        ("0.1", 10, 1),
        ("1082040961.25", 100, 108204096125),
        ("15e-1", 2, 3),
        ("1970-01-02", 1, 86400),
        ("2008-09-11 03:16:14", 1, 1221102974),
        ("2008-09-11T03:16:14.125Z", 1000, 1221102974125),
        ("2008-09-11T03:16:14.000000001+02:00", 10**9, (1221102974 - 7200) * 10**9 + 1),
        ("1969-12-31 23:59:59.5", 2, -1),
    ],
)
def test_times_are_exact(tmp_path: Path, time: str, scale: int, expected: int) -> None:
    assert load(tmp_path, f"1,2,{time}\n", time_scale=scale).time.tolist() == [expected]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "no event, must have one or more"),
        ("# nothing\n\nu,v,t\n", {}, "no event"),
        ("1,2\n", {"delimiter": ","}, "line 1 of .*: has 2 cells, must have src, dst and time"),
        ("1,2,3\n\n1,2\n", {}, "line 3 of .*: has 2 cells, must have 3"),
        ("u v t\n1 2 3\n1 2 3 4\n", {}, "line 3 of .*: has 4 cells"),
        ("1,2,3\n1,x,3\n", {}, r"line 2 of .*: dst is 'x', must be a whole number .*ids='text'"),
        ("u,v,t\n1,2,3\n-1,2,3\n", {}, r"line 3 of .*: src \(u\) is '-1'"),
        ("1,2,3\n1,9223372036854775808,3\n", {}, "line 2 of .*: dst is '9223372036854775808'"),
        ("1,2,3\n1,99999999999999999999,3\n", {}, "line 2 .* dst"),
        ("1,2,9223372036854775808\n", {}, "line 1 .* time is"),
        ("1,2,3\n1,2,\n", {}, "line 2 .* time is ''"),
        ("1,2,0.5\n", {}, "line 1 .* time is '0.5', must be a number that is whole.*time_scale"),
        ("1,2,1e300\n", {}, "line 1 .* time"),
        ("1,2,1e-999999999\n", {}, "line 1 .* time"),
        ("1,2,nan\n1,2,3\n", {}, "line 1 .* time is 'nan'"),
        ("1,2,9e17\n1,2,3\n", {"time_scale": 1000}, "line 1 .* time"),
        ("1,2,2020-01-01\n1,2,2020-02-30\n", {}, "line 2 .* time is '2020-02-30', must be an ISO date-time"),
        ("1,2,2020-01-01\n1,2,5\n", {}, "line 2 .* ISO date-time"),
        ("1,2,3,1.5\n1,2,3,nan\n", {}, "line 2 .* feature 0 is 'nan', must be a finite number"),
        ("1,2,3,nan\n", {}, "line 1 .* feature 0 is 'nan'"),
        ("1,2,3,4,5\n1,2,3,4,1e39\n", {}, "line 2 .* feature 1 is '1e39'"),
        ("1,2,3,4\n1,2,3,\n", {}, "line 2 .* feature 0 is ''"),
        ("1,2,3,4\n1,2,3,1_0\n", {}, "line 2 .* feature 0"),
        ("1,2,3,4\n1,2,3,1e+-5\n", {}, "line 2 .* feature 0"),
        (b"1,2,3\n1,2,\xff3\n", {}, "line 2 .* has the byte 0xff, must be UTF-8"),
        ('1,2,3\n1,"2,3\n', {}, "line 2 .* has quotes"),
        ("1,2,3\na\0,2,3\n", {}, "line 2 .* src"),
        ("a,b,1\n,b,2\n", {}, "line 2 .* src is '', must be the name of a node"),
        ("u,v,t\n1,2,3\n", {"columns": ("u", "w", "t")}, "column 'w' of line 2 .* 'u', 'v', 't' or a position below 3"),
        ("1,2,3\n", {"columns": (0, 1, 3)}, "column 3 of line 1 .* a position below 3"),
        ("1,2,3\n", {"columns": (0, 1)}, "columns is"),
        ("1,2,3\n", {"delimiter": "--"}, "delimiter is '--'"),
        ("1,2,3\n", {"delimiter": ";"}, "has 1 cells, must have src, dst and time; give delimiter="),
        ("1,2,3\n", {"ids": "any"}, "ids is 'any'"),
        ("1,2,3\n", {"time_scale": 0}, "time_scale is 0"),
        ("u,v,t\n1,2,3\n", {"header": False}, "line 1 .* time is 't'"),
        (gzip.compress(b"1,2,3\n" * 99)[:30], {}, "damaged gzip file"),
        (b"\x1f\x8b and then nothing of the kind", {}, "damaged gzip file"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: str | bytes, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)^load_edges: .*{message}"):
        load(tmp_path, text, **options)


CELLS = st.one_of(
    st.integers(-3, 10**20).map(str), st.floats().map(str), st.text(max_size=4), st.just("2020-01-01 10:00")
)
LINES = st.lists(st.lists(CELLS, min_size=2, max_size=5).map(",".join), max_size=6).map("\n".join)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(LINES.map(lambda text: text.encode(errors="replace")), st.binary(max_size=60)),
    st.sampled_from([None, " "]),
)
@example(b'1\x1f2 3\n1 2 "3"\n', None)
@example(b'""\n1,2,3\n', None)
@example(b"PAR1 and then nothing of the kind", None)
@example("1 2 \uff13\n".encode(), None)
def test_any_bytes_are_edges_or_a_value_error(tmp_path_factory: Any, text: bytes, delimiter: str | None) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzz.txt", text)
    if text.startswith(b"PAR1"):
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    try:
        edges = load_edges(path, delimiter=delimiter)
    except ValueError as error:
        assert str(error).startswith("load_edges: ") and "must" in str(error)
        return
    assert 1 <= len(edges) <= text.count(b"\n") + 1 and len(edges.event_id.unique()) == len(edges)
    assert (edges.time.diff() >= 0).all() and int(edges.src.max()) < edges.num_nodes
    assert edges.node_names is not None and len(edges.node_names) == edges.num_nodes


def test_edge_list_slices_batches_and_checks() -> None:
    src, dst, time = torch.tensor([[3, 0, 1, 2], [1, 1, 0, 3], [9, 4, 9, 1]])
    edges = EdgeList.from_events(src, dst, time, torch.arange(4.0)[:, None], num_nodes=7)
    assert rows(edges) == [(2, 3, 1, 3), (0, 1, 4, 1), (3, 1, 9, 0), (1, 0, 9, 2)] and edges.num_nodes == 7
    assert edges.features is not None and edges.features[:, 0].tolist() == [3, 1, 0, 2]
    batches = list(edges.batches(3))
    assert [len(batch) for batch in batches] == [3, 1] and batches[1].event_id.tolist() == [3]
    assert batches[0].src.data_ptr() == edges.src.data_ptr() and batches[1].num_nodes == 7
    late = edges.select(edges.time > 4)
    assert late.row.tolist() == [0, 2] and "2 events, 7 nodes, 1 features, times 9..9" in repr(late)
    empty = EdgeList.from_events(*torch.empty(3, 0, dtype=torch.int64))
    assert len(empty) == empty.num_nodes == 0 and list(empty.batches(5)) == []
    with pytest.raises(ValueError, match=r"nodes are in \[0, 3\], must be in \[0, 3\)"):
        EdgeList.from_events(src, dst, time, num_nodes=3)
    with pytest.raises(ValueError, match="time is float32 of shape"):
        EdgeList.from_events(src, dst, time.float())
    with pytest.raises(ValueError, match="features has a NaN"):
        EdgeList.from_events(src, dst, time, torch.tensor([[1.0], [2], [float("nan")], [3]]))
    with pytest.raises(ValueError, match="mask is int64"):
        edges.select(edges.time)
    with pytest.raises(ValueError, match="size is 0"):
        edges.batches(0)


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    def load_table(table: dict[str, Any], **options: Any) -> EdgeList:
        parquet.write_table(arrow.table(table), tmp_path / "edges.parquet")
        return load_edges(tmp_path / "edges.parquet", **options)

    columns = {
        "u": [30, 10, 20],
        "v": [10, 20, 30],
        "t": [7.0, 5.0, 7.0],
        "x": [0.5, 1.0, 2.0],
        "note": ["a", "b", "c"],
    }
    edges = load_table(columns)
    assert rows(edges) == PLAIN and edges.feature_names == ("x",)
    moments = arrow.array([1500, 500, 2500], arrow.timestamp("ms"))
    edges = load_table(
        {"t": moments, "u": ["a", "b", "a"], "v": ["b", "c", "c"]}, columns=("u", "v", "t"), time_scale=2
    )
    assert edges.time.tolist() == [1, 3, 5] and edges.node_names == ("a", "b", "c") and edges.src.tolist() == [1, 0, 0]
    for name, value, message in (
        ("u", [1, -2, 3], "row 1 of .*: u is -2"),
        ("v", [1, None, 3], "row 1 of .*: v is null"),
        ("t", [1.0, 2.0, 2.5], "row 2 of .*: t is 2.5"),
        ("t", ["2020-01-01", "2020-01-02", "soon"], "row 2 of .*: t is soon"),
        ("x", [1.0, float("inf"), 2.0], "row 1 of .*: x is inf"),
    ):
        with pytest.raises(ValueError, match=message):
            load_table({**columns, name: value})
    path = write(tmp_path / "edges.parquet", (tmp_path / "edges.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged Parquet file"):
        load_edges(path)


@pytest.mark.parametrize(
    ("name", "options", "events", "nodes"),
    [
        ("uci/CollegeMsg.txt", {}, 59835, 1899),
        ("social_evolution/social.csv", {}, 54369, 83),
        ("signed/soc-sign-bitcoinalpha.csv", {"columns": (0, 1, 3, 2)}, 24186, 3783),
    ],
)
def test_real_files(name: str, options: Any, events: int, nodes: int) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no real data at {path}; set ANABRANCH_DATA")
    edges = load_edges(path, **options)
    assert (len(edges), edges.num_nodes) == (events, nodes)
    assert (edges.time.diff() >= 0).all() and edges.row.sort().values.equal(edges.event_id)
    if edges.features is not None:
        assert edges.features.abs().max() == 10 and abs(float((edges.features < 0).float().mean()) - 0.0635) < 1e-3
