"""TemporalDrop: schedule, anchors, the training form against decoding, gradients, reorder."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_runner import HIDDEN, Ffns, run
from torch import Tensor

from anabranch.skip import Action, Anchor, KeyValueRule, Layer, State, TemporalDrop

LAYERS, CYCLE = (1, 3), 3


def build(cycle: int = CYCLE) -> TemporalDrop:
    policy = TemporalDrop(LAYERS, HIDDEN, cycle, rank=2, alpha=3.0).double()
    torch.nn.init.normal_(policy.lora_b)
    return policy


def oracle(ffns: Ffns, policy: TemporalDrop, tokens: Tensor, refreshes: list[bool]) -> Tensor:
    """One sequence, token by token: `tokens` [n, H] to outputs."""
    anchors: dict[int, Tensor] = {}
    rows = []
    for token, refresh in zip(tokens, refreshes, strict=True):
        x = token
        for layer in range(ffns.num_layers):
            if layer in LAYERS and not refresh:
                index = LAYERS.index(layer)
                x = anchors[layer] + 1.5 * (policy.lora_b[index] @ (policy.lora_a[index] @ x))
            else:
                x = x + ffns.branch(layer, x)
                anchors[layer] = x
        rows.append(x)
    return torch.stack(rows)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 4), st.integers(1, 4), st.integers(0, 9), st.integers(0, 3))
def test_decoding_is_the_oracle_and_the_count_starts_at_the_prompt(
    cycle: int, prompt: int, steps: int, extra: int
) -> None:
    ffns, policy = Ffns(4), build(cycle)
    x = torch.randn(2, prompt + steps, HIDDEN, dtype=torch.float64)
    state, parts = State(4), []
    with torch.no_grad():
        parts.append(run(ffns, policy, x[:, :prompt], state)[0])
        for t in range(steps):
            y, decisions = run(ffns, policy, x[:, prompt + t : prompt + t + 1], state)
            parts.append(y)
            dropped = [isinstance(d, Layer) and d.action is Action.SKIP for d in decisions]
            assert dropped == [(t + 1) % cycle != 0 and layer in LAYERS for layer in range(4)]
        refreshes = [True] * prompt + [(t + 1) % cycle == 0 for t in range(steps)]
        got = torch.cat(parts, 1)
        for b in range(2):
            torch.testing.assert_close(got[b], oracle(ffns, policy, x[b], refreshes))
        # Another stream of the same policy counts for itself.
        other = State(4)
        run(ffns, policy, x[:, : 1 + extra], other)
        assert run(ffns, policy, x[:, :1], other)[1][1] is not None


def training(ffns: Ffns, policy: TemporalDrop, x: Tensor, positions: Tensor | None = None) -> Tensor:
    for layer in range(ffns.num_layers):
        y = x + ffns.branch(layer, x)
        x = policy.training_output(layer, x, y, positions) if layer in LAYERS else y
    return x


def test_training_form_is_what_decoding_after_one_token_gives() -> None:
    ffns, policy = Ffns(4), build()
    x = torch.randn(2, 8, HIDDEN, dtype=torch.float64)
    state = State(4)
    decoded = torch.cat([run(ffns, policy, x[:, t : t + 1], state)[0] for t in range(8)], 1)
    torch.testing.assert_close(training(ffns, policy, x), decoded)
    assert policy.refreshed(7).tolist() == [t % CYCLE == 0 for t in range(7)]


def test_training_form_with_padding_at_the_left() -> None:
    ffns, policy = Ffns(4), build()
    x = torch.randn(2, 8, HIDDEN, dtype=torch.float64)
    padding = torch.tensor([[True] * 8, [False] * 2 + [True] * 6])
    got = training(ffns, policy, x, padding.long().cumsum(1) - 1)
    torch.testing.assert_close(got[0], training(ffns, policy, x[:1])[0])
    torch.testing.assert_close(got[1, 2:], training(ffns, policy, x[1:, 2:])[0])


def test_tokens_whose_anchor_lies_before_the_call_run() -> None:
    policy = build()
    x, y = torch.randn(2, 1, 4, HIDDEN, dtype=torch.float64)
    got = policy.training_output(1, x, y, torch.arange(4) + 1)
    torch.testing.assert_close(got[:, :3], y[:, :3], rtol=0, atol=0)  # numbers 1, 2, 3
    assert not torch.equal(got[:, 3], y[:, 3])  # number 4 has its anchor at 3


def test_gradients() -> None:
    policy = TemporalDrop(LAYERS, HIDDEN, CYCLE, rank=2).double()
    assert policy.scale == 1
    x = torch.randn(1, 6, HIDDEN, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, 6, HIDDEN, dtype=torch.float64, requires_grad=True)
    policy.training_output(1, x, y).sum().backward()
    assert policy.lora_a.grad is not None and not policy.lora_a.grad.any()  # B is 0
    assert policy.lora_b.grad is not None and bool(policy.lora_b.grad[0].any()) and not policy.lora_b.grad[1].any()
    # Each refresh's output stands for CYCLE tokens; the others' full outputs are not used.
    assert y.grad is not None and y.grad[0, :, 0].tolist() == [CYCLE, 0, 0] * 2
    policy.lora_a.grad = None
    torch.nn.init.normal_(policy.lora_b)
    policy.training_output(1, x, y).sum().backward()
    assert policy.lora_a.grad is not None and bool(policy.lora_a.grad[0].any())
    inputs = (x.detach().requires_grad_(), y.detach().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: policy.training_output(3, x, y), inputs)


def test_anchor_is_the_last_real_token_wherever_padding_lies() -> None:
    policy, state = build(), State(4)
    y = torch.randn(3, 4, HIDDEN, dtype=torch.float64, requires_grad=True)
    state.padding = torch.tensor([[True] * 4, [False, False, True, True], [True, True, False, False]])
    policy.observe(1, 0, y, y, None, state)
    state.padding = None
    state.advance(4)
    decision = policy.decide(1, 1, y[:, :1], state)
    assert isinstance(decision, Layer) and isinstance(decision.otherwise, Anchor)
    anchor = decision.otherwise.anchor
    assert not anchor.requires_grad
    torch.testing.assert_close(anchor[:, 0], y.detach()[torch.arange(3), torch.tensor([3, 3, 1])], rtol=0, atol=0)


def test_reorder_takes_anchors_along() -> None:
    ffns, policy, state = Ffns(4), build(), State(4)
    x = torch.randn(3, 5, HIDDEN, dtype=torch.float64)
    index = torch.tensor([2, 0, 2, 1])
    run(ffns, policy, x[:, :4], state)
    state.reorder(index)
    got = run(ffns, policy, x[index, 4:], state)[0]
    other = State(4)
    run(ffns, policy, x[:, :4], other)
    torch.testing.assert_close(got, run(ffns, policy, x[:, 4:], other)[0][index], rtol=0, atol=0)


def test_several_tokens_at_once_refresh() -> None:
    ffns, policy, state = Ffns(4), build(), State(4)
    x = torch.randn(1, 6, HIDDEN, dtype=torch.float64)
    run(ffns, policy, x[:, :2], state)
    y, decisions = run(ffns, policy, x[:, 2:5], state)
    assert decisions == [None] * 4
    want = oracle(ffns, policy, x[0], [True] * 5 + [False])
    torch.testing.assert_close(y[0], want[2:5])
    torch.testing.assert_close(run(ffns, policy, x[:, 5:], state)[0][0], want[5:])


def test_attributes_and_bad_input() -> None:
    policy = build()
    assert policy.scope == "layer" and policy.key_value_rule is KeyValueRule.HOLE and policy.revives
    assert policy.skippable_layers(4) == set(LAYERS)
    for layers, cycle, rank, match in (([], 2, 1, "layers is"), ([1], 1, 1, "cycle is 1"), ([1], 2, 0, "rank is 0")):
        with pytest.raises(ValueError, match=match):
            TemporalDrop(layers, HIDDEN, cycle, rank=rank)
    with pytest.raises(ValueError, match="layer is 3"):
        policy.check(3, HIDDEN, 8)
    with pytest.raises(ValueError, match="hidden_size is 6"):
        policy.check(4, 5, 8)
    with pytest.raises(ValueError, match="no anchor for layer 1"):
        policy.decide(1, 1, torch.zeros(1, 1, HIDDEN), State(4))
    with pytest.raises(ValueError, match="layer is 0, must be one of"):
        policy.training_output(0, torch.zeros(1, 1, HIDDEN), torch.zeros(1, 1, HIDDEN))
