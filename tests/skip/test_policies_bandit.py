"""BanditSkip: draws, updates, ramp, exploration that finds the layers to spare, adapters, saving."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from policy_runner import HIDDEN, Ffns, run

from anabranch.skip import Action, BanditSkip, KeyValueRule, Layer, LowRank


def build(num_layers: int = 4, num_skipped: int = 2, **arguments: object) -> BanditSkip:
    return BanditSkip(num_layers, HIDDEN, num_skipped, rank=3, **arguments).double()  # type: ignore[arg-type]


def test_update_is_the_formula() -> None:
    policy = build(rate=0.5)
    start = [0.3, -1.0, 2.0, 0.0]
    policy.scores.copy_(torch.tensor(start))
    sets, losses = [{0, 1}, {1, 3}, {0, 2}], [0.1, 2.0, 0.7]
    policy.update(sets, losses)
    rewards = [math.exp(-loss) for loss in losses]
    mean = sum(rewards) / 3
    for layer in range(4):
        p = 1 / (1 + math.exp(-start[layer]))
        moved = sum(0.5 * (r - mean) * p * (1 - p) for chosen, r in zip(sets, rewards, strict=True) if layer in chosen)
        assert float(policy.scores[layer]) == pytest.approx(start[layer] + moved, rel=1e-6)


def test_draws_are_distinct_and_in_proportion() -> None:
    policy = build(3, 1, seed=1)
    policy.scores.copy_(torch.tensor([0.0, math.log(0.25 / 0.75), math.log(0.25 / 0.75)]))  # p = .5, .25, .25
    counts = Counter(layer for _ in range(4000) for layer in policy.draw(1))
    assert [counts[layer] / 4000 for layer in range(3)] == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
    pairs = Counter(policy.draw(2) for _ in range(4000))
    # Without replacement: {1, 2} is drawn with chance .25/1 * .25/.75 twice.
    assert pairs[frozenset({1, 2})] / 4000 == pytest.approx(1 / 6, abs=0.03)
    assert {len(pair) for pair in pairs} == {2}


def test_warm_up_ramps_and_exploration_waits_for_it() -> None:
    policy = build(8, 4, warmup_steps=8, every=3, layers=[1, 2, 3, 4, 6])
    counts = [policy.num_bypassed(step) for step in range(12)]
    assert counts == [min(4, 4 * (step + 1) // 9) for step in range(12)] and counts[0] == 0 and counts[8] == 4
    for step in range(12):
        assert len(policy.sample(step)) == counts[step] and policy.bypassed <= {1, 2, 3, 4, 6}
    assert [step for step in range(18) if policy.explores(step)] == [10, 13, 16]
    assert build().num_bypassed(0) == 2


def test_same_seed_same_draws() -> None:
    first, second, other = (build(8, 3, seed=seed) for seed in (5, 5, 6))
    draws = [[policy.draw(3) for _ in range(6)] for policy in (first, second, other)]
    assert draws[0] == draws[1] != draws[2]


def test_exploration_finds_the_layers_that_cost_nothing() -> None:
    policy = build(6, 2, rate=1.0)
    for _ in range(80):
        policy.explore(lambda: len(policy.bypassed - {2, 5}))
    assert policy.finish() == {2, 5} == policy.bypassed


def test_ties_finish_at_the_lower_layers() -> None:
    assert build(layers=[1, 2, 3]).finish() == {1, 2}


def test_bypassed_layer_is_the_identity_at_first_and_its_adapter_learns() -> None:
    ffns, policy = Ffns(4), build()
    x = torch.randn(2, 3, HIDDEN, dtype=torch.float64)
    with policy.bypassing({1, 2}):
        y, decisions = run(ffns, policy, x)
        for layer, decision in enumerate(decisions):
            assert (decision is not None) == (layer in (1, 2))
            if isinstance(decision, Layer):
                assert decision.action is Action.SKIP and isinstance(decision.otherwise, LowRank)
                assert decision.otherwise.activation == "relu" and decision.otherwise.normed
        h = x + ffns.branch(0, x)
        torch.testing.assert_close(y, h + ffns.branch(3, h))
        y.sum().backward()
        up, down = policy.up_proj.grad, policy.down_proj.grad
        assert up is not None and down is not None and not down.any()
        assert [bool(up[layer].any()) for layer in range(4)] == [False, True, True, False]
        policy.down_proj.grad = None
        torch.nn.init.normal_(policy.up_proj)
        run(ffns, policy, x)[0].sum().backward()
        assert policy.down_proj.grad is not None and bool(policy.down_proj.grad[1].any())
    assert policy.bypassed == frozenset() and not policy.scores.requires_grad


def test_adapters_belong_to_their_layers() -> None:
    policy = build(6, 1, layers=[4, 2])
    with policy.bypassing({4}):
        decision = policy.decide(4, 0, torch.zeros(1, 1, HIDDEN, dtype=torch.float64), None)  # type: ignore[arg-type]
    assert isinstance(decision, Layer) and isinstance(decision.otherwise, LowRank)
    assert torch.equal(decision.otherwise.down_proj, policy.down_proj[1])
    assert policy.skippable_layers(6) == {2, 4}


def test_bypassing_is_restored_after_an_error() -> None:
    policy = build()
    before = policy.sample(0)
    with pytest.raises(RuntimeError), policy.bypassing({0}):
        raise RuntimeError
    assert policy.bypassed == before


def test_saving_takes_scores_and_choice_along() -> None:
    policy, other = build(), build()
    policy.update([{0, 3}, {1, 2}], [0.0, 1.0])
    assert policy.finish() == {0, 3}
    other.load_state_dict(policy.state_dict())
    assert other.bypassed == {0, 3} and torch.equal(other.scores, policy.scores)


def test_attributes_and_bad_input() -> None:
    policy = build()
    assert policy.scope == "layer" and policy.key_value_rule is KeyValueRule.HOLE and not policy.revives
    for arguments, match in (
        ({"num_skipped": 0}, "num_skipped is 0"),
        ({"num_skipped": 4}, "num_skipped is 4"),
        ({"num_candidates": 1}, "num_candidates is 1"),
        ({"rate": 0.0}, "rate is"),
        ({"layers": [4, 1, 2]}, "layer is 4"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
    ):
        with pytest.raises(ValueError, match=match):
            build(**arguments)  # type: ignore[arg-type]
    for sets, losses in (([{0}], [1.0, 2.0]), ([], []), ([{0}], [math.nan])):
        with pytest.raises(ValueError, match="losses is"):
            policy.update(sets, losses)
    with pytest.raises(ValueError, match="layer is 9"):
        policy.update([{9}], [1.0])
    with pytest.raises(ValueError, match="layer is 9"), policy.bypassing({9}):
        pass
    for shape, match in (((3, HIDDEN, 8), "num_layers"), ((4, 5, 8), "hidden_size")):
        with pytest.raises(ValueError, match=match):
            policy.check(*shape)
