"""WidthRouter: per sample, straight-through training masks, budget, and the delta cache."""

from __future__ import annotations

import pytest
import torch
from policy_runner import HIDDEN, INTERMEDIATE, Ffns, run
from torch import Tensor

from anabranch.skip import BlockDeltaCache, CachedDelta, State, Width, WidthRouter

WIDTHS = (2, 4, 8)


def build(num_layers: int = 2, **arguments: object) -> WidthRouter:
    """With routers that choose each width about as often, so that samples differ."""
    policy = WidthRouter(num_layers, HIDDEN, WIDTHS, hidden=16, **arguments).double()  # type: ignore[arg-type]
    sample = torch.randn(64, 3, HIDDEN, dtype=torch.float64)
    for layer, router in enumerate(policy.routers):
        torch.nn.init.normal_(router[2].weight)  # type: ignore[index]
        logit, widths = policy.logits(layer, sample)
        router[2].bias.data -= torch.cat((logit[:, None], widths), 1).mean(0).detach()  # type: ignore[index]
    return policy


def gate_to(policy: WidthRouter, p: float) -> None:
    """The gate's probability whatever the input; widths by the input."""
    for router in policy.routers:
        with torch.no_grad():
            router[2].weight[0] = 0  # type: ignore[index]
            router[2].bias[0] = torch.logit(torch.tensor(p, dtype=torch.float64))  # type: ignore[index]


def indices(decision: object) -> list[int]:
    assert isinstance(decision, Width) and decision.widths == (0, *WIDTHS)
    return decision.index.tolist()


def oracle_index(policy: WidthRouter, layer: int, tokens: Tensor) -> int:
    """One sample `[n, H]`."""
    router = policy.routers[layer]
    rows = [router((t - t.mean()) / (t.var(unbiased=False) + 1e-5).sqrt()).tolist() for t in tokens]
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return 0 if means[0] < 0 else 1 + means[1:].index(max(means[1:]))


@torch.no_grad()
def test_each_sample_decides_for_itself_over_its_real_tokens() -> None:
    policy, state = build(), State(2)
    x = torch.randn(160, 5, HIDDEN, dtype=torch.float64)
    state.padding = torch.arange(5) >= (torch.arange(160) % 4)[:, None]
    x = x.masked_fill(~state.padding[..., None], 7.0)
    want = [oracle_index(policy, 1, x[b, b % 4 :]) for b in range(160)]
    assert set(want) == {0, 1, 2, 3}
    decision = policy.decide(1, 0, x, state)
    assert indices(decision) == want
    assert decision.gate is None and decision.otherwise is None  # type: ignore[union-attr]


@torch.no_grad()
def test_batch_is_the_samples_alone() -> None:
    ffns, policy = Ffns(2), build()
    x = torch.randn(8, 3, HIDDEN, dtype=torch.float64)
    y, _ = run(ffns, policy, x)
    torch.testing.assert_close(y, torch.cat([run(ffns, policy, row[None])[0] for row in x]))


def test_training_has_the_values_of_inference() -> None:
    ffns, policy = Ffns(1), build(1)
    x = torch.randn(64, 3, HIDDEN, dtype=torch.float64)
    with torch.no_grad():
        want, decisions = run(ffns, policy, x)
    assert set(indices(decisions[0])) == {0, 1, 2, 3}
    torch.testing.assert_close(run(ffns, policy, x)[0], want)
    torch.testing.assert_close(policy.training_output(0, x, lambda mask: ffns.branch(0, x, mask)), want)


def test_gradient_of_gate_and_mask_is_that_of_the_soft_form() -> None:
    ffns, policy = Ffns(1), build(1)
    x = torch.randn(64, 3, HIDDEN, dtype=torch.float64)
    dy = torch.randn(64, 3, HIDDEN, dtype=torch.float64)
    parameters = list(policy.parameters())
    got = torch.autograd.grad((policy.training_output(0, x, lambda m: ffns.branch(0, x, m)) * dy).sum(), parameters)
    # By hand: gate and mask are hard values, their gradients go to p and to sum_k softmax_k prefix_k.
    prefixes = (torch.arange(INTERMEDIATE) < torch.tensor(WIDTHS)[:, None]).double()
    logit, logits = policy.logits(0, x)
    gate = (logit >= 0).double().requires_grad_()
    mask = prefixes[logits.argmax(-1)].requires_grad_()
    y = x + gate[:, None, None] * ffns.branch(0, x, mask[:, None])
    d_gate, d_mask = torch.autograd.grad((y * dy).sum(), (gate, mask))
    soft = (logit.sigmoid() * d_gate).sum() + ((logits.softmax(-1) @ prefixes) * d_mask).sum()
    want = torch.autograd.grad(soft, parameters)
    torch.testing.assert_close(got, want)
    skipped = gate == 0
    assert bool(skipped.any()) and bool((d_gate[skipped] != 0).all())  # skipped blocks have a gradient too


def test_decide_in_training_gives_the_gate_a_gradient_and_the_widths_none() -> None:
    ffns, policy = Ffns(1), build(1)
    y, decisions = run(ffns, policy, torch.randn(8, 3, HIDDEN, dtype=torch.float64))
    assert 0 not in indices(decisions[0])
    y.sum().backward()
    grad = policy.routers[0][2].weight.grad  # type: ignore[index]
    assert bool(grad[0].any()) and not grad[1:].any()


