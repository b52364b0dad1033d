"""The routers' rules once more, one token at a time in plain Python and float64, and plans as dictionaries."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from hypothesis import strategies as st

from anabranch import Plan

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INF = math.inf


@st.composite
def logits(draw: st.DrawFn) -> torch.Tensor:
    """`[T, E]` with T from 0 and E from 1: ties, near values, masks and +inf, in every dtype."""
    experts = draw(st.integers(1, 7))
    finite = draw(st.sampled_from([st.integers(-2, 2), st.floats(-6, 6, width=16), st.just(1)]))
    infinite = draw(st.sampled_from([st.nothing(), st.just(-INF), st.sampled_from([-INF, INF])]))
    row = st.lists(finite | infinite, min_size=experts, max_size=experts)
    rows = draw(st.lists(row, max_size=6))
    values = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), experts)
    return values.to(draw(st.sampled_from(DTYPES)))


def ranked(row: list[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda e: (-row[e], e))


def softmax(row: list[float]) -> list[float]:
    top = max(row, default=0.0)
    if top == -INF:
        return [0.0] * len(row)
    if top == INF:
        return [(value == INF) / row.count(INF) for value in row]
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def sigmoid(value: float) -> float:
    return 0.0 if value == -INF else 1 / (1 + math.exp(-value))


def weights(row: list[float], kept: list[int], score: str = "softmax", renormalize: bool = False) -> dict[int, float]:
    """Weight of each kept expert; those whose weight is 0 are not routed."""
    if score == "sigmoid":
        found = {e: sigmoid(row[e]) for e in kept}
        total = sum(found.values()) if renormalize else 1.0
        found = {e: w / total for e, w in found.items() if w > 0}
    elif renormalize:
        found = dict(zip(kept, softmax([row[e] for e in kept]), strict=True))
    else:
        probs = softmax(row)
        found = {e: probs[e] for e in kept}
    return {e: w for e, w in found.items() if w > 0}


def clip(count: int, k_min: int, k_max: int | None, experts: int) -> int:
    most = experts if k_max is None else min(k_max, experts)
    return min(max(count, min(k_min, most)), most)


def masses(row: list[float]) -> list[float]:
    """Mass of the first 1, 2, ... experts."""
    probs, order = softmax(row), ranked(row)
    return [math.fsum(probs[e] for e in order[: j + 1]) for j in range(len(row))]


def count_within(row: list[float], p: float) -> int:
    """Length of the longest prefix whose mass does not exceed p."""
    return len(row) if p >= 1 else sum(mass <= p for mass in masses(row))


def cut_is_clear(row: list[float], p: float) -> bool:
    """Whether no mass lies so near to p that rounding decides."""
    return p >= 1 or all(abs(mass - p) > 1e-5 for mass in masses(row))


def entropy(row: list[float], q: float, eps: float, kind: str) -> float:
    probs, experts = softmax(row), len(row)
    if experts == 1:
        return 0.0
    if q == 1:
        return -sum(p * math.log(p + eps) for p in probs) / math.log(experts)
    powers = sum((p + eps) ** q for p in probs)
    if kind == "renyi":
        return math.log(powers) / ((1 - q) * math.log(experts))
    return (1 - powers) / (1 - experts ** (1 - q))


def above_own_quantile(row: list[float], q: str) -> int:
    statistic = sorted(row)[math.floor(Fraction(q) * (len(row) - 1))]
    return sum(value > statistic for value in row)


def by_token(plan: Plan) -> list[dict[int, float]]:
    """The plan as one dictionary from expert to weight per token; checks the plan's form on the way."""
    assert plan.weights is not None
    assert plan.group_offsets.dtype == plan.item_ids.dtype == torch.int32
    offsets, ids, values = plan.group_offsets.tolist(), plan.item_ids.tolist(), plan.weights.tolist()
    assert offsets[0] == 0
    assert len(ids) == len(values) == plan.capacity
    tokens: list[dict[int, float]] = [{} for _ in range(plan.num_items)]
    for e in range(plan.num_groups):
        group = ids[offsets[e] : offsets[e + 1]]
        assert group == sorted(set(group))
        for item, weight in zip(group, values[offsets[e] : offsets[e + 1]], strict=True):
            tokens[item][e] = weight
    assert all(item == -1 for item in ids[offsets[-1] :])
    assert all(weight == 0 for weight in values[offsets[-1] :])
    return tokens


def dense(plan: Plan) -> torch.Tensor:
    """`[T, E]` weights, 0 where not routed; differentiable in the plan's weights."""
    assert plan.weights is not None
    count = int(plan.group_offsets[-1])
    groups = torch.arange(plan.num_groups).repeat_interleave(plan.group_sizes())
    out = plan.weights.new_zeros(plan.num_items, plan.num_groups)
    return out.index_put((plan.item_ids[:count].long(), groups), plan.weights[:count])
