"""Metrics of link prediction against their definitions, and scikit-learn where it is installed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anabranch.temporal import average_precision, hits_at, mean_reciprocal_rank, positive_ranks, roc_auc


def cases() -> list[tuple[Tensor, Tensor]]:
    found = []
    for count in (2, 3, 10, 200):
        for levels in (1, 3, 1000):
            scores = torch.randint(-levels, levels, (count,)).double()
            labels = torch.randint(2, (count,))
            labels[0], labels[-1] = 0, 1
            found.append((scores, labels))
    return found


def by_thresholds(scores: Tensor, labels: Tensor) -> float:
    total, before = 0.0, 0.0
    for threshold in scores.unique().flip(0):
        chosen = scores >= threshold
        true = float(labels[chosen].sum())
        recall = true / float(labels.sum())
        total, before = total + (recall - before) * true / float(chosen.sum()), recall
    return total


def by_pairs(scores: Tensor, labels: Tensor) -> float:
    positive, negative = scores[labels > 0][:, None], scores[labels == 0]
    return float(((positive > negative).double() + (positive == negative).double() / 2).mean())


def test_precision_and_auc_are_their_definitions() -> None:
    for scores, labels in cases():
        assert abs(float(average_precision(scores, labels)) - by_thresholds(scores, labels)) < 1e-12
        assert abs(float(roc_auc(scores, labels)) - by_pairs(scores, labels)) < 1e-12
        for kind in (scores.float().view(-1, 1), scores.to(torch.bfloat16).view(-1, 1)):
            assert float(roc_auc(kind, labels.bool().view(-1, 1))) == float(roc_auc(kind.flatten(), labels))


@pytest.mark.cpu
def test_precision_and_auc_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="no scikit-learn to compare with")
    for scores, labels in cases():
        assert abs(float(average_precision(scores, labels)) - metrics.average_precision_score(labels, scores)) < 1e-12
        assert abs(float(roc_auc(scores, labels)) - metrics.roc_auc_score(labels, scores)) < 1e-12


def test_what_has_no_answer_is_nan() -> None:
    ones, scores = torch.ones(3), torch.tensor([1.0, 2, 3])
    assert average_precision(scores, ones) == 1 and average_precision(scores, 0 * ones).isnan()
    assert roc_auc(scores, ones).isnan() and roc_auc(ones[:0], ones[:0]).isnan()
    broken = torch.tensor([1.0, float("nan"), 3])
    assert average_precision(broken, ones).isnan() and roc_auc(broken, torch.tensor([0, 1, 1])).isnan()
    assert positive_ranks(broken, scores).isnan().tolist() == [False, True, False]
    assert hits_at(1, broken, scores).isnan() and mean_reciprocal_rank(ones[:0], ones).isnan()


def test_ranks_take_the_middle_of_ties() -> None:
    positive = torch.tensor([3.0, 1.0, 0.5, 9.0])
    shared = torch.tensor([1.0, 3.0, 3.0, 0.0])
    expected = [2.0, 3.5, 4.0, 1.0]
    assert positive_ranks(positive, shared).tolist() == expected
    assert positive_ranks(positive, shared.expand(4, 4)).tolist() == expected
    assert float(mean_reciprocal_rank(positive, shared)) == pytest.approx(sum(1 / rank for rank in expected) / 4)
    assert [float(hits_at(k, positive, shared)) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.5, 1]
    rows = torch.randint(5, (50, 20)).double()
    by_row = torch.stack([positive_ranks(row[:1], row[1:])[0] for row in rows])
    assert by_row.equal(positive_ranks(rows[:, 0], rows[:, 1:]))
    with pytest.raises(ValueError, match=r"positive has shape \(4,\) and negatives \(3, 2\)"):
        positive_ranks(positive, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="k is 0"):
        hits_at(0, positive, shared)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\)"):
        roc_auc(positive, positive[:2])


def test_metrics_compile_to_one_graph() -> None:
    def both(scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return average_precision(scores, labels), roc_auc(scores, labels), mean_reciprocal_rank(scores, scores[:3])

    scores, labels = cases()[-1]
    for ours, eager in zip(
        torch.compile(both, fullgraph=True, backend="aot_eager")(scores, labels), both(scores, labels), strict=True
    ):
        assert ours.equal(eager)
