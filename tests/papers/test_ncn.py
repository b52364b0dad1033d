"""NCN and NCNC: the formulas on a small graph, edges taken out, and links that a dot product does not find."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from anabranch.papers.ncn import NCN, NCNC, Encoder, Graph
from anabranch.papers.ncn_experiment import geometric_edges, main, run, static_projection

DATA = Path(os.environ.get("ANABRANCH_DATA", Path(__file__).parents[3] / "shared" / "data"))


def random_graph(nodes: int = 25, edges: int = 90) -> tuple[Graph, list[set[int]]]:
    src = torch.randint(nodes, (edges,))
    dst = (src + torch.randint(1, nodes, (edges,))) % nodes
    neighbors: list[set[int]] = [set() for _ in range(nodes)]
    for one, two in zip(src.tolist(), dst.tolist(), strict=True):
        neighbors[one].add(two)
        neighbors[two].add(one)
    return Graph.from_edges(src, dst, nodes), neighbors


def test_edges_are_taken_out_and_rows_stay_sorted() -> None:
    graph, neighbors = random_graph()
    gone = [(one, two) for one in range(25) for two in neighbors[one] if one < two][::3]
    for one, two in gone:
        neighbors[one].discard(two)
        neighbors[two].discard(one)
    rest = graph.without(*torch.tensor(gone).unbind(1))
    rows = rest.column_ids.tensor_split(rest.row_offsets[1:-1].cpu())
    assert [row.tolist() for row in rows] == [sorted(row) for row in neighbors]


def test_encoder_is_its_formula() -> None:
    graph, neighbors = random_graph()
    encoder = Encoder(25, 6, layers=1)
    adjacency = torch.zeros(25, 25)
    for node, row in enumerate(neighbors):
        adjacency[node, sorted(row)] = 1
    scale = adjacency.sum(1).clamp_min(1).rsqrt()
    spread = scale[:, None] * adjacency * scale @ encoder.embedding
    expected = encoder.embedding + encoder.layers[0](spread).relu()
    torch.testing.assert_close(encoder(graph), expected)


@pytest.mark.parametrize("samples", [128, 2])
def test_completed_neighbours_are_weighted_by_their_chance(samples: int) -> None:
    graph, neighbors = random_graph()
    x = torch.randn(25, 6)
    model = NCNC(6, 8, scale=2.0, offset=0.5, alpha=0.9, pt=0.3, test_samples=samples).eval()
    left, right = torch.tensor([0, 3, 7]), torch.tensor([1, 4, 7])
    got = model(x, graph, left, right)
    plain = NCN.forward(model, x, graph, left, right)
    for pair, (i, j) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        ends = {i, j}
        shared = x[sorted((neighbors[i] & neighbors[j]) - ends)].sum(0)
        torch.testing.assert_close(plain[pair], model.score(x, shared[None], left[[pair]], right[[pair]])[0])
        for mine, other in ((i, j), (j, i)):
            for u in sorted(neighbors[mine] - neighbors[other] - ends):
                logit = NCN.forward(model, x, graph, torch.tensor([u]), torch.tensor([other]))[0]
                s = torch.sigmoid(2 * (logit - 0.5))
                shared = shared + 0.9 * 0.3 * s / (0.3 * s + 1 - s) * x[u]
        expected = model.score(x, shared[None], left[[pair]], right[[pair]])[0]
        if samples == 128:
            torch.testing.assert_close(got[pair], expected)
    assert samples == 128 or not got.equal(plain)
    x.requires_grad_()
    model.train()(x, graph, left, right).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad != 0).any()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_completion_compiles_whole() -> None:
    """So it reads no sizes, on any device; and another seed is no other program."""
    torch._dynamo.reset()
    graph, _ = random_graph()
    model = NCNC(6, 8, train_samples=3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    left, right = torch.randint(25, (2, 7))
    x = torch.randn(25, 6)
    with torch._dynamo.config.patch(recompile_limit=2):
        outputs = [compiled(x, graph, left, right, seed=seed) for seed in range(1, 6)]
    for seed, output in enumerate(outputs, 1):
        torch.testing.assert_close(output, model(x, graph, left, right, seed=seed))
    assert not outputs[0].equal(outputs[1])


def test_common_neighbours_find_hidden_edges(capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = geometric_edges(200, 12.0)
    found = run(src, dst, 200, hidden_share=0.3, epochs=12)
    assert "NCNC: epoch 12 of 12" in capsys.readouterr().out
    for name in ("NCN", "NCNC"):
        assert found[name].hits > found["dot product"].hits + 0.03, found
        assert found[name].mrr > 0.3, found  # of 51, by chance 0.09


@pytest.mark.cpu
def test_uci(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "uci" / "CollegeMsg.txt"
    if not path.exists():
        pytest.skip(f"no real data at {path}; set ANABRANCH_DATA")
    src, dst, num_nodes = static_projection(str(path))
    assert (len(src), num_nodes) == (13838, 1899) and (src < dst).all()
    small = tmp_path / "small.txt"
    small.write_text("".join(path.read_text().splitlines(keepends=True)[:1500]), encoding="utf-8")
    assert main(["--data", str(small), "--epochs", "2", "--hidden", "0.2"]) == 0
    output = capsys.readouterr().out
    assert all(f"20%     {name} " in output for name in ("dot product", "NCN", "NCNC"))