def test_budget_measures_what_ran() -> None:
    policy = build()
    x = torch.randn(64, 3, HIDDEN, dtype=torch.float64)
    _, decisions = run(Ffns(2), policy, x)
    gates = torch.stack([d.gate[:, 0] for d in decisions])  # type: ignore[attr-defined]
    widths = torch.tensor([0, *WIDTHS])[torch.stack([d.index for d in decisions])] / 8  # type: ignore[attr-defined]
    loss = policy.budget_loss(0.25, 0.5)
    want = (gates.mean() - 0.25) ** 2 + (widths.double().mean() - 0.5) ** 2
    assert loss.item() == pytest.approx(want.item())
    loss.backward()
    assert all(bool(router[2].weight.grad.any(1).all()) for router in policy.routers)  # type: ignore[index]
    with pytest.raises(ValueError, match="nothing is recorded"):
        policy.budget_loss(0.25, 0.5)


def reuse_pattern(policy: WidthRouter, state: State, x: Tensor, steps: int) -> list[bool]:
    """Whether each step reused, checked against what the block added the last time."""
    pattern, last = [], None
    for _ in range(steps):
        y, decisions = run(Ffns(1), policy, x, state)
        decision = decisions[0]
        assert isinstance(decision, Width) and isinstance(decision.otherwise, CachedDelta)
        reused = bool((decision.index == 0).all())
        assert reused or bool((decision.index > 0).all())
        if reused:
            assert last is not None
            torch.testing.assert_close(y - x, last)
        last = y - x
        pattern.append(reused)
    return pattern


@torch.no_grad()
def test_reuse_begins_at_its_step_and_ends_after_so_many() -> None:
    x = torch.randn(2, 3, HIDDEN, dtype=torch.float64)
    policy = build(1, cache=BlockDeltaCache(margin=0.1, first_step=3, max_reuses=2))
    gate_to(policy, 0.55)
    assert reuse_pattern(policy, State(1), x, 10) == [False] * 3 + [True, True, False] * 2 + [True]
    gate_to(policy, 0.7)
    assert reuse_pattern(policy, State(1), x, 6) == [False] * 6


@torch.no_grad()
def test_each_state_has_its_own_deltas() -> None:
    policy = build(1, cache=BlockDeltaCache(margin=0.1, first_step=0))
    gate_to(policy, 0.55)
    ffns, states = Ffns(1), (State(1), State(1))
    branches = torch.randn(2, 1, 3, HIDDEN, dtype=torch.float64)
    first = [run(ffns, policy, x, state)[0] - x for x, state in zip(branches, states, strict=True)]
    for x, state, delta in zip(branches.flip(0), states, first, strict=True):
        torch.testing.assert_close(run(ffns, policy, x, state)[0] - x, delta)


@torch.no_grad()
def test_closed_gates_skip_and_samples_are_apart_and_reorder() -> None:
    policy, ffns, state = build(1, cache=BlockDeltaCache(margin=0.1, first_step=1)), Ffns(1), State(1)
    x = torch.randn(3, 2, HIDDEN, dtype=torch.float64)
    probability = torch.tensor([0.3, 0.55, 0.9], dtype=torch.float64)
    widths = torch.zeros(3, 3, dtype=torch.float64)
    policy.logits = lambda layer, x, padding=None: (torch.logit(probability), widths)  # type: ignore[method-assign]
    first = run(ffns, policy, x, state)[0] - x
    assert not first[0].any()
    later = torch.randn(3, 2, HIDDEN, dtype=torch.float64)
    second = run(ffns, policy, later, state)[0] - later
    assert not second[0].any() and not torch.equal(second[2], first[2])
    torch.testing.assert_close(second[1], first[1])
    state.reorder(torch.tensor([1, 2, 1]))
    probability[:] = 0.55
    third = run(ffns, policy, x, state)[0] - x
    torch.testing.assert_close(third, torch.stack([first[1], second[2], first[1]]))
    assert state.memory["uses", 0].tolist() == [2, 1, 2]
    probability[:] = 0.3  # closed: nothing is added, and what is cached stays
    assert torch.equal(run(ffns, policy, x, state)[0], x)
    probability[:] = 0.55
    torch.testing.assert_close(run(ffns, policy, later, state)[0] - later, third)


@torch.no_grad()
def test_a_delta_of_another_shape_is_not_reused() -> None:
    policy = build(1, cache=BlockDeltaCache(margin=0.1, first_step=0))
    gate_to(policy, 0.55)
    state = State(1)
    run(Ffns(1), policy, torch.randn(1, 3, HIDDEN, dtype=torch.float64), state)
    _, decisions = run(Ffns(1), policy, torch.randn(1, 2, HIDDEN, dtype=torch.float64), state)
    assert indices(decisions[0]) != [0]


def test_attributes_and_bad_input() -> None:
    assert not build().needs_output and build(cache=BlockDeltaCache()).needs_output and build().scope == "ffn"
    names = {f"routers.{layer}.{part}" for layer in (0, 1) for part in ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert set(build().state_dict()) == names
    for widths in ((), (0, 4), (4, 4), (8, 4)):
        with pytest.raises(ValueError, match="widths is"):
            WidthRouter(2, HIDDEN, widths)
    for cache, match in ((BlockDeltaCache(margin=-0.1), "margin"), (BlockDeltaCache(max_reuses=-1), "max_reuses")):
        with pytest.raises(ValueError, match=match):
            build(cache=cache)
    for shape, match in (((3, HIDDEN, 8), "num_layers"), ((2, 5, 8), "hidden_size"), ((2, HIDDEN, 7), "intermediate")):
        with pytest.raises(ValueError, match=match):
            build().check(*shape)
