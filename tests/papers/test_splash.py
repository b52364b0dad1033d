"""SPLASH: the parts against their definitions, and the experiment learns what its baseline cannot."""

from __future__ import annotations

import pytest
import torch

from anabranch.papers.splash import KINDS, SLIM, Context, NodeFeatures, StreamContext, probe_loss, select_features
from anabranch.papers.splash_experiment import drifting_communities, main, run
from anabranch.temporal import EdgeList, degree_encoding, split_by_time


def test_slim_is_its_formula() -> None:
    slim = SLIM(6, 2, 8, time_dim=4, alpha=0.7).eval()
    valid = torch.tensor([[True, False, True], [False, False, False]])
    context = Context(torch.randn(2, 6), torch.randn(2, 3, 6), torch.randn(2, 3, 2), torch.rand(2, 3) * 1e5, valid)
    got = slim(context)
    for row in range(2):
        messages = [
            slim.message(
                torch.cat(
                    [
                        context.neighbor_x[row, j],
                        context.edge_x[row, j],  # type: ignore[index]
                        (context.age[row, j] * torch.tensor([1, 1e-3, 1e-6, 1e-9])).cos(),
                    ]
                )
            )
            for j in range(3)
            if valid[row, j]
        ]
        stacked = torch.stack(messages) if messages else torch.zeros(1, 8)
        updated = slim.update(torch.cat([stacked.mean(0), context.x[row]]))
        expected = slim.norm(updated) + 0.7 * slim.sum_norm(stacked.sum(0))
        torch.testing.assert_close(got[row], expected)


def test_unknown_nodes_get_means_and_degrees_are_counted() -> None:
    train = EdgeList.from_events(*torch.tensor([[0, 1, 2], [1, 2, 3], [0, 1, 2]]), num_nodes=6)
    later = EdgeList.from_events(*torch.tensor([[4, 4, 5], [0, 1, 4], [3, 4, 5]]), num_nodes=6)
    nodes = torch.arange(6)
    for kind in ("random", "positional"):
        features = NodeFeatures(kind, train, 4)
        before = features(nodes)
        assert (before[4:] == 0).all() and (before[:4] != 0).any(1).all()
        features.observe(later[:2])
        torch.testing.assert_close(features(nodes)[4], (before[0] + before[1]) / 2)
        assert features(nodes)[:4].equal(before[:4])
        features.observe(later[2:])  # node 5 hears of 4 as it was before the batch
        torch.testing.assert_close(features(nodes)[5], (before[0] + before[1]) / 2)
        features.reset()
        assert features(nodes).equal(before)
    degrees = NodeFeatures("degree", train, 4)
    degrees.observe(train)
    assert degrees(nodes[:, None]).equal(degree_encoding(torch.tensor([1, 2, 2, 1, 0, 0]), 4)[:, None])
    with pytest.raises(ValueError, match="kind is 'walks'"):
        NodeFeatures("walks", train, 4)  # type: ignore[arg-type]


def test_positions_tell_two_halves_apart_and_probes_choose_them() -> None:
    edges, labels = drifting_communities(60, 2, 1500, drift=0.0, new_share=0.0, inside=0.95)
    split = split_by_time(edges)
    probes = {}
    for kind in KINDS:
        stream = StreamContext(NodeFeatures(kind, split.train, 8), edges, 5)
        found = []
        for batch in split.train.batches(100):
            found.append(stream(batch.src, batch.time).probe())
            stream.observe(batch)
        probes[kind] = torch.cat(found)
    chosen, losses = select_features(probes, labels[: len(split.train)])
    assert chosen == "positional" and losses["positional"] < 0.1 < losses["degree"]
    assert probe_loss(torch.zeros(60, 1), torch.arange(60) % 2) == pytest.approx(0.6931, abs=1e-2)


def test_the_generated_stream_is_as_it_says() -> None:
    edges, labels = drifting_communities(80, 4, 4000, drift=0.5, new_share=0.5, inside=0.9)
    assert len(edges) == 4000 and (edges.src != edges.dst).all()
    first = {}
    for event, node in enumerate(edges.src.tolist()):
        first.setdefault(node, event)
    late = sum(event > 1500 for event in first.values())
    assert 20 <= late <= 60  # about half of the nodes come in the second half
    changed = sum(len(set(labels[edges.src == node].tolist())) == 2 for node in first)
    assert 10 <= changed <= 45 and labels.unique().tolist() == [0, 1, 2, 3]


def test_slim_follows_drift_that_features_alone_miss(capsys: pytest.CaptureFixture[str]) -> None:
    edges, labels = drifting_communities(120, 3, 3600, drift=0.8, new_share=0.2)
    chosen, results = run(edges, labels, epochs=4, k=10, dim=16, hidden=32, kinds=("positional", "degree"))
    output = capsys.readouterr().out
    assert chosen == "positional" and "positional (chosen)" in output
    (everywhere, new), (alone, _) = results["positional"], results["no events"]
    assert everywhere > 0.7 and everywhere > alone + 0.05 and new > 0.5 > results["degree"][0]


def test_links_of_a_file(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{tmp_path}/edges.csv"
    edges, _ = drifting_communities(60, 3, 900, drift=0.0, new_share=0.1)
    with open(path, "w", encoding="utf-8") as file:
        file.write("src,dst,time\n")
        file.writelines(f"{s},{d},{t}\n" for s, d, t in zip(edges.src, edges.dst, edges.time, strict=True))
    assert main(["--data", path, "--epochs", "1", "--k", "5", "--columns", "src,dst,2"]) == 0
    output = capsys.readouterr().out
    assert "900 events, " in output and "(chosen)" in output and "AUC" in output
