"""Every router against its rule, token by token in plain Python; ties, infinities, bounds, permutations."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import router_oracle as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch import Plan
from anabranch.experts import route_percentile, route_top_k, route_top_p, route_tsallis

INF = float("inf")
scores = st.sampled_from(["softmax", "sigmoid"])
bounds = st.tuples(st.integers(0, 9), st.none() | st.integers(1, 9)).filter(lambda b: b[1] is None or b[1] >= b[0])
check = partial(settings, deadline=None, derandomize=True)


def assert_routed(plan: Plan, logits: torch.Tensor, wanted: list[dict[int, float] | None], k_max: int | None) -> None:
    """The plan holds what is wanted of each token; None where rounding may decide."""
    experts = logits.shape[1]
    precise = logits.dtype == torch.float64
    assert plan.weights is not None
    assert plan.weights.dtype == (torch.float64 if precise else torch.float32)
    assert (plan.num_items, plan.num_groups) == tuple(logits.shape)
    assert plan.capacity == logits.shape[0] * (experts if k_max is None else min(k_max, experts))
    for found, token in zip(oracle.by_token(plan), wanted, strict=True):
        if token is not None:
            assert found.keys() == token.keys()
            assert found == pytest.approx(token, rel=1e-12 if precise else 1e-5)


@check(max_examples=150)
@given(oracle.logits(), st.integers(1, 7), scores, st.booleans())
def test_top_k(logits: torch.Tensor, k: int, score: Any, renormalize: bool) -> None:
    k = min(k, logits.shape[1])
    rows = logits.tolist()
    wanted = [oracle.weights(row, oracle.ranked(row)[:k], score, renormalize) for row in rows]
    assert_routed(route_top_k(logits, k, score=score, renormalize=renormalize), logits, wanted, k)


@check(max_examples=250)
@given(oracle.logits(), st.sampled_from([0, 0.4, 0.75, 1]), bounds, st.booleans(), st.booleans())
def test_top_p(
    logits: torch.Tensor, p: float, k: tuple[int, int | None], include_crossing: bool, renormalize: bool
) -> None:
    def wanted(row: list[float]) -> dict[int, float] | None:
        if not oracle.cut_is_clear(row, p):
            return None
        count = oracle.clip(oracle.count_within(row, p) + include_crossing, *k, len(row))
        return oracle.weights(row, oracle.ranked(row)[:count], "softmax", renormalize)

    options = {"k_min": k[0], "k_max": k[1], "include_crossing": include_crossing, "renormalize": renormalize}
    assert_routed(route_top_p(logits, p, **options), logits, [wanted(row) for row in logits.tolist()], k[1])


@check(max_examples=200)
@given(
    oracle.logits(),
    st.sampled_from([0, 0.3, 0.9, 1, 2]),
    st.sampled_from([0.5, 1, 1.1, 2]),
    st.sampled_from([0, 0.4, 0.75, 1]),
    bounds,
    st.sampled_from(["tsallis", "renyi"]),
)
def test_tsallis(
    logits: torch.Tensor, threshold: float, q: float, p: float, k: tuple[int, int | None], entropy: Any
) -> None:
    def wanted(row: list[float]) -> dict[int, float] | None:
        unsure = oracle.entropy(row, q, 1e-5, entropy)
        rounding_decides = len(row) > 1 and threshold < 1 and abs(unsure - threshold) < 1e-4
        if rounding_decides or not oracle.cut_is_clear(row, p):
            return None
        takes_all = threshold < 1 and unsure > threshold
        count = oracle.clip(len(row) if takes_all else oracle.count_within(row, p), *k, len(row))
        return oracle.weights(row, oracle.ranked(row)[:count])

    options = {"entropy_threshold": threshold, "q": q, "p": p, "entropy": entropy, "k_min": k[0], "k_max": k[1]}
    assert_routed(route_tsallis(logits, **options), logits, [wanted(row) for row in logits.tolist()], k[1])


@check(max_examples=150)
@given(
    oracle.logits(),
    st.sampled_from(["0", "0.25", "0.29", "0.5", "0.75", "1"]),
    st.none() | st.integers(1, 9),
    scores,
    st.booleans(),
)
def test_percentile_of_own_logits(
    logits: torch.Tensor, q: str, k_max: int | None, score: Any, renormalize: bool
) -> None:
    def wanted(row: list[float]) -> dict[int, float]:
        count = oracle.clip(oracle.above_own_quantile(row, q), 1, k_max, len(row))
        return oracle.weights(row, oracle.ranked(row)[:count], score, renormalize)

    plan = route_percentile(logits, float(q), k_max=k_max, score=score, renormalize=renormalize)
    assert_routed(plan, logits, [wanted(row) for row in logits.tolist()], k_max)


@check(max_examples=150)
@given(
    oracle.logits(),
    st.sampled_from([-INF, -1.0, 0.0, 0.3, 1.0, INF, float("nan")]),
    st.none() | st.integers(1, 9),
    scores,
    st.booleans(),
)
def test_percentile_of_a_threshold(
    logits: torch.Tensor, threshold: float, k_max: int | None, score: Any, renormalize: bool
) -> None:
    def wanted(row: list[float]) -> dict[int, float]:
        # Comparisons with NaN are false: one expert.
        count = oracle.clip(sum(value > threshold for value in row), 1, k_max, len(row))
        return oracle.weights(row, oracle.ranked(row)[:count], score, renormalize)

    given_threshold = torch.tensor(threshold, dtype=torch.float64)
    plan = route_percentile(logits, threshold=given_threshold, k_max=k_max, score=score, renormalize=renormalize)
    assert_routed(plan, logits, [wanted(row) for row in logits.tolist()], k_max)


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("crossing, experts", [(True, [3, 2]), (False, [2, 1])])
def test_mass_equal_to_p_does_not_exceed_it(dtype: torch.dtype, crossing: bool, experts: list[int]) -> None:
    logits = torch.zeros(1, 4, dtype=dtype)
    for p, count in zip((0.5, 0.25), experts, strict=True):
        routed = oracle.by_token(route_top_p(logits, p, include_crossing=crossing, k_min=0))
        assert routed == [dict.fromkeys(range(count), 0.25)]


def test_masses_of_many_experts_are_summed_exactly() -> None:
    logits = torch.zeros(1, 1000)
    prob = Fraction(logits.softmax(1)[0, 0].item())  # what float32 makes of 1/1000; a float32 sum of it drifts
    for p in (0.3, 0.6, 0.9, 0.999):
        within = math.floor(Fraction(p) / prob)
        assert route_top_p(logits, p, include_crossing=False).item_counts().tolist() == [within]
        assert route_top_p(logits, p).item_counts().tolist() == [within + 1]


def test_tokens_without_any_expert_pass() -> None:
    plan = route_top_p(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), 0.7, include_crossing=False, k_min=0)
    assert [list(token) for token in oracle.by_token(plan)] == [[0], []]


def test_an_entropy_threshold_of_one_turns_the_entropy_off() -> None:
    uniform = torch.zeros(3, 5)
    # With so large an eps even the normalised entropy exceeds 1.
    by_threshold = {
        threshold: route_tsallis(uniform, entropy_threshold=threshold, q=0.5, eps=0.1) for threshold in (0.9, 1)
    }
    assert by_threshold[0.9].item_counts().tolist() == [5] * 3
    assert by_threshold[1].item_counts().tolist() == [3] * 3


def test_ties_go_to_the_lower_id_even_where_scores_round_together() -> None:
    tied = torch.tensor([[1.0, 2.0, 2.0, 2.0]])
    assert list(oracle.by_token(route_top_k(tied, 2))[0]) == [1, 2]
    # Both sigmoids round to 1 in float32, the logits differ.
    assert list(oracle.by_token(route_top_k(torch.tensor([[30.0, 31.0]]), 1, score="sigmoid"))[0]) == [1]


@pytest.mark.parametrize("dtype, kept", [(torch.float32, [0]), (torch.float64, [0, 1])])
def test_a_weight_that_underflows_is_not_routed(dtype: torch.dtype, kept: list[int]) -> None:
    logits = torch.tensor([[0.0, -200.0]], dtype=dtype)
    for plan in (route_top_k(logits, 2), route_top_k(logits, 2, renormalize=True), route_top_p(logits, 1, k_min=2)):
        assert list(oracle.by_token(plan)[0]) == kept


def test_without_ties_every_token_has_the_experts_above_its_quantile() -> None:
    logits = torch.rand(9, 101).argsort(1).float()
    for q, count in ((0.0, 100), (0.29, 71), (0.5, 50), (0.99, 1), (1.0, 1)):
        assert route_percentile(logits, q).item_counts().tolist() == [count] * 9


ROUTERS = {
    "top_k": partial(route_top_k, k=3),
    "top_k_sigmoid": partial(route_top_k, k=3, score="sigmoid", renormalize=True),
    "top_p": partial(route_top_p, p=0.6, k_max=4),
    "top_p_renormalized": partial(route_top_p, p=0.6, renormalize=True, include_crossing=False),
    "tsallis": partial(route_tsallis, entropy_threshold=0.8),
    "percentile": partial(route_percentile, q=0.6),
    "threshold": lambda logits: route_percentile(logits, threshold=torch.tensor(0.4)),
}


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_permuting_tokens_permutes_the_plan(router: Any) -> None:
    logits, order = torch.randn(50, 8).round(decimals=1), torch.randperm(50)
    assert torch.equal(oracle.dense(router(logits[order])), oracle.dense(router(logits))[order])


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_a_token_is_routed_alone_as_in_a_batch_whatever_the_strides(router: Any) -> None:
    logits = torch.randn(12, 16)[:, ::2]
    whole = oracle.dense(router(logits))
    assert torch.equal(oracle.dense(router(logits.contiguous())), whole)
    torch.testing.assert_close(torch.cat([oracle.dense(router(row[None])) for row in logits]), whole)
