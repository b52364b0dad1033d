"""Losses that shape a router. All are unscaled: the caller multiplies by its coefficient.

Each takes the router's logits `[T, E]` in any floating dtype and returns a scalar in float32 (float64 for
float64 logits). Infinities and NaN are as in `routers`: masked experts (-inf) have probability 0, a token all
of whose logits are -inf adds 0, NaN raises `ValueError` in eager mode on the CPU and else counts as -inf. T =
0 gives 0. Cost: O(T E).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from anabranch.experts.scores import (
    Entropy,
    Score,
    check_entropy,
    check_score,
    log_softmax,
    normalized_entropy,
    score_logits,
    softmax,
)
from anabranch.plan import Plan, segment_reduce


def load_balance_loss(logits: Tensor, plan: Plan, *, score: Score = "softmax") -> Tensor:
    """`E * sum_e f_e P_e`: f_e the share of routed pairs that went to expert e, P_e its mean probability.

    Perfect balance gives 1 whatever the number of experts per token, all tokens on one sure expert give E. A
    plan without entries gives 0.

    Source: Switch Transformer (Fedus et al., arXiv 2101.03961: alpha * N * sum f_i P_i for k = 1), with f as
    a share of pairs, so that k may vary. The coefficient is the caller's: "Harder Tasks Need More Experts"
    did not release its own.

    Gradient: through P alone. An expert with more than its share has its probability pushed down in every
    token, in proportion to f_e; f, a count, has no gradient.

    Args:
        logits: floating `[T, E]`, those the plan was made from.
        plan: T items, E groups.
        score: "sigmoid" takes sigmoids divided by their sum over a token's experts as its probabilities.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: wrong shape or dtype, a plan of other sizes or on another device, unknown `score`, NaN (CPU,
            eager).

    Cost:
        O(T E).
    """
    op = "load_balance_loss"
    check_score(op, score)
    scores = score_logits(op, logits)
    _check_plan(op, scores, plan)
    probs = softmax(F.logsigmoid(scores) if score == "sigmoid" else scores)
    share = plan.group_sizes().to(probs.dtype) / plan.group_offsets[-1].clamp(min=1)
    return scores.shape[1] * (share * _mean_over_tokens(probs)).sum()


def dynmole_balance_loss(logits: Tensor, plan: Plan) -> Tensor:
    """`E * sum_e mean_t(w_te) mean_t(p_te)`: w the plan's weights (0 where not routed), p the softmax.

    Source: DynMoLE (Li et al., arXiv 2504.00661), whose default coefficient is 1e-3.

    Gradient: through both factors, p and the plan's weights; each expert is pushed down in proportion to its
    other mean.

    Args:
        logits: floating `[T, E]`, those the plan was made from.
        plan: T items, E groups, with weights.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: wrong shape or dtype, a plan of other sizes, on another device or without weights, NaN (CPU,
            eager).

    Cost:
        O(T E), and O(capacity) for the plan's weights.
    """
    op = "dynmole_balance_loss"
    scores = score_logits(op, logits)
    _check_plan(op, scores, plan)
    if plan.weights is None:
        raise ValueError(
            f"{op}: the plan has no weights, must have the router's; pass the plan as the router returned it"
        )
    weight_sums = segment_reduce(plan.weights[:, None], plan, "sum")[:, 0].to(scores.dtype)
    mean_weights = weight_sums / max(scores.shape[0], 1)
    return scores.shape[1] * (mean_weights * _mean_over_tokens(softmax(scores))).sum()


def entropy_loss(logits: Tensor) -> Tensor:
    """Mean over tokens of the softmax entropy `-sum_e p_e ln p_e`, in nats: 0 to ln E.

    Source: the "dynamic loss" of Huang et al., arXiv 2403.07652, that keeps top-p routing from spreading its
    mass to take more experts. Its coefficient was not released.

    Gradient: `dH/dx_e = -p_e (ln p_e + H) / T`: logits of likely experts rise, of unlikely ones fall. It
    vanishes where a token's probabilities are uniform.

    Args:
        logits: floating `[T, E]`.

    Returns:
        A scalar, float32 (float64 for float64 logits); 0 without tokens.

    Raises:
        ValueError: wrong shape or dtype, NaN (CPU, eager).

    Cost:
        O(T E).
    """
    scores = score_logits("entropy_loss", logits)
    return _mean_over_tokens(-(softmax(scores) * log_softmax(scores)).sum(1))


def tsallis_loss(logits: Tensor, *, q: float = 1.1, eps: float = 1e-5, entropy: Entropy = "tsallis") -> Tensor:
    """Mean over tokens of the softmax's normalised entropy, about 0 to 1: see `scores.normalized_entropy`.

    Source: DynMoLE (Li et al., arXiv 2504.00661), whose default coefficient is 1e-2.

    Gradient: to every logit through the softmax, towards fewer experts; vanishes at uniform probabilities.

    Args:
        logits: floating `[T, E]`.
        q, eps, entropy: as `route_tsallis`.

    Returns:
        A scalar, float32 (float64 for float64 logits); 0 without tokens.

    Raises:
        ValueError: wrong shape or dtype, an argument out of range, NaN (CPU, eager).

    Cost:
        O(T E).
    """
    op = "tsallis_loss"
    check_entropy(op, q, eps, entropy)
    scores = score_logits(op, logits)
    probs = softmax(scores)
    # Without any probability there is no entropy, yet the formula would give a number above 1.
    entropies = normalized_entropy(probs, q, eps, entropy).masked_fill(_all_masked(scores), 0.0)
    return _mean_over_tokens(entropies)


def z_loss(logits: Tensor) -> Tensor:
    """Mean over tokens of `logsumexp(logits)^2`: keeps logits small, where low precision resolves them.

    Source: ST-MoE (Zoph et al., arXiv 2202.08906), router z-loss.

    Gradient: `2 lse p_e / T` to every logit: all fall together where lse > 0 and rise where lse < 0. A logit
    of +inf makes the loss +inf, and its gradient is not finite.

    Args:
        logits: floating `[T, E]`.

    Returns:
        A scalar, float32 (float64 for float64 logits); 0 without tokens.

    Raises:
        ValueError: wrong shape or dtype, NaN (CPU, eager).

    Cost:
        O(T E).
    """
    scores = score_logits("z_loss", logits)
    masked = _all_masked(scores)
    log_sums = torch.logsumexp(scores.masked_fill(masked[:, None], 0.0), 1).masked_fill(masked, 0.0)
    return _mean_over_tokens(log_sums.square())


def _mean_over_tokens(values: Tensor) -> Tensor:
    return values.sum(0) / max(values.shape[0], 1)


def _all_masked(scores: Tensor) -> Tensor:
    return scores.detach().amax(1) == -math.inf


def _check_plan(op: str, scores: Tensor, plan: Plan) -> None:
    if (plan.num_items, plan.num_groups) != tuple(scores.shape):
        raise ValueError(
            f"{op}: plan has {plan.num_items} items and {plan.num_groups} groups, must be made from logits of "
            f"shape {tuple(scores.shape)}; pass the logits that were routed"
        )
    if plan.device != scores.device:
        raise ValueError(f"{op}: plan is on {plan.device}, must be on {scores.device} like logits; route on one device")
