"""Metrics of link prediction, exact with ties, on the device of the scores and without a host sync.

A score that is NaN makes the metric NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.core.arguments import check_same_device


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under precision and recall as a sum of steps: `sum_n (R_n - R_{n-1}) P_n` over distinct scores, descending.

    Args:
        scores: `[...]`, higher is more likely; any floating dtype.
        labels: as scores, bool or 0/1.

    Returns:
        float64 `[]`, that of sklearn.metrics.average_precision_score; NaN where no label is true.

    Raises:
        ValueError: shapes or devices that do not fit.

    Cost:
        One sort.
    """
    scores, labels = _flat("average_precision", scores, labels)
    order = scores.argsort(descending=True)
    sorted_scores, positive = scores[order], labels[order].double()
    true = positive.cumsum(0)
    precision = true / torch.arange(1, len(true) + 1, device=true.device)
    # Events of one score have one threshold: the precision after the last of them.
    _, last = _ties(sorted_scores)
    return _unless_nan(scores, (positive * precision[last]).sum() / positive.sum())


def roc_auc(scores: Tensor, labels: Tensor) -> Tensor:
    """The share of (positive, negative) pairs in the right order, ties counted half.

    Args, Raises, Cost: as `average_precision`.

    Returns:
        float64 `[]`, that of sklearn.metrics.roc_auc_score; NaN where the labels are all the same.
    """
    scores, labels = _flat("roc_auc", scores, labels)
    order = scores.argsort()
    sorted_scores, positive = scores[order], labels[order].double()
    first, last = _ties(sorted_scores)
    rank = (first + last).double() / 2 + 1
    positives = positive.sum()
    pairs = positives * (len(positive) - positives)
    return _unless_nan(scores, ((positive * rank).sum() - positives * (positives + 1) / 2) / pairs)


def positive_ranks(positive: Tensor, negatives: Tensor) -> Tensor:
    """The place of each positive among its negatives, from 1; of equal scores the mean of first and last place.

    So a model that scores all alike is in the middle, not at the top. It is the rank of TGB and OGB's MRR.

    Args:
        positive: `[B]` scores.
        negatives: `[B, K]`, those of each positive; or `[K]`, the same for all.

    Returns:
        float64 `[B]`, NaN for a positive whose scores have one.

    Raises:
        ValueError: shapes or devices that do not fit.

    Cost:
        `[B, K]` is read twice; `[K]` is sorted.
    """
    check_same_device("positive_ranks", "positive", positive, negatives=negatives)
    fits = positive.dim() == 1 and (negatives.dim() == 1 or (negatives.dim() == 2 and len(negatives) == len(positive)))
    if not fits:
        raise ValueError(
            f"positive_ranks: positive has shape {tuple(positive.shape)} and negatives {tuple(negatives.shape)}, "
            "must be (B,) and (B, K) or (K,); give each positive a row of negatives"
        )
    if negatives.dim() == 2:
        above = (negatives > positive[:, None]).sum(1).double()
        equal = (negatives == positive[:, None]).sum(1).double()
        bad = positive.isnan() | negatives.isnan().any(1)
    else:
        ascending = negatives.sort().values
        from_first = len(ascending) - torch.searchsorted(ascending, positive, right=False)
        above = (len(ascending) - torch.searchsorted(ascending, positive, right=True)).double()
        equal = from_first.double() - above
        bad = positive.isnan() | negatives.isnan().any()
    return torch.where(bad, torch.nan, 1 + above + equal / 2)


def mean_reciprocal_rank(positive: Tensor, negatives: Tensor) -> Tensor:
    """The mean of `1 / positive_ranks(positive, negatives)`.

    Args, Raises, Cost: as `positive_ranks`.

    Returns:
        float64 `[]`, in (0, 1]: TGB's MRR for `[B, K]` negatives; NaN for no positives or a score that is NaN.
    """
    return (1 / positive_ranks(positive, negatives)).mean()


def hits_at(k: int, positive: Tensor, negatives: Tensor) -> Tensor:
    """The share of positives with `positive_ranks(positive, negatives) <= k`.

    Args:
        k: places that count, from 1.
        positive, negatives: as `positive_ranks`. With shared negatives `[K]` it is OGB's Hits@k, the share above the
            k-th best negative, but for ties with it.

    Returns:
        float64 `[]`; NaN for no positives or a score that is NaN.

    Raises:
        ValueError: k below 1; shapes or devices that do not fit.

    Cost:
        As `positive_ranks`.
    """
    if k < 1:
        raise ValueError(f"hits_at: k is {k}, must be at least 1; ask for the first place or more")
    places = positive_ranks(positive, negatives)
    return _unless_nan(places, (places <= k).double().mean())


def _flat(op: str, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    check_same_device(op, "scores", scores, labels=labels)
    if scores.shape != labels.shape:
        raise ValueError(
            f"{op}: labels has shape {tuple(labels.shape)}, must be {tuple(scores.shape)} like scores; label each score"
        )
    return scores.detach().reshape(-1), labels.detach().reshape(-1)


def _ties(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """For each place of a sorted row the first and the last place with an equal value."""
    place = torch.arange(len(ordered), device=ordered.device)
    changes = ordered[1:] != ordered[:-1]
    edge = changes.new_ones(min(1, len(ordered)))
    first = torch.where(torch.cat([edge, changes]), place, 0).cummax(0).values
    last = torch.where(torch.cat([changes, edge]), place, len(ordered)).flip(0).cummin(0).values.flip(0)
    return first, last


def _unless_nan(scores: Tensor, metric: Tensor) -> Tensor:
    return torch.where(scores.isnan().any(), torch.nan, metric)
