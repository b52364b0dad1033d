"""Routers: from logits to a `Plan` whose weights carry the gradient.

What holds for every router here:

- **Scores** are computed in float32 (float64 for float64 logits), and that is the dtype of the plan's
  weights.
- **Order.** Experts rank by their logit, the lower id first among equal logits. Ranking by logits and not by
  scores keeps apart what the score function rounds together, and makes the choice the same on every device.
- **Infinite logits.** -inf masks an expert: its score is 0. Experts at +inf share the whole softmax equally
  (the limit of huge logits) and have sigmoid 1. Neither gets a gradient.
- **Zero weights are not routed.** An expert whose weight would be exactly 0, because it is masked or its
  score underflows, adds nothing to the output and nothing to a gradient, so its slot is dropped even where
  `k` or `k_min` asks for more experts. A token all of whose logits are -inf takes no expert; no weight is
  ever NaN.
- **NaN** raises `ValueError` in eager mode on the CPU. On a GPU and in compiled code, where looking would
  cost a host sync, it counts as -inf: weight 0, no gradient, and the other experts are as if it were masked.
- **Gradient.** The choice has none: it is piecewise constant. The router learns through the weights of the
  experts that were kept. With raw softmax weights an expert u that was not kept still receives `-p_u *
  sum_kept p_e g_e` (g: gradient of the weights) through the normalisation; with raw sigmoid weights it
  receives nothing. With `renormalize=True` the weights are the softmax over the kept logits (for sigmoid,
  over their log-sigmoids, which is s_e / sum s): only kept logits receive gradient, it sums to 0 over them
  for softmax, and a single kept expert has weight 1 and no gradient.
- **Cost.** O(T E log E) for the sort and O(T E) else, in a fixed number of torch ops; the plan has capacity
  `T * k_max`. No value reaches the host (but for the NaN check above), no shape depends on data.

T = 0 and E = 1 are fine.
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
    check_quantile,
    check_score,
    normalized_entropy,
    order_statistic,
    score_logits,
    softmax,
)
from anabranch.plan import Plan, from_top_k


def route_top_k(logits: Tensor, k: int, *, score: Score = "softmax", renormalize: bool = False) -> Plan:
    """The `k` experts of largest logit for each token.

    Source: Shazeer et al., arXiv 1701.06538 (top-k gating: softmax over the kept logits, `renormalize=True`);
    raw softmax weights as in Switch (arXiv 2101.03961, k = 1); sigmoid scores as in DeepSeek-V3 (arXiv
    2412.19437).

    Args:
        logits: floating `[T, E]`.
        k: experts per token, 1 to E.
        score: "softmax" over all E logits, or "sigmoid" of each alone.
        renormalize: divide the weights of a token by their sum.

    Returns:
        A plan of E groups, T items and capacity `T * k`; weights float32 (float64 for float64). Its gradient
        reaches the router as the module says: through kept weights, and with raw softmax through its
        normalisation.

    Raises:
        ValueError: wrong shape or dtype, `k` out of range, unknown `score`, NaN (CPU, eager).

    Cost:
        O(T E log E) for the ranking, in a fixed number of torch ops; no host sync.
    """
    op = "route_top_k"
    check_score(op, score)
    scores = score_logits(op, logits)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(
            f"{op}: k is {k}, must be between 1 and the number of experts ({scores.shape[1]}); route to fewer experts"
        )
    _, order = _rank(scores)
    return _plan_of_prefix(scores, order[:, :k], k, score, renormalize)


def route_top_p(
    logits: Tensor,
    p: float,
    *,
    k_min: int = 1,
    k_max: int | None = None,
    include_crossing: bool = True,
    renormalize: bool = False,
) -> Plan:
    """As many experts as it takes for their softmax mass to exceed `p`: more where the router is unsure.

    The experts of a token rank by logit; `m_j` is the mass of the first j. The expert that *crosses* is the
    first j with `m_j > p`, strictly: mass equal to `p` does not yet exceed it. With `include_crossing` the
    kept prefix ends with that expert, without it just before. If none crosses, as for p = 1, all are kept.
    The count is then clipped to `[k_min, k_max]`. Masses are summed in float64, so that the cut does not hang
    on the order of a parallel sum, and compared with `p` as given.

    Source: Huang et al., "Harder Tasks Need More Experts: Dynamic Routing in MoE Models", arXiv 2403.07652:
    the smallest prefix of the sorted softmax whose sum exceeds the threshold, crossing expert included, raw
    weights.

    Args:
        logits: floating `[T, E]`.
        p: mass threshold, 0 to 1.
        k_min: fewest experts per token; 0 lets tokens without any pass if `include_crossing` is False.
        k_max: most experts per token, default E. Bounds beyond E mean E.
        include_crossing: keep the expert that crosses `p`.
        renormalize: divide the weights of a token by their sum.

    Returns:
        A plan of E groups, T items and capacity `T * min(k_max, E)`; weights float32 (float64 for float64).
        Gradient reaches the router through kept weights and, without `renormalize`, all logits through the
        softmax; the number of experts has none, which is what `losses.entropy_loss` is for.

    Raises:
        ValueError: wrong shape or dtype, `p` or a bound out of range, NaN (CPU, eager).

    Cost:
        As `route_top_k`, and a running sum over the first k_max experts.
    """
    op = "route_top_p"
    _check_mass(op, p)
    scores = score_logits(op, logits)
    k_min, k_max = _bounds(op, k_min, k_max, scores.shape[1])
    _, order = _rank(scores)
    probs = softmax(scores)
    counts = _prefix_within(probs, order[:, :k_max], p) + int(include_crossing)
    return _plan_of_prefix(scores, order[:, :k_max], counts.clamp(k_min, k_max), "softmax", renormalize, probs)


def route_tsallis(
    logits: Tensor,
    *,
    entropy_threshold: float = 0.9,
    q: float = 1.1,
    eps: float = 1e-5,
    p: float = 0.75,
    k_min: int = 2,
    k_max: int | None = None,
    entropy: Entropy = "tsallis",
) -> Plan:
    """DynMoLE's hybrid: all experts where the router's entropy is high, a top-p prefix where it is low.

    A token whose normalised entropy (`scores.normalized_entropy`) exceeds `entropy_threshold` takes all
    experts, up to `k_max`; any other the prefix of its sorted softmax whose mass does not exceed `p` (the
    crossing expert excluded), and always the first `k_min`. A threshold of 1 or more turns the first case
    off. Weights are the raw softmax.

    Source: Li et al., "DynMoLE", arXiv 2504.00661, with its defaults.

    Args:
        logits: floating `[T, E]`.
        entropy_threshold: at least 0.
        q, eps, entropy: of the normalised entropy; q = 1 is Shannon's.
        p: mass threshold, 0 to 1, with equality as in `route_top_p(include_crossing=False)`.
        k_min, k_max: fewest and most experts per token; bounds beyond E mean E.

    Returns:
        A plan of E groups, T items and capacity `T * min(k_max, E)`; weights float32 (float64 for float64).
        Gradient reaches all logits through the softmax of the kept weights; the entropy has none here
        (`losses.tsallis_loss`).

    Raises:
        ValueError: wrong shape or dtype, an argument out of range, NaN (CPU, eager).

    Cost:
        As `route_top_p`, and O(T E) for the entropy where the threshold is below 1.
    """
    op = "route_tsallis"
    _check_mass(op, p)
    check_entropy(op, q, eps, entropy)
    if not entropy_threshold >= 0:
        raise ValueError(f"{op}: entropy_threshold is {entropy_threshold}, must be at least 0; 1 or more turns it off")
    scores = score_logits(op, logits)
    k_min, k_max = _bounds(op, k_min, k_max, scores.shape[1])
    _, order = _rank(scores)
    probs = softmax(scores)
    counts = _prefix_within(probs, order[:, :k_max], p).clamp(k_min, k_max)
    if entropy_threshold < 1:
        unsure = normalized_entropy(probs.detach(), q, eps, entropy) > entropy_threshold
        counts = counts.masked_fill(unsure[:, None], k_max)
    return _plan_of_prefix(scores, order[:, :k_max], counts, "softmax", False, probs)


def route_percentile(
    logits: Tensor,
    q: float | None = None,
    *,
    threshold: Tensor | None = None,
    k_max: int | None = None,
    score: Score = "softmax",
    renormalize: bool = False,
) -> Plan:
    """The experts whose logit lies above a quantile: at least one, at most `k_max`, larger logits first.

    DynaMoE (arXiv 2603.01697) takes experts above a percentile of the gate logits, but what is known to us of
    its rule leaves open of *which* logits. Both readings are here, and give one of the two:

    - `q`: the q-quantile of the token's own E logits. An expert is kept if its logit is strictly above the
      order statistic `floor(q (E - 1))`, counted from 0; no logit lies between that and the interpolated
      quantile, so every rule of interpolation keeps the same experts. Without ties every token keeps `E - 1 -
      floor(q (E - 1))`.
    - `threshold`: a quantile over tokens, from a `PercentileThreshold`. Strictly larger logits are kept, so
      the number varies from token to token.

    Masked experts (-inf) count among the E logits.

    Args:
        logits: floating `[T, E]`.
        q: quantile, 0 to 1.
        threshold: floating tensor with one element, on the device of the logits; NaN keeps one expert per
            token.
        k_max: most experts per token, default E; beyond E means E.
        score: "softmax" over all E logits, or "sigmoid" of each alone.
        renormalize: divide the weights of a token by their sum.

    Returns:
        A plan of E groups, T items and capacity `T * min(k_max, E)`; weights float32 (float64 for float64).
        Its gradient reaches the router as the module says; the threshold gets none.

    Raises:
        ValueError: wrong shape or dtype, an argument out of range, both or neither of `q` and `threshold`, a
            threshold on another device, NaN (CPU, eager).

    Cost:
        As `route_top_k`.
    """
    op = "route_percentile"
    check_score(op, score)
    if (q is None) == (threshold is None):
        # The threshold's value is not printed: on a GPU that would stall the stream.
        given = "None" if threshold is None else "given"
        raise ValueError(
            f"{op}: q is {q} and threshold is {given}, must be one given and the other None; "
            "choose one reading of the rule"
        )
    if q is not None:
        check_quantile(op, q)
    if threshold is not None:
        _check_threshold(op, threshold, logits)
    scores = score_logits(op, logits)
    num_experts = scores.shape[1]
    _, k_max = _bounds(op, 1, k_max, num_experts)
    ranked, order = _rank(scores)
    if threshold is not None:
        bound = threshold.detach().reshape(1, 1)
    else:
        assert q is not None
        statistic = order_statistic(q, num_experts)
        bound = ranked[:, num_experts - 1 - statistic, None]
    counts = (ranked[:, :k_max] > bound).sum(1, keepdim=True).clamp(1, k_max)
    return _plan_of_prefix(scores, order[:, :k_max], counts, score, renormalize)


def _rank(scores: Tensor) -> tuple[Tensor, Tensor]:
    ranked = torch.sort(scores.detach(), dim=1, descending=True, stable=True)
    return ranked.values, ranked.indices


def _prefix_within(probs: Tensor, order: Tensor, p: float) -> Tensor:
    """Length of the longest prefix whose mass does not exceed p, `[T, 1]`."""
    mass = probs.detach().gather(1, order).cumsum(1, dtype=torch.float64)
    # A sum that rounds to more than 1 must not count as exceeding p = 1.
    return (mass <= (p if p < 1 else math.inf)).sum(1, keepdim=True)


def _plan_of_prefix(
    scores: Tensor,
    order: Tensor,
    counts: Tensor | int,
    score: Score,
    renormalize: bool,
    probs: Tensor | None = None,
) -> Plan:
    """Plan of the first `counts` of the ranked experts `order` [T, K]; `probs` saves a second softmax."""
    dropped = torch.arange(order.shape[1], device=order.device) >= counts
    if renormalize:
        kept = scores.gather(1, order)
        kept = F.logsigmoid(kept) if score == "sigmoid" else kept
        weights = softmax(kept.masked_fill(dropped, -math.inf))
    else:
        if probs is None:
            probs = scores.sigmoid() if score == "sigmoid" else softmax(scores)
        weights = probs.gather(1, order).masked_fill(dropped, 0.0)
    num_experts = scores.shape[1]
    return from_top_k(order.masked_fill(weights == 0, num_experts), weights, num_groups=num_experts)


def _bounds(op: str, k_min: int, k_max: int | None, num_experts: int) -> tuple[int, int]:
    if k_min < 0:
        raise ValueError(f"{op}: k_min is {k_min}, must be at least 0; 0 lets tokens without experts pass")
    if k_max is not None and (k_max < 1 or k_max < k_min):
        raise ValueError(
            f"{op}: k_max is {k_max}, must be at least 1 and at least k_min ({k_min}); "
            "raise it, or pass None for all experts"
        )
    k_max = num_experts if k_max is None else min(k_max, num_experts)
    return min(k_min, k_max), k_max


def _check_mass(op: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{op}: p is {p}, must lie between 0 and 1; it is a share of the softmax mass")


def _check_threshold(op: str, threshold: Tensor, logits: Tensor) -> None:
    if threshold.numel() != 1:
        raise ValueError(
            f"{op}: threshold has shape {tuple(threshold.shape)}, must have one element; "
            "take one of a PercentileThreshold"
        )
    if not threshold.is_floating_point():
        raise ValueError(f"{op}: threshold is {threshold.dtype}, must be a floating dtype; convert it with .float()")
    if threshold.device != logits.device:
        raise ValueError(
            f"{op}: threshold is on {threshold.device}, must be on {logits.device} like logits; "
            "move it with .to(logits.device)"
        )
