"""Routers on bad input: a ValueError that names op and argument, never a crash and never a NaN in a plan."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import router_oracle as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from anabranch.experts import route_percentile, route_top_k, route_top_p, route_tsallis

NAN = float("nan")
ROUTERS = {
    "route_top_k": partial(route_top_k, k=1),
    "route_top_p": partial(route_top_p, p=0.5),
    "route_tsallis": route_tsallis,
    "route_percentile": partial(route_percentile, q=0.5),
}
every_router = pytest.mark.parametrize("name", ROUTERS)


@pytest.mark.cpu
@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    st.sampled_from(sorted(ROUTERS)),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([*oracle.DTYPES, torch.int64, torch.bool, torch.complex64]),
    st.integers(0, 30),
)
def test_fuzz_of_logits(name: str, shape: list[int], dtype: torch.dtype, where: int) -> None:
    logits = torch.ones(shape, dtype=dtype)
    holed = logits.is_floating_point() and where < logits.numel()
    if holed:
        logits.view(-1)[where] = NAN
    before = logits.clone()
    valid = len(shape) == 2 and shape[1] > 0 and logits.is_floating_point() and not holed
    if valid:
        for token in oracle.by_token(ROUTERS[name](logits)):
            assert len(token) >= 1
    else:
        with pytest.raises(ValueError, match=rf"^{name}: logits .+, must "):
            ROUTERS[name](logits)
    assert torch.equal(torch.nan_to_num(logits), torch.nan_to_num(before))


@pytest.mark.cpu
@every_router
def test_nan_is_refused_with_its_row(name: str) -> None:
    logits = torch.zeros(5, 3)
    logits[3, 2] = NAN
    with pytest.raises(ValueError, match=rf"^{name}: logits holds NaN at row 3, must be finite or infinite; look for"):
        ROUTERS[name](logits)


BAD_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "top_k_zero": (partial(route_top_k, k=0), "route_top_k: k is 0, must be between 1 and the number of experts (4)"),
    "top_k_many": (partial(route_top_k, k=5), "route_top_k: k is 5, must be between 1"),
    "top_k_score": (partial(route_top_k, k=1, score="relu"), "route_top_k: score is 'relu', must be"),
    "p_negative": (partial(route_top_p, p=-0.1), "route_top_p: p is -0.1, must lie between 0 and 1"),
    "p_large": (partial(route_top_p, p=1.5), "route_top_p: p is 1.5, must"),
    "p_nan": (partial(route_top_p, p=NAN), "route_top_p: p is nan, must"),
    "k_min_negative": (partial(route_top_p, p=0.5, k_min=-1), "route_top_p: k_min is -1, must be at least 0"),
    "k_max_zero": (partial(route_top_p, p=0.5, k_min=0, k_max=0), "route_top_p: k_max is 0, must be at least 1"),
    "k_max_below": (partial(route_top_p, p=0.5, k_min=3, k_max=2), "route_top_p: k_max is 2, must be at least 1"),
    "tsallis_p": (partial(route_tsallis, p=2), "route_tsallis: p is 2, must"),
    "tsallis_q": (partial(route_tsallis, q=0), "route_tsallis: q is 0, must be positive"),
    "tsallis_q_infinite": (partial(route_tsallis, q=float("inf")), "route_tsallis: q is inf, must"),
    "tsallis_q_nan": (partial(route_tsallis, q=NAN), "route_tsallis: q is nan, must"),
    "tsallis_eps": (partial(route_tsallis, eps=0), "route_tsallis: eps is 0, must lie between 0 and 1"),
    "tsallis_entropy": (partial(route_tsallis, entropy="gini"), "route_tsallis: entropy is 'gini', must be"),
    "tsallis_threshold": (partial(route_tsallis, entropy_threshold=-1), "route_tsallis: entropy_threshold is -1, must"),
    "tsallis_threshold_nan": (partial(route_tsallis, entropy_threshold=NAN), "entropy_threshold is nan, must"),
    "tsallis_k_max": (partial(route_tsallis, k_min=2, k_max=1), "route_tsallis: k_max is 1, must be at least 1 and"),
    "percentile_neither": (route_percentile, "route_percentile: q is None and threshold is None, must be one"),
    "percentile_q": (partial(route_percentile, q=1.1), "route_percentile: q is 1.1, must lie between 0 and 1"),
    "percentile_q_nan": (partial(route_percentile, q=NAN), "route_percentile: q is nan, must"),
    "percentile_k_max": (partial(route_percentile, q=0.5, k_max=0), "route_percentile: k_max is 0, must"),
    "percentile_score": (partial(route_percentile, q=0.5, score="x"), "route_percentile: score is 'x', must be"),
}


@pytest.mark.parametrize("router, message", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(router: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        router(torch.zeros(2, 4))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"q": 0.5, "threshold": ((), torch.float32, None)}, "q is 0.5 and threshold is given, must be one"),
        ({"threshold": ((2,), torch.float32, None)}, "threshold has shape (2,), must have one element"),
        ({"threshold": ((), torch.int64, None)}, "threshold is torch.int64, must be a floating dtype"),
        ({"threshold": ((), torch.float32, "meta")}, "threshold is on meta, must be on "),
    ],
)
def test_bad_thresholds(options: dict[str, Any], message: str) -> None:
    shape, dtype, device = options["threshold"]
    options = options | {"threshold": torch.zeros(shape, dtype=dtype, device=device)}
    with pytest.raises(ValueError, match=re.escape(f"route_percentile: {message}")):
        route_percentile(torch.zeros(2, 4), **options)


@every_router
def test_tensors_without_values_are_routed_by_shape(name: str) -> None:
    with FakeTensorMode():
        plan = ROUTERS[name](torch.empty(5, 3))
        assert plan.group_offsets.shape == (4,)
        assert plan.weights.shape == plan.item_ids.shape
        assert plan.weights.dtype == torch.float32


@every_router
def test_a_token_without_experts_takes_none(name: str) -> None:
    logits = torch.full((2, 3), -float("inf"))
    logits[1, 2] = -5.0
    assert [list(token) for token in oracle.by_token(ROUTERS[name](logits))] == [[], [2]]
