"""Losses: values known in closed form, the same in plain Python, gradients, masks, no tokens, bad input."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import pytest
import router_oracle as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from anabranch import Plan
from anabranch.experts import (
    dynmole_balance_loss,
    entropy_loss,
    load_balance_loss,
    route_top_k,
    tsallis_loss,
    z_loss,
)

INF = math.inf
LOSSES: dict[str, Any] = {
    "load_balance": lambda x: load_balance_loss(x, route_top_k(x, 1)),
    "load_balance_sigmoid": lambda x: load_balance_loss(x, route_top_k(x, 2 if x.shape[1] > 1 else 1), score="sigmoid"),
    "dynmole_balance": lambda x: dynmole_balance_loss(x, route_top_k(x, 1)),
    "entropy": entropy_loss,
    "tsallis": tsallis_loss,
    "renyi": partial(tsallis_loss, q=2, entropy="renyi"),
    "shannon": partial(tsallis_loss, q=1),
    "z": z_loss,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
near = partial(pytest.approx, rel=1e-5, abs=1e-6)


def sure(experts: int, tokens: int = 6) -> torch.Tensor:
    """Every token is sure of expert 0."""
    return torch.tensor([[100.0] + [0.0] * (experts - 1)] * tokens)


@pytest.mark.parametrize("experts", [1, 2, 5])
def test_balance_is_one_when_perfect_and_e_on_one_sure_expert(experts: int) -> None:
    each_its_own = torch.eye(experts) * 100
    for loss in (LOSSES["load_balance"], LOSSES["dynmole_balance"]):
        assert loss(each_its_own).item() == near(1)
        assert loss(sure(experts)).item() == near(experts)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_perfect_balance_does_not_depend_on_the_number_of_experts_per_token(k: int) -> None:
    # Token t prefers experts t, t + 1, ... : each expert is used and liked alike.
    logits = torch.stack([torch.arange(4.0).flip(0).roll(t) for t in range(4)])
    assert load_balance_loss(logits, route_top_k(logits, k)).item() == near(1)
    assert load_balance_loss(logits, route_top_k(logits, k), score="sigmoid").item() == near(1)


@pytest.mark.parametrize("experts", [2, 3, 8])
def test_entropies_of_uniform_and_sure_tokens(experts: int) -> None:
    uniform = torch.full((3, experts), 7.0)
    assert entropy_loss(uniform).item() == near(math.log(experts))
    assert entropy_loss(sure(experts)).item() == near(0)
    for entropy in ("tsallis", "renyi"):
        for q in (0.5, 1, 1.1, 2):
            loss = partial(tsallis_loss, q=q, eps=1e-9, entropy=entropy)
            assert loss(uniform.double()).item() == near(1)
            assert loss(sure(experts).double()).item() == pytest.approx(0, abs=1e-3)


def test_one_expert_has_no_entropy() -> None:
    logits = torch.randn(4, 1, requires_grad=True)
    for loss in (entropy_loss, tsallis_loss):
        assert loss(logits).item() == 0
        loss(logits).backward()
        assert logits.grad is not None
        assert (logits.grad == 0).all()


def test_z_loss_is_the_mean_square_of_the_logsumexp() -> None:
    assert z_loss(torch.zeros(2, 8)).item() == near(math.log(8) ** 2)
    assert z_loss(torch.tensor([[3.0], [-1.0]])).item() == near((9 + 1) / 2)
    assert z_loss(torch.tensor([[0.0, INF]])).item() == INF


@settings(deadline=None, derandomize=True, max_examples=60)
@given(oracle.logits(), st.integers(1, 7), st.sampled_from(["softmax", "sigmoid"]))
def test_against_plain_python(logits: torch.Tensor, k: int, score: Any) -> None:
    k, (tokens, experts), rows = min(k, logits.shape[1]), logits.shape, logits.tolist()
    plan = route_top_k(logits, k, score=score)
    routed = oracle.by_token(plan)
    if score == "softmax":
        probs = [oracle.softmax(row) for row in rows]
    else:
        weights = [oracle.weights(row, list(range(experts)), score, True) for row in rows]
        probs = [[token.get(e, 0.0) for e in range(experts)] for token in weights]
    entries = sum(map(len, routed))
    balance = dynmole = 0.0
    for e in range(experts):
        mean_prob = sum(p[e] for p in probs) / max(tokens, 1)
        balance += experts * mean_prob * sum(e in token for token in routed) / max(entries, 1)
        mean_softmax = sum(oracle.softmax(row)[e] for row in rows) / max(tokens, 1)
        dynmole += experts * mean_softmax * sum(token.get(e, 0.0) for token in routed) / max(tokens, 1)
    entropies = [-sum(p * math.log(p) for p in oracle.softmax(row) if p > 0) for row in rows]
    assert load_balance_loss(logits, plan, score=score).item() == near(balance)
    assert dynmole_balance_loss(logits, plan).item() == near(dynmole)
    assert entropy_loss(logits).item() == near(sum(entropies) / max(tokens, 1))
    for q, kind in ((1.1, "tsallis"), (1, "tsallis"), (2, "renyi")):
        seen = [oracle.entropy(row, q, 1e-5, kind) for row in rows if max(row) > -INF]
        found = tsallis_loss(logits, q=q, entropy=kind).item()
        assert found == pytest.approx(sum(seen) / max(tokens, 1), rel=1e-4, abs=1e-5)


@every_loss
def test_gradcheck(loss: Any) -> None:
    assert gradcheck(loss, (torch.randn(5, 4, dtype=torch.float64, requires_grad=True),))


def test_balance_learns_through_its_probabilities_alone() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    plan = route_top_k(logits, 2)
    share = plan.group_sizes().double() / 12
    plain = 4 * (share * logits.softmax(1).mean(0)).sum()
    (wanted,) = torch.autograd.grad(plain, logits)
    torch.testing.assert_close(torch.autograd.grad(load_balance_loss(logits, plan), logits)[0], wanted)


def test_entropy_and_z_gradients_as_documented() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    probs = logits.detach().softmax(1)
    entropy = -(probs * probs.log()).sum(1, keepdim=True)
    (dentropy,) = torch.autograd.grad(entropy_loss(logits), logits)
    torch.testing.assert_close(dentropy, -probs * (probs.log() + entropy) / 6)
    (dz,) = torch.autograd.grad(z_loss(logits), logits)
    torch.testing.assert_close(dz, 2 * logits.detach().logsumexp(1, keepdim=True) * probs / 6)


@every_loss
def test_no_tokens_give_zero_and_train(loss: Any) -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    value = loss(logits)
    assert value.shape == ()
    assert value.item() == 0
    value.backward()
    assert logits.grad is not None
    assert logits.grad.shape == (0, 4)


@every_loss
def test_masked_tokens_add_nothing_and_masked_experts_learn_nothing(loss: Any) -> None:
    logits = torch.randn(4, 5)
    logits[1, 2] = -INF
    logits = torch.cat([logits, torch.full((4, 5), -INF)]).requires_grad_()
    value = loss(logits)
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[logits.isinf()] == 0).all()
    assert (logits.grad[:4][logits[:4].isfinite()] != 0).any()


@pytest.mark.parametrize("name", ["entropy", "tsallis", "renyi", "shannon", "z"])
def test_a_masked_token_counts_in_the_mean_and_adds_zero(name: str) -> None:
    logits = torch.randn(4, 5)
    padded = torch.cat([logits, torch.full((4, 5), -INF)])
    assert LOSSES[name](padded).item() == near(LOSSES[name](logits).item() / 2)


@every_loss
@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_dtypes(loss: Any, dtype: torch.dtype) -> None:
    logits = torch.randn(4, 5).to(dtype)
    assert loss(logits).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss(logits).item() == near(loss(logits.double()).item())


def test_compiled_equals_eager() -> None:
    def total(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([loss(x) for loss in LOSSES.values()])

    logits = torch.randn(6, 4)
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits), total(logits))
    torch.testing.assert_close(compiled(logits.fill_(math.nan)), torch.zeros(len(LOSSES)))


def fails(message: str, call: Any) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()


@pytest.mark.parametrize("name", ["entropy_loss", "tsallis_loss", "z_loss"])
def test_bad_logits(name: str) -> None:
    loss = {"entropy_loss": entropy_loss, "tsallis_loss": tsallis_loss, "z_loss": z_loss}[name]
    fails(f"{name}: logits has shape (3,), must be", lambda: loss(torch.zeros(3)))
    fails(f"{name}: logits has shape (3, 0), must be", lambda: loss(torch.zeros(3, 0)))
    fails(f"{name}: logits is torch.int64, must be", lambda: loss(torch.zeros(3, 2, dtype=torch.int64)))


@pytest.mark.cpu
@every_loss
def test_nan_is_refused(loss: Any) -> None:
    with pytest.raises(ValueError, match="logits holds NaN at row 1, must be"):
        loss(torch.tensor([[0.0, 0.0], [0.0, math.nan]]))


@pytest.mark.parametrize("name", ["load_balance_loss", "dynmole_balance_loss"])
def test_bad_plans(name: str) -> None:
    loss = {"load_balance_loss": load_balance_loss, "dynmole_balance_loss": dynmole_balance_loss}[name]
    logits = torch.randn(3, 4)
    plan = route_top_k(logits, 1)
    fails(f"{name}: plan has 3 items and 4 groups, must be made from", lambda: loss(torch.randn(2, 4), plan))
    fails(f"{name}: plan has 3 items and 4 groups, must be made from", lambda: loss(torch.randn(3, 5), plan))
    elsewhere = Plan(plan.group_offsets.to("meta"), plan.item_ids.to("meta"), plan.weights.to("meta"), 3)
    fails(f"{name}: plan is on meta, must be on ", lambda: loss(logits, elsewhere))


def test_bad_options() -> None:
    logits = torch.randn(3, 4)
    plan = route_top_k(logits, 1)
    fails(
        "dynmole_balance_loss: the plan has no weights", lambda: dynmole_balance_loss(logits, plan.with_weights(None))
    )
    fails("load_balance_loss: score is 'relu', must be", lambda: load_balance_loss(logits, plan, score="relu"))
    fails("tsallis_loss: q is -1, must be", lambda: tsallis_loss(logits, q=-1))
    fails("tsallis_loss: eps is 1, must", lambda: tsallis_loss(logits, eps=1))
    fails("tsallis_loss: entropy is 'gini', must", lambda: tsallis_loss(logits, entropy="gini"))
