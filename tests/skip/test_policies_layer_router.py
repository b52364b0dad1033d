"""LayerRouter against plain Python: windows, knob, padding, freezing, gradients of both objectives."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_runner import HIDDEN, Ffns, run
from torch import Tensor

from anabranch.skip import UNLABELLED, Action, KeyValueRule, Layer, LayerRouter, State, focal_loss

FIRST = (Action.SKIP, Action.RUN)


def build(num_layers: int = 3, **arguments: object) -> LayerRouter:
    """With routers that choose each action about as often, so that sequences differ."""
    policy = LayerRouter(num_layers, HIDDEN, hidden=16, **arguments).double()  # type: ignore[arg-type]
    sample = torch.randn(64, 4, HIDDEN, dtype=torch.float64)
    for layer, router in zip(policy.layers, policy.routers.values(), strict=True):
        torch.nn.init.normal_(router[2].weight, std=3)  # type: ignore[index]
        router[2].bias.data -= policy.logits(layer, sample).mean(0).detach()  # type: ignore[index]
    return policy


def actions(decisions: list[object]) -> list[list[int]]:
    """Per layer, per sequence."""
    return [d.action.tolist() for d in decisions]  # type: ignore[attr-defined]


def oracle_logits(policy: LayerRouter, layer: int, tokens: Tensor) -> Tensor:
    """One sequence `[n, H]` without padding, n >= 1."""
    count = min(policy.windows, len(tokens))
    size = len(tokens) // count
    votes = [policy.routers[str(layer)](tokens[i * size : (i + 1) * size].mean(0)) for i in range(count)]
    return torch.stack(votes).mean(0)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_logits_are_the_mean_over_windows_of_real_tokens(data: st.DataObject) -> None:
    windows, length = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 20))
    policy = build(2, windows=windows)
    x = torch.randn(3, length, HIDDEN, dtype=torch.float64)
    pads = [data.draw(st.integers(0, length - 1)) for _ in range(3)]
    left = data.draw(st.booleans())
    numbers = torch.arange(length)
    padding = torch.stack([numbers >= pad if left else numbers < length - pad for pad in pads])
    garbage = torch.where(padding[..., None], x, torch.nan)
    got = policy.logits(1, garbage, padding)
    for b in range(3):
        torch.testing.assert_close(got[b], oracle_logits(policy, 1, x[b, padding[b]]))
    torch.testing.assert_close(policy.logits(0, x), torch.stack([oracle_logits(policy, 0, row) for row in x]))


def oracle_action(probs: list[float], p: float) -> int:
    """The knob as a table of the four ends."""
    ends = [(-1.0, [1.0, 0, 0]), (-0.5, probs), (0.5, [0, 1.0, 0]), (1.0, [0, 0, 1.0])]
    for (low, first), (high, second) in itertools.pairwise(ends):
        if low <= p <= high:
            t = (p - low) / (high - low)
            mixed = [(1 - t) * a + t * b for a, b in zip(first, second, strict=True)]
            return max(range(3), key=lambda action: (mixed[action], -action))
    raise AssertionError


@settings(deadline=None)
@given(st.floats(-1, 1), st.integers(0, 1000))
def test_knob_mixes_the_probabilities(p: float, seed: int) -> None:
    torch.manual_seed(seed)
    policy, x = build(1, p=p), torch.randn(4, 3, HIDDEN, dtype=torch.float64) * 3
    got = actions([policy.decide(0, 0, x, State(1))])[0]
    probs = policy.logits(0, x).softmax(-1).tolist()
    assert got == [oracle_action(row, p) for row in probs]


def test_ends_of_the_knob() -> None:
    x = torch.randn(4, 3, HIDDEN, dtype=torch.float64)
    for p, want in ((-1, Action.SKIP), (0.5, Action.RUN), (1, Action.REPEAT)):
        assert actions(run(Ffns(3), build(p=p), x)[1]) == [[int(want)] * 4] * 3


def test_each_sequence_decides_as_if_alone_and_its_decision_stays() -> None:
    ffns, policy, state = Ffns(3), build(), State(3)
    x = torch.randn(8, 9, HIDDEN, dtype=torch.float64) * 4
    y, decisions = run(ffns, policy, x, state)
    first = actions(decisions)
    assert {action for row in first for action in row} == {0, 1, 2}
    for b in range(8):
        torch.testing.assert_close(run(ffns, policy, x[b : b + 1])[0], y[b : b + 1])
    later = torch.randn(8, 1, HIDDEN, dtype=torch.float64)
    for _ in range(2):
        assert actions(run(ffns, policy, later, state)[1]) == first
    index = torch.tensor([7, 0, 0, 3])
    state.reorder(index)
    assert actions(run(ffns, policy, later[:4], state)[1]) == [[row[i] for i in index.tolist()] for row in first]


def test_a_sequence_without_tokens_runs_and_layers_without_router_too() -> None:
    policy = build(layers=[0, 2])
    padding = torch.tensor([[False, False], [True, True]])
    x = torch.full((2, 2, HIDDEN), torch.nan, dtype=torch.float64)
    x[1] = 1
    decisions = run(Ffns(3), policy, x, padding=padding)[1]
    assert decisions[1] is None and decisions[0].action[0] == Action.RUN  # type: ignore[attr-defined]
    empty = policy.decide(0, 0, x[:, :0], State(3))
    assert isinstance(empty, Layer) and empty.action.tolist() == [1, 1]  # type: ignore[union-attr]
    assert policy.skippable_layers(3) == {0, 2}


def test_labels_drive_what_runs_and_train_the_routers_alone() -> None:
    ffns, policy = Ffns(3), build()
    labels = torch.tensor([[0, 1, 2], [2, UNLABELLED, 0]])
    x = torch.randn(2, 9, HIDDEN, dtype=torch.float64, requires_grad=True)
    with policy.teacher_forcing(labels):
        y, decisions = run(ffns, policy, x)
    assert actions(decisions) == [[0, 2], [1, 1], [2, 0]]
    inputs = [x, x, x]  # of each layer and sequence, from the labels
    first = torch.stack([x[0], (x + ffns.branch(0, x) + ffns.branch(0, x + ffns.branch(0, x)))[1]])
    inputs = [x, first, first + ffns.branch(1, first)]
    want = focal_loss(torch.stack([policy.logits(i, inputs[i].detach()) for i in range(3)], 1), labels)
    loss = policy.supervised_loss()
    torch.testing.assert_close(loss, want)
    loss.backward()
    assert x.grad is None  # x is read detached
    assert all(p.grad is not None and bool(p.grad.any()) for p in policy.routers["0"].parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in policy.routers["2"].parameters())
    with pytest.raises(ValueError, match="nothing is recorded"):
        policy.supervised_loss()
    assert y.requires_grad and policy.repeats != (policy.actions == FIRST)


def test_the_models_loss_alone_gives_a_supervised_router_no_gradient() -> None:
    policy = build()
    y, _ = run(Ffns(3), policy, torch.randn(2, 4, HIDDEN, dtype=torch.float64))
    assert not y.requires_grad


def test_straight_through_has_the_values_of_inference_and_gradients_where_it_skips() -> None:
    ffns, policy = Ffns(2), build(2, actions=FIRST, objective="straight_through")
    x = torch.randn(6, 4, HIDDEN, dtype=torch.float64) * 4
    y, decisions = run(ffns, policy, x)
    assert all(d.action is Action.RUN and d.gate is not None for d in decisions)  # type: ignore[attr-defined]
    with torch.no_grad():
        inference, frozen = run(ffns, policy, x)
    torch.testing.assert_close(y, inference, rtol=0, atol=0)
    ran = torch.tensor(actions(frozen))
    assert 0 < int(ran.sum()) < 12
    # d loss / d p_run of layer 1 is <dy, FFN(x)> for every sequence, skipped ones included.
    dy = torch.randn_like(y)
    probs = policy.logits(1, first := run_first(ffns, x, ran[0])).softmax(-1)[:, 1]
    want = torch.autograd.grad(
        (probs * (dy * ffns.branch(1, first)).sum((1, 2))).sum(), list(policy.routers["1"].parameters())
    )
    got = torch.autograd.grad((y * dy).sum(), list(policy.routers["1"].parameters()), retain_graph=True)
    torch.testing.assert_close(got, want)


def run_first(ffns: Ffns, x: Tensor, ran: Tensor) -> Tensor:
    return x + ran[:, None, None] * ffns.branch(0, x)


def test_budget_measures_what_ran_and_moves_the_probabilities() -> None:
    policy = build(2, actions=FIRST, objective="straight_through")
    x = torch.randn(6, 4, HIDDEN, dtype=torch.float64) * 4
    with torch.no_grad():
        ran = torch.tensor(actions(run(Ffns(2), policy, x)[1])).double().mean()
    run(Ffns(2), policy, x)
    loss = policy.budget_loss(0.0)
    assert loss.item() == pytest.approx(ran.item() ** 2)
    loss.backward()
    # The bias of "run" rises with the loss in every router: descending it skips more.
    assert all(float(policy.routers[str(i)][2].bias.grad[1]) > 0 for i in range(2))  # type: ignore[index]


def test_labels_and_budget_are_trainable() -> None:
    torch.manual_seed(1)
    policy = build(2).float()
    x = torch.randn(16, 8, HIDDEN)
    labels = torch.stack([(x.mean((1, 2)) > 0).long() * 2, (x[..., 0].mean(1) > 0).long()], 1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    still = Ffns(2, torch.float32)
    still.down.zero_()
    for _ in range(60):
        with policy.teacher_forcing(labels):
            run(still, policy, x)
        optimizer.zero_grad()
        policy.supervised_loss().backward()
        optimizer.step()
    with torch.no_grad():
        got = torch.tensor(actions(run(still, policy, x)[1])).T
    assert float((got == labels).float().mean()) > 0.9


def test_attributes() -> None:
    policy = build()
    assert policy.scope == "layer" and policy.repeats and not policy.revives
    assert policy.key_value_rule is KeyValueRule.HOLE and not build(actions=FIRST).repeats


def test_bad_input() -> None:
    for arguments, match in (
        ({"actions": (Action.RUN,)}, "actions is"),
        ({"objective": "straight_through"}, "actions has REPEAT"),
        ({"objective": "none"}, "objective is 'none'"),
        ({"layers": [3]}, "layer is 3"),
        ({"layers": [-1]}, "layer is -1"),
        ({"layers": []}, "layers is"),
        ({"layers": [1, 1]}, "layers is"),
        ({"windows": 0}, "windows is 0"),
        ({"p": 1.5}, "p is 1.5"),
        ({"p": 0.75, "actions": FIRST}, r"p is 0\.75"),
    ):
        with pytest.raises(ValueError, match=match):
            build(**arguments)  # type: ignore[arg-type]
    policy = build()
    with pytest.raises(ValueError, match="num_layers is 3, must be the model's 4"):
        policy.check(4, HIDDEN, 8)
    with pytest.raises(ValueError, match="hidden_size is 6, must be the model's 8"):
        policy.check(3, 8, 8)
    with pytest.raises(ValueError, match="no decision for layer 0"):
        policy.decide(0, 1, torch.zeros(1, 1, HIDDEN), State(3))
    for labels in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="labels is"), policy.teacher_forcing(labels):
            pass
