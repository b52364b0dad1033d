"""Router logits to scores: one definition of infinities, NaN and entropy for the routers and their losses."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Entropy = Literal["tsallis", "renyi"]
Score = Literal["softmax", "sigmoid"]

_INF = math.inf


def score_logits(op: str, logits: Tensor) -> Tensor:
    """The logits in the dtype of the scores, with NaN replaced by -inf where it cannot be refused.

    Args:
        op: the caller, for messages.
        logits: floating `[T, E]`, E >= 1.

    Returns:
        `[T, E]`, float64 for float64 and else float32, differentiable; NaN positions get no gradient.

    Raises:
        ValueError: wrong shape or dtype; a NaN, where looking costs no host sync (eager, on the CPU).
    """
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(
            f"{op}: logits has shape {tuple(logits.shape)}, must be (num_tokens, num_experts), num_experts >= 1; "
            "flatten the tokens with .flatten(0, -2)"
        )
    if not logits.is_floating_point():
        raise ValueError(f"{op}: logits is {logits.dtype}, must be a floating dtype; convert it with .float()")
    scores = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    if _has_readable_values(logits):
        # amax carries a NaN through, so that the whole matrix is read once and only its rows are looked at.
        nan_rows = scores.detach().amax(1).isnan().nonzero()
        if nan_rows.numel() > 0:
            raise ValueError(
                f"{op}: logits holds NaN at row {int(nan_rows[0])}, must be finite or infinite; "
                "look for an overflow in what feeds the router"
            )
    return torch.nan_to_num(scores, nan=-_INF, posinf=_INF, neginf=-_INF)


def _has_readable_values(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    return type(x) in (Tensor, torch.nn.Parameter)  # fake tensors and their like hold no values


def softmax(scores: Tensor) -> Tensor:
    """Softmax of each row with its limits: +inf entries share the mass equally, a row of -inf gives zeros.

    Args:
        scores: floating `[T, K]` without NaN, as `score_logits` returns it.

    Returns:
        `[T, K]`. Infinite entries and, in a row with +inf, all entries get no gradient.
    """
    return torch.softmax(_below_top(scores), 1).masked_fill(_nothing_above(scores), 0.0)


def log_softmax(scores: Tensor) -> Tensor:
    """Logarithm of `softmax`, with 0 in place of -inf where the softmax is 0: for sums of p log p."""
    log_probs = torch.log_softmax(_below_top(scores), 1)
    return log_probs.masked_fill(softmax(scores.detach()) == 0, 0.0)


def _below_top(scores: Tensor) -> Tensor:
    top = scores.detach().amax(1, keepdim=True)
    # inf - inf marks the top entries of a row whose top is infinite: they are 0 below it.
    return torch.nan_to_num(scores - top, nan=0.0, neginf=-_INF)


def _nothing_above(scores: Tensor) -> Tensor:
    return scores.detach().amax(1, keepdim=True) == -_INF


def normalized_entropy(probs: Tensor, q: float, eps: float, entropy: Entropy) -> Tensor:
    """Entropy of each row over that of the uniform distribution, as DynMoLE (arXiv 2504.00661) has it.

    Tsallis: `(1 - sum (p + eps)^q) / (1 - E^(1-q))`. Renyi: `ln sum (p + eps)^q / ((1-q) ln E)`. Both at q =
    1: Shannon, `-sum p ln(p + eps) / ln E`. `eps` keeps the gradient finite at p = 0 and shifts the result by
    about `q eps sum p^(q-1) / (1 - E^(1-q))`: for the limit q -> 1 pass 1 itself, not a number near it. One
    expert: 0.

    Args:
        probs: floating `[T, E]`, rows that sum to 1.

    Returns:
        `[T]`, about 0 to 1.
    """
    num_experts = probs.shape[1]
    if num_experts == 1:
        return probs.sum(1) * 0.0
    log_experts = math.log(num_experts)
    if q == 1:
        return -(probs * (probs + eps).log()).sum(1) / log_experts
    powers = (probs + eps).pow(q).sum(1)
    if entropy == "renyi":
        return powers.log() / ((1 - q) * log_experts)
    return (1 - powers) / -math.expm1((1 - q) * log_experts)


def check_entropy(op: str, q: float, eps: float, entropy: str) -> None:
    """Raises ValueError where `normalized_entropy` is not defined."""
    if not 0 < q < _INF:
        raise ValueError(f"{op}: q is {q}, must be positive and finite; 1 is Shannon's entropy")
    if not 0 < eps < 1:
        raise ValueError(f"{op}: eps is {eps}, must lie between 0 and 1; 1e-5 is DynMoLE's")
    if entropy not in ("tsallis", "renyi"):
        raise ValueError(f"{op}: entropy is {entropy!r}, must be 'tsallis' or 'renyi'; pass one of these")


def check_score(op: str, score: str) -> None:
    """Raises ValueError for an unknown score function."""
    if score not in ("softmax", "sigmoid"):
        raise ValueError(f"{op}: score is {score!r}, must be 'softmax' or 'sigmoid'; pass one of these")


def order_statistic(q: float, count: int) -> int:
    """Place, counted from 0, of the q-quantile among `count` sorted values."""
    # The product may fall just short of a whole number: 0.29 * 100 is 28.999999999999996.
    return math.floor(q * (count - 1) + 1e-9)


def check_quantile(op: str, q: float) -> None:
    """Raises ValueError for what is no quantile."""
    if not 0 <= q <= 1:
        raise ValueError(f"{op}: q is {q}, must lie between 0 and 1; it is a quantile, 0.5 for the median")
