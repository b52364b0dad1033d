"""MixtureOfDepths: exactly k rows, ties, padding, gradients, the causal predictor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_runner import HIDDEN, Ffns, run

from anabranch.skip import Keep, MixtureOfDepths, State
from anabranch.skip.policies import top_k_mask


def build(num_layers: int = 2, **arguments: object) -> MixtureOfDepths:
    return MixtureOfDepths(num_layers, HIDDEN, **arguments).double()  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([-1.0, 0.0, 2.0]), min_size=6, max_size=6), min_size=1, max_size=4),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_mask_is_the_sorted_rows(rows: list[list[float]], k: int, pads: int) -> None:
    padding = torch.arange(6).expand(len(rows), 6) >= pads
    got = top_k_mask(torch.tensor(rows), k, padding)
    for row, mask in zip(rows, got.tolist(), strict=True):
        order = sorted(range(6), key=lambda i: (i < pads, -row[i] if i >= pads else 0, i))
        assert [i for i in range(6) if mask[i]] == sorted(order[:k])


def test_exactly_k_rows_in_every_second_layer() -> None:
    policy, x = build(5, capacity=0.3), torch.randn(3, 7, HIDDEN, dtype=torch.float64)
    decisions = run(Ffns(5), policy, x)[1]
    assert [decision is not None for decision in decisions] == [False, True, False, True, False]
    for decision in (decisions[1], decisions[3]):
        assert isinstance(decision, Keep)
        assert decision.mask.sum(1).tolist() == [2, 2, 2] and decision.capacity == 6
    assert policy.skippable_layers(5) == {1, 3}
    assert [build().rows(length) for length in (0, 1, 8, 15, 16)] == [0, 1, 1, 1, 2]
    assert build(capacity=1.0).rows(9) == 9 and build(6, every=3).skippable_layers(6) == {2, 5}


def test_output_and_gradient_of_the_router_come_from_rows_that_ran() -> None:
    ffns, policy = Ffns(1), build(1, every=1, capacity=0.5)
    x = torch.randn(2, 6, HIDDEN, dtype=torch.float64, requires_grad=True)
    y, decisions = run(ffns, policy, x)
    weight = policy.routers["0"].weight
    scores = (x @ weight[0]).detach()
    mask = scores >= scores.sort(1, descending=True).values[:, 2:3]
    assert torch.equal(decisions[0].mask, mask)  # type: ignore[attr-defined]
    want = torch.where(mask[..., None], x + (x @ weight[0])[..., None] * ffns.branch(0, x), x)
    torch.testing.assert_close(y, want)
    dy = torch.randn_like(y)
    got = torch.autograd.grad((y * dy).sum(), (weight, x))
    by_hand = ((dy * ffns.branch(0, x)).sum(-1) * mask)[..., None] * x
    torch.testing.assert_close(got[0][0], by_hand.sum((0, 1)).detach())
    torch.testing.assert_close(got[1], torch.autograd.grad((want * dy).sum(), x)[0])
    predictors = list(policy.predictors.parameters())
    assert torch.autograd.grad(y.sum(), predictors, allow_unused=True) == (None,) * 4


def test_predictor_loss_trains_the_predictor_alone_on_real_tokens() -> None:
    policy = build(2)
    x = torch.randn(2, 6, HIDDEN, dtype=torch.float64, requires_grad=True)
    padding = torch.tensor([[True] * 6, [False] * 3 + [True] * 3])
    ffns = Ffns(2)
    decision = run(ffns, policy, x, padding=padding)[1][1]
    assert isinstance(decision, Keep) and not decision.mask[~padding].any()
    inside = x.detach() + ffns.branch(0, x.detach())
    logits = policy.predictors["1"](inside)[..., 0].detach()
    p = logits.sigmoid()
    want = torch.where(decision.mask, -p.log(), -(1 - p).log())[padding].mean()
    loss = policy.predictor_loss()
    assert loss.item() == pytest.approx(want.item())
    loss.backward()
    assert x.grad is None and policy.routers["1"].weight.grad is None
    assert all(p.grad is not None and bool(p.grad.any()) for p in policy.predictors.parameters())
    with pytest.raises(ValueError, match="nothing is recorded"):
        policy.predictor_loss()


def test_training_is_not_causal_and_inference_is() -> None:
    ffns, policy = Ffns(1), build(1, every=1, capacity=0.5)
    x = torch.randn(4, 8, HIDDEN, dtype=torch.float64)
    prefix = run(ffns, policy, x[:, :4])[1][0].mask  # type: ignore[attr-defined]
    assert not torch.equal(run(ffns, policy, x)[1][0].mask[:, :4], prefix)  # type: ignore[attr-defined]
    for inference in (policy.eval(), policy.train()):
        with torch.no_grad():  # no_grad alone is enough
            whole, decisions = run(ffns, inference, x)
            mask = decisions[0].mask  # type: ignore[attr-defined]
            assert torch.equal(mask, policy.predictors["0"](x)[..., 0] > 0) and 0 < int(mask.sum()) < 32
            assert decisions[0].capacity is None  # type: ignore[attr-defined]
            state = State(1)
            pieces = torch.cat([run(ffns, inference, x[:, t : t + 1], state)[0] for t in range(8)], 1)
            torch.testing.assert_close(pieces, whole)


def test_predictor_can_learn_the_choice() -> None:
    policy = build(1, every=1, capacity=0.25).float()
    x = torch.randn(16, 32, HIDDEN)
    optimizer = torch.optim.Adam(policy.predictors.parameters(), lr=0.02)
    ffns = Ffns(1, torch.float32)
    for _ in range(150):
        mask = run(ffns, policy, x)[1][0].mask  # type: ignore[attr-defined]
        optimizer.zero_grad()
        policy.predictor_loss().backward()
        optimizer.step()
    with torch.no_grad():
        got = run(ffns, policy, x)[1][0].mask  # type: ignore[attr-defined]
    assert float((got == mask).float().mean()) > 0.9


def test_bad_input() -> None:
    for name, value in (("capacity", 0.0), ("capacity", 1.5), ("every", 3), ("every", 0)):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            build(**{name: value})
    with pytest.raises(ValueError, match="num_layers is 2"):
        build().check(3, HIDDEN, 8)
    with pytest.raises(ValueError, match="hidden_size is 6"):
        build().check(2, 5, 8)
