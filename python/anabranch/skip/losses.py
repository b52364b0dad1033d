"""Losses that train skip policies. All are unscaled scalars: the caller multiplies by its coefficient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

UNLABELLED = -100
"""The label of what adds nothing to `focal_loss`."""


def class_balanced_weights(counts: Sequence[int], *, beta: float = 0.999) -> Tensor:
    """`(1 - beta) / (1 - beta^count)` per class, scaled to mean 1: rare classes weigh more.

    Source: class-balanced loss (Cui et al., arXiv 1901.05555), as Dr.LLM uses it (arXiv 2510.12773: beta .999). A class
    without samples gets weight 0 and no part in the mean; the formula would divide by zero.

    Args:
        counts: samples of each class.
        beta: in [0, 1); 0 weighs all classes alike, towards 1 by the inverse of the count.

    Returns:
        float32 `[classes]` on the default device.

    Raises:
        ValueError: beta out of range, a negative count, or no sample at all.

    Cost:
        O(classes) on the host.
    """
    op = "class_balanced_weights"
    if not 0 <= beta < 1:
        raise ValueError(f"{op}: beta is {beta}, must be at least 0 and below 1; the paper's is 0.999")
    if not counts or min(counts) < 0 or max(counts) == 0:
        raise ValueError(f"{op}: counts is {list(counts)}, must be at least 0 with one above; count the labels")
    weights = [(1 - beta) / (1 - beta**count) if count else 0.0 for count in counts]
    present = sum(count > 0 for count in counts)
    scale = present / sum(weights)
    return torch.tensor([weight * scale for weight in weights])


def focal_loss(logits: Tensor, labels: Tensor, *, class_weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Mean over labelled rows of `-w_c (1 - p_c)^gamma ln p_c`, c the label: sure rows count less.

    Source: focal loss (Lin et al., arXiv 1708.02002), as Dr.LLM trains its routers (arXiv 2510.12773: gamma 2).

    Gradient: to the logits of labelled rows. It vanishes where p_c is 1; with gamma 0 it is that of the cross-entropy.

    Args:
        logits: floating `[..., C]`.
        labels: int64 `[...]` of classes; `UNLABELLED` rows add nothing.
        class_weights: floating `[C]`; None: 1.
        gamma: at least 0.

    Returns:
        A scalar in float32 (float64 for float64 logits); 0 where no row is labelled.

    Raises:
        ValueError: shapes that do not fit, labels of another dtype, negative gamma. Labels out of range are torch's
            error.

    Cost:
        O(rows C), no host read.
    """
    op = "focal_loss"
    if logits.dim() < 1 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{op}: labels has shape {tuple(labels.shape)}, must be {tuple(logits.shape[:-1])} as logits without its "
            "last dimension; give one label per row"
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"{op}: labels is {labels.dtype}, must be int64; convert it with .long()")
    if class_weights is not None and class_weights.shape != logits.shape[-1:]:
        raise ValueError(
            f"{op}: class_weights has shape {tuple(class_weights.shape)}, must be ({logits.shape[-1]},); "
            "give one weight per class"
        )
    if gamma < 0:
        raise ValueError(f"{op}: gamma is {gamma}, must be at least 0; 0 is the cross-entropy")
    scores = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    labelled = labels != UNLABELLED
    classes = labels.masked_fill(~labelled, 0)
    log_p = F.log_softmax(scores, -1).gather(-1, classes[..., None])[..., 0]
    # -expm1(log p) is 1 - p without cancellation. At p = 1 a power below 1 has no finite slope, hence the floor.
    missing = (-torch.expm1(log_p)).clamp(min=torch.finfo(scores.dtype).tiny)
    losses = -log_p if gamma == 0 else -log_p * missing**gamma
    if class_weights is not None:
        losses = losses * class_weights.to(scores)[classes]
    return losses.masked_fill(~labelled, 0).sum() / labelled.sum().clamp(min=1)


def budget_loss(shares: Tensor, target: float) -> Tensor:
    """`(mean(shares) - target)^2`: pulls the mean of gates, widths or probabilities to a budget.

    Source: E-DiT (arXiv 2602.13993) for gates and widths, FiRST (arXiv 2410.12513) for its share of layers that run,
    where the form is ours, and Duo-LLM (arXiv 2410.10846) for the probability of the big FFN.

    Gradient: the same `2 (mean - target) / n` to each share: it says how much runs, not where.

    Args:
        shares: floating, any shape; straight-through values measure what really ran.
        target: in [0, 1].

    Returns:
        A scalar in float32 (float64 for float64 shares). Without any share it is 0.

    Raises:
        ValueError: target out of range.

    Cost:
        O(n), no host read.
    """
    if not 0 <= target <= 1:
        raise ValueError(f"budget_loss: target is {target}, must lie between 0 and 1; it is a share")
    values = shares.to(torch.float64 if shares.dtype == torch.float64 else torch.float32)
    return (values.mean() - target).square() if values.numel() else values.sum()
