"""What the routers' module says of gradients, statement by statement; gradcheck; compiled as eager."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import router_oracle as oracle
import torch
from torch.autograd import gradcheck

from anabranch.experts import PercentileThreshold, route_percentile, route_top_k, route_top_p, route_tsallis

INF, NAN = float("inf"), float("nan")
ROUTERS = {
    "top_k": partial(route_top_k, k=2),
    "top_k_renormalized": partial(route_top_k, k=3, renormalize=True),
    "top_k_sigmoid": partial(route_top_k, k=2, score="sigmoid"),
    "top_k_sigmoid_renormalized": partial(route_top_k, k=2, score="sigmoid", renormalize=True),
    "top_p": partial(route_top_p, p=0.6, k_max=3),
    "top_p_renormalized": partial(route_top_p, p=0.6, renormalize=True),
    "tsallis": partial(route_tsallis, entropy_threshold=0.7),
    "percentile": partial(route_percentile, q=0.5),
    "percentile_sigmoid_renormalized": partial(route_percentile, q=0.5, score="sigmoid", renormalize=True),
    "threshold": lambda logits: route_percentile(logits, threshold=torch.tensor(0.3)),
}
every_router = pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)


def gradient(router: Any, logits: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weights as a matrix, which are kept, and the gradient of sum(weights * g) to the logits."""
    logits = logits.clone().requires_grad_()
    weights = oracle.dense(router(logits))
    (dlogits,) = torch.autograd.grad((weights * g).sum(), logits)
    return weights.detach(), weights.detach() != 0, dlogits


def example() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(20, 6, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64)


@every_router
def test_gradcheck(router: Any) -> None:
    logits = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: router(x).weights, (logits,))


@every_router
def test_against_autograd_of_the_plain_composition(router: Any, request: pytest.FixtureRequest) -> None:
    logits, g = example()
    weights, kept, dlogits = gradient(router, logits, g)
    sigmoid, renormalize = ("sigmoid" in request.node.callspec.id, "renormalized" in request.node.callspec.id)
    plain = logits.clone().requires_grad_()
    wanted = (plain.sigmoid() if sigmoid else plain.softmax(1)) * kept
    if renormalize:
        wanted = wanted / wanted.sum(1, keepdim=True)
    torch.testing.assert_close(weights, wanted.detach())
    torch.testing.assert_close(dlogits, torch.autograd.grad((wanted * g).sum(), plain)[0])


@pytest.mark.parametrize("name", ["top_k", "top_p", "tsallis", "percentile"])
def test_with_raw_softmax_an_expert_not_kept_still_learns_through_the_normalisation(name: str) -> None:
    logits, g = example()
    weights, kept, dlogits = gradient(ROUTERS[name], logits, g)
    assert 0 < kept.sum() < kept.numel()
    through_normalisation = -logits.softmax(1) * (weights * g).sum(1, keepdim=True)
    torch.testing.assert_close(dlogits[~kept], through_normalisation[~kept])
    torch.testing.assert_close(dlogits.sum(1), torch.zeros(20, dtype=torch.float64))


def test_with_raw_sigmoid_an_expert_not_kept_learns_nothing() -> None:
    logits, g = example()
    weights, kept, dlogits = gradient(ROUTERS["top_k_sigmoid"], logits, g)
    assert (dlogits[~kept] == 0).all()
    torch.testing.assert_close(dlogits[kept], (weights * (1 - weights) * g)[kept])


@pytest.mark.parametrize("name", ["top_k_renormalized", "top_p_renormalized"])
def test_renormalized_softmax_gradients_sum_to_zero_over_the_kept(name: str) -> None:
    logits, g = example()
    weights, kept, dlogits = gradient(ROUTERS[name], logits, g)
    assert (dlogits[~kept] == 0).all()
    torch.testing.assert_close(dlogits.sum(1), torch.zeros(20, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(1), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_single_kept_expert_has_weight_one_and_no_gradient(score: Any) -> None:
    logits, g = example()
    router = partial(route_top_k, k=1, score=score, renormalize=True)
    weights, kept, dlogits = gradient(router, logits, g)
    assert kept.sum(1).tolist() == [1] * 20
    assert (weights[kept] == 1).all()
    assert (dlogits == 0).all()


@every_router
def test_infinite_logits_get_no_gradient_and_spoil_none(router: Any) -> None:
    logits, g = torch.randn(6, 5), torch.randn(6, 5)
    logits[0, 1] = logits[1, :] = logits[2, :4] = -INF
    logits[3, 2] = logits[4, 0] = logits[4, 3] = INF
    logits[5, 0], logits[5, 1] = INF, -INF
    _, _, dlogits = gradient(router, logits, g)
    assert dlogits.isfinite().all()
    assert (dlogits[logits.isinf()] == 0).all()


@pytest.mark.parametrize("name", ["top_k", "top_k_renormalized", "top_p", "tsallis", "percentile"])
def test_a_row_with_plus_infinity_gets_no_gradient_through_a_softmax(name: str) -> None:
    logits, g = torch.randn(3, 5), torch.randn(3, 5)
    logits[:, 2] = INF
    weights, kept, dlogits = gradient(ROUTERS[name], logits, g)
    assert (weights[kept] == 1).all()
    assert (dlogits == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_arrive_in_the_dtype_of_the_logits(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 5).to(dtype).requires_grad_()
    route_top_k(logits, 2).weights.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("router", [route_top_p, partial(route_top_k, k=1)], ids=["top_p", "top_k"])
def test_no_tokens_train(router: Any) -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    plan = router(logits, p=0.5) if router is route_top_p else router(logits)
    plan.weights.sum().backward()
    assert logits.grad is not None
    assert logits.grad.shape == (0, 4)


def plan_parts(router: Any, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    plan = router(logits)
    return plan.group_offsets, plan.item_ids, plan.weights


@every_router
def test_compiled_equals_eager_and_takes_nan_as_a_mask(router: Any) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(partial(plan_parts, router), fullgraph=True, backend="aot_eager")
    clean, holes = torch.randn(30, 6).round(decimals=1), torch.rand(30, 6) < 0.3
    holes[5] = False
    clean[4, 2], clean[5, 1] = -INF, INF
    by_compiled = clean.masked_fill(holes, NAN).requires_grad_()
    by_eager = clean.masked_fill(holes, -INF).requires_grad_()
    parts, wanted_parts = compiled(by_compiled), plan_parts(router, by_eager)
    for found, wanted in zip(parts, wanted_parts, strict=True):
        assert torch.equal(found, wanted)
    coefficients = torch.randn(parts[2].shape)
    (parts[2] * coefficients).sum().backward()
    (wanted_parts[2] * coefficients).sum().backward()
    assert by_compiled.grad is not None
    assert torch.equal(by_compiled.grad, by_eager.grad)
    assert (by_compiled.grad[holes] == 0).all()


def test_compiled_threshold_moves_as_eager() -> None:
    torch._dynamo.reset()
    eager, other = PercentileThreshold(0.7, 0.1), PercentileThreshold(0.7, 0.1)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        logits = torch.randn(20, 4)
        assert torch.equal(compiled(logits), eager(logits))
        assert torch.equal(other.running, eager.running)
