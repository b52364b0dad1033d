"""Decisions of the policies of scope "ffn" mean to `gated_ffn` and `prefix_ffn` what they mean to plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from policy_runner import HIDDEN, INTERMEDIATE, Ffns, run, run_by_ops

from anabranch.skip import BlockDeltaCache, CosineSkip, MixtureOfDepths, Policy, State, ThreeWayRouter, WidthRouter

WIDTHS = (2, 5, INTERMEDIATE)
POLICIES: dict[str, Callable[[], Policy]] = {
    "cosine": lambda: CosineSkip(0.9, warmup_tokens=1, until=1),
    "three ways": lambda: ThreeWayRouter(4, HIDDEN, 3, INTERMEDIATE),
    "separate small": lambda: ThreeWayRouter(4, HIDDEN, 3, INTERMEDIATE, small="separate"),
    "width": lambda: WidthRouter(4, HIDDEN, WIDTHS),
    "width with deltas": lambda: WidthRouter(4, HIDDEN, WIDTHS, cache=BlockDeltaCache(margin=0.3, first_step=1)),
    "mixture of depths": lambda: MixtureOfDepths(4, HIDDEN, capacity=0.4),
}


def build(name: str) -> Policy:
    policy = POLICIES[name]().double()
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.7)  # so that tokens and samples differ
    return policy


@pytest.mark.parametrize("name", POLICIES)
def test_inference(name: str) -> None:
    ffns, policy, states = Ffns(4), build(name), (State(4), State(4))
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(5, 6, HIDDEN, dtype=torch.float64)
            torch.testing.assert_close(run_by_ops(ffns, policy, x, states[0]), run(ffns, policy, x, states[1])[0])


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "cosine"])
def test_training_and_the_gradient_of_every_parameter(name: str) -> None:
    ffns, policy = Ffns(4), build(name)
    x, dy = torch.randn(2, 5, 6, HIDDEN, dtype=torch.float64)
    parameters = list(policy.parameters())
    y, want = run_by_ops(ffns, policy, x, State(4)), run(ffns, policy, x)[0]
    torch.testing.assert_close(y, want)
    got = torch.autograd.grad((y * dy).sum(), parameters, allow_unused=True)
    by_torch = torch.autograd.grad((want * dy).sum(), parameters, allow_unused=True)
    assert any(grad is not None and bool(grad.any()) for grad in got)
    for mine, theirs in zip(got, by_torch, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)
