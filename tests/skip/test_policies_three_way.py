"""ThreeWayRouter: decisions, gates, chance, forced patterns, separate small FFNs."""

from __future__ import annotations

import pytest
import torch
from policy_runner import HIDDEN, INTERMEDIATE, Ffns, otherwise_output, run

from anabranch.skip import Keep, SmallFfn, State, ThreeWayRouter, Width

SMALL, BIG = 3, INTERMEDIATE


def build(num_layers: int = 2, **arguments: object) -> ThreeWayRouter:
    return ThreeWayRouter(num_layers, HIDDEN, SMALL, BIG, **arguments).double()  # type: ignore[arg-type]


def tokens(batch: int = 4, length: int = 5) -> torch.Tensor:
    return torch.randn(batch, length, HIDDEN, dtype=torch.float64) * 3


@torch.no_grad()
def test_each_token_takes_its_likeliest_way() -> None:
    policy, x = build(), tokens()
    decision = policy.decide(1, 0, x, State(2))
    assert isinstance(decision, Width) and decision.widths == (0, SMALL, BIG) and decision.gate is None
    router = policy.routers[1]
    for b in range(4):
        for t in range(5):
            logits = (router.weight @ x[b, t] + router.bias).tolist()  # type: ignore[operator]
            assert int(decision.index[b, t]) == logits.index(max(logits))
    assert set(decision.index.flatten().tolist()) == {0, 1, 2}


@torch.no_grad()
def test_equal_ways_take_the_cheapest_and_tokens_do_not_mix() -> None:
    policy, ffns, x = build(), Ffns(2), tokens()
    whole = run(ffns, policy, x)[0]
    state = State(2)
    torch.testing.assert_close(torch.cat([run(ffns, policy, x[:, t : t + 1], state)[0] for t in range(5)], 1), whole)
    for router in policy.routers:
        router.weight.zero_()  # type: ignore[operator]
        router.bias.zero_()  # type: ignore[operator]
    decision = policy.decide(0, 0, x, State(2))
    assert isinstance(decision, Width) and not decision.index.any()


def test_gate_is_one_with_the_gradient_of_its_probability() -> None:
    ffns, policy, x = Ffns(1), build(1), tokens()
    dy = torch.randn_like(x)
    with torch.no_grad():
        want, _ = run(ffns, policy, x)
    y, decisions = run(ffns, policy, x)
    torch.testing.assert_close(y, want, rtol=0, atol=0)
    router, choice = policy.routers[0], decisions[0].index  # type: ignore[attr-defined]
    got = torch.autograd.grad((y * dy).sum(), list(router.parameters()))
    probs = router(x).softmax(-1)
    chosen = probs.gather(-1, choice[..., None])[..., 0]
    ends = torch.tensor((0, SMALL, BIG))[choice]
    branch = ffns.branch(0, x, torch.arange(INTERMEDIATE) < ends[..., None])
    soft = (chosen * (branch * dy).sum(-1))[choice > 0].sum()  # skipped tokens give none
    torch.testing.assert_close(got, torch.autograd.grad(soft, list(router.parameters())))


def test_budget_is_of_the_big_ones_probability() -> None:
    policy, x = build(), tokens()
    run(Ffns(2), policy, x)
    loss = policy.budget_loss(0.125)
    loss.backward()
    assert all(router.bias.grad is not None and bool(router.bias.grad.any()) for router in policy.routers)
    one = build(1)
    run(Ffns(1), one, x)
    mean = one.routers[0](x).softmax(-1)[..., 2].mean().item()
    assert one.budget_loss(0.125).item() == pytest.approx((mean - 0.125) ** 2)
    with pytest.raises(ValueError, match="nothing is recorded"):
        policy.budget_loss(0.125)


def test_chance_takes_each_way_by_its_probability_and_trains_no_router() -> None:
    policy, x = build(), torch.zeros(64, 64, HIDDEN, dtype=torch.float64)
    for shares in (None, (0.7, 0.0, 0.3)):
        with policy.random_routing(shares):
            decision = policy.decide(0, 0, x, State(2))
        assert isinstance(decision, Width) and decision.gate is None
        got = torch.bincount(decision.index.flatten(), minlength=3) / decision.index.numel()
        torch.testing.assert_close(got, torch.tensor(shares or (1 / 3,) * 3), rtol=0, atol=0.03)
    with pytest.raises(ValueError, match="nothing is recorded"):
        policy.budget_loss(0.5)
    decision = policy.decide(0, 0, x, State(2))
    assert isinstance(decision, Width) and decision.gate is not None  # the router is back


def test_forced_patterns_for_all_for_sequences_for_tokens() -> None:
    policy, x = build(), tokens(3, 2)
    per_sequence = torch.tensor([[0, 1, 2], [2, 2, 1]])
    per_token = torch.randint(3, (2, 3, 2))
    for pattern, want in (
        ((2, 0), torch.tensor([2, 0])[:, None, None].expand(2, 3, 2)),
        (per_sequence, per_sequence[..., None].expand(2, 3, 2)),
        (per_token, per_token),
    ):
        with policy.forced(pattern):
            got = [policy.decide(layer, 0, x, State(2)).index for layer in (0, 1)]  # type: ignore[union-attr]
        assert torch.equal(torch.stack(got), want)


def test_separate_small_ffn_is_the_else_branch_and_learns_there() -> None:
    ffns, policy, x = Ffns(1), build(1, small="separate"), tokens()
    torch.nn.init.normal_(policy.down_proj)
    y, decisions = run(ffns, policy, x)
    decision = decisions[0]
    assert isinstance(decision, Keep) and isinstance(decision.otherwise, SmallFfn)
    big = policy.routers[0](x).argmax(-1) == 1
    assert torch.equal(decision.mask, big) and 0 < int(big.sum()) < big.numel()
    small = otherwise_output(SmallFfn(policy.gate_up_proj[0], policy.down_proj[0]), x)
    torch.testing.assert_close(y, torch.where(big[..., None], x + ffns.branch(0, x), small))
    y.sum().backward()
    for weight in (policy.gate_up_proj, policy.down_proj):
        assert weight.grad is not None and bool(weight.grad.any())


def test_bad_input() -> None:
    for sizes in ((0, 4), (4, 4), (5, 4)):
        with pytest.raises(ValueError, match="widths is"):
            ThreeWayRouter(2, HIDDEN, *sizes)
    with pytest.raises(ValueError, match="small is 'none'"):
        build(small="none")
    for shape, match in (((3, HIDDEN, BIG), "num_layers"), ((2, 5, BIG), "hidden_size"), ((2, HIDDEN, 7), "widths")):
        with pytest.raises(ValueError, match=match):
            build().check(*shape)
    build().check(2, HIDDEN, BIG + 1)  # a prefix may leave something out
    with pytest.raises(ValueError, match="big_size is 8, must be the model's 9"):
        build(small="separate").check(2, HIDDEN, BIG + 1)
    policy = build()
    for shares in ((0.5, 0.5), (1.5, -0.5, 0), (0.5, 0.5, 0.5)):
        with pytest.raises(ValueError, match="probabilities is"), policy.random_routing(shares):
            pass
    for small, way in (("prefix", -1), ("prefix", 3), ("separate", -1), ("separate", 2)):
        with pytest.raises(ValueError, match="pattern has ways from"), build(small=small).forced((0, way)):
            pass
    with build(small="separate").forced((0, 1)), build().forced((0, 2)):
        pass
    for pattern in ((1,), torch.zeros(2), torch.zeros(2, 1, 1, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match="pattern is"), policy.forced(pattern):
            pass
