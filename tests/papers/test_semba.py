"""SEMBA: metrics by hand, and signs of a generated stream learned from memories, better than by chance."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from anabranch.papers.semba import SEMBA, VARIANTS, best_threshold, macro_f1, main, run
from anabranch.papers.temporal_attention import TemporalAttention
from anabranch.temporal import EdgeList, load_edges

DATA = Path(os.environ.get("ANABRANCH_DATA", Path(__file__).parents[3] / "shared" / "data"))


def trust(events: int = 2000, nodes: int = 60) -> EdgeList:
    """Some nodes are trusted by all and some by nobody, but for a tenth of the events."""
    bad = torch.rand(nodes) < 0.3
    src = torch.randint(nodes, (events,))
    dst = (src + torch.randint(1, nodes, (events,))) % nodes
    sign = torch.where(bad[dst], -1.0, 1.0) * torch.where(torch.rand(events) < 0.1, -1, 1)
    return EdgeList.from_events(src, dst, torch.arange(events), 5 * sign[:, None], num_nodes=nodes)


def test_macro_f1_and_threshold_by_hand() -> None:
    labels = torch.tensor([True, True, False, False, False])
    predicted = torch.tensor([True, False, True, False, False])
    assert float(macro_f1(predicted, labels)) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert float(macro_f1(labels, labels)) == 1 and float(macro_f1(~labels, labels)) == 0
    assert float(macro_f1(torch.zeros_like(labels), labels)) == pytest.approx(3 / 8)
    scores = torch.tensor([0.9, 0.8, 0.3, 0.2, 0.1])
    assert macro_f1(scores >= best_threshold(scores, labels), labels) == 1


def test_attention_is_its_formula_and_nodes_without_events_are_no_nan() -> None:
    edges = trust(40, 8)
    attention = TemporalAttention(edges, 6, 4, k=3, heads=2)
    attention.observe(edges[:30])
    memory = torch.randn(8, 6, requires_grad=True)
    nodes, time = torch.tensor([2, 5]), torch.tensor([31, 40])
    got = attention(lambda ids: memory[ids], nodes, time)
    for row, node in enumerate(nodes.tolist()):
        ids, times, events = (one[0] for one in attention.recent.lookup(nodes[row : row + 1]))
        kept = ids >= 0
        waves = ((time[row] - times[kept]).float()[:, None] * attention.frequencies).cos()
        assert edges.features is not None
        key_value = attention.key_value(torch.cat([memory[ids[kept]], waves, edges.features[events[kept]]], 1))
        key, value = key_value[:, :4], key_value[:, 4:]
        query = attention.query(memory[node])
        heads = [slice(0, 2), slice(2, 4)]
        attended = [((key[:, h] @ query[h]) * 2**-0.5).softmax(0) @ value[:, h] for h in heads]
        torch.testing.assert_close(got[row], attention.out(torch.cat([memory[node], *attended])))
    attention.recent.reset()
    empty = attention(lambda ids: memory[ids], nodes, time)
    assert empty.isfinite().all()
    empty.sum().backward()
    assert memory.grad is not None and memory.grad.isfinite().all()
    with pytest.raises(ValueError, match="out_dim is 5, must be a multiple of 2"):
        TemporalAttention(edges, 6, 5)


def test_bad_arguments() -> None:
    edges = trust(20, 5)
    with pytest.raises(ValueError, match="variant is 'third'"):
        SEMBA(edges, "third")
    with pytest.raises(ValueError, match="edges has no features"):
        SEMBA(EdgeList.from_events(edges.src, edges.dst, edges.time))


def test_signs_are_learned(capsys: pytest.CaptureFixture[str]) -> None:
    edges = trust()
    for variant in ("theory", "release"):
        found = run(edges, variant, epochs=3, batch=100, rate=5e-3)
        assert found.auc > 0.75 and found.f1 > 0.7, (variant, found)
    assert "theory: epoch 3 of 3" in capsys.readouterr().out


@pytest.mark.cpu
def test_bitcoin_alpha(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "signed" / "soc-sign-bitcoinalpha.csv"
    if not path.exists():
        pytest.skip(f"no real data at {path}; set ANABRANCH_DATA")
    edges = load_edges(path, columns=(0, 1, 3, 2))[:2500]
    small = tmp_path / "small.csv"
    assert edges.features is not None
    columns = zip(
        edges.src.tolist(), edges.dst.tolist(), edges.features[:, 0].tolist(), edges.time.tolist(), strict=True
    )
    small.write_text("\n".join(",".join(map(str, row)) for row in columns), encoding="utf-8")
    assert main(["--data", str(small), "--epochs", "1"]) == 0
    output = capsys.readouterr().out
    assert all(f"\n{variant} " in output for variant in VARIANTS) and "% negative" in output
