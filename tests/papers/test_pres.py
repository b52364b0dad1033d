"""PRES: the gradient of its coherence term, moments that move, and links learned in large batches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from anabranch.papers.pres import TGN, main, run
from anabranch.temporal import EdgeList, MemoryCorrection, load_edges

DATA = Path(os.environ.get("ANABRANCH_DATA", Path(__file__).parents[3] / "shared" / "data"))


def bursts(events: int = 4000, nodes: int = 80) -> EdgeList:
    """A fifth of the destinations is popular, another fifth after each 500 events: who was asked is asked again."""
    time = torch.arange(events)
    src = torch.randint(nodes // 2, (events,))
    popular = (time // 500 * 7 + torch.randint(nodes // 10, (events,))) % (nodes // 2)
    anyone = torch.randint(nodes // 2, (events,))
    dst = nodes // 2 + torch.where(torch.rand(events) < 0.9, popular, anyone)
    return EdgeList.from_events(src, dst, time, num_nodes=nodes)


def test_coherence_teaches_and_moments_are_counted() -> None:
    edges = bursts(200, 20)
    model = TGN(edges, MemoryCorrection(0.9, learnable=True), memory_dim=8, out_dim=8)
    moments = model.memory.moments
    assert moments is not None
    for events in edges[:150].batches(50):
        model.observe(events)
    # Two batches are applied, the third waits; a node is updated once a batch.
    assert 0 < int(moments.count.max()) <= 2 and int(moments.count.sum()) > 20
    _, coherence = model(edges[150:], edges.dst[:50])
    coherence.backward()
    gamma = model.memory.correction.logit  # type: ignore[union-attr]
    weight = model.memory.gru.weight_ih
    assert float(coherence.detach()) > 0 and gamma.grad is not None and gamma.grad != 0
    assert weight.grad is not None and (weight.grad != 0).any()
    model.eval()
    assert float(model(edges[150:], edges.dst[:50])[1]) == 0
    model.reset_state()
    assert not model.memory.memory.any() and not moments.count.any() and (model.attention.recent.rows[:, 0] == -1).all()


@pytest.mark.parametrize("corrected", [False, True])
def test_links_are_learned(corrected: bool) -> None:
    found = run(bursts(), batch=100, corrected=corrected, epochs=3, rate=5e-3)
    assert found.precision > 0.65 and found.auc > 0.7, found  # chance is 0.5, to know who is popular 0.87


@pytest.mark.cpu
def test_uci(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "uci" / "CollegeMsg.txt"
    if not path.exists():
        pytest.skip(f"no real data at {path}; set ANABRANCH_DATA")
    small = tmp_path / "small.txt"
    small.write_text("".join(path.read_text().splitlines(keepends=True)[:10000]), encoding="utf-8")
    assert main(["--data", str(small), "--epochs", "1", "--batches", "500"]) == 0
    output = capsys.readouterr().out
    assert "10000 events" in output and "\n500 " in output
    rates = [float(rate) for rate in output.splitlines()[-1].split()[2:4]]  # AP without and with PRES
    assert min(rates) > 0.55 and len(load_edges(small)) == 10000
