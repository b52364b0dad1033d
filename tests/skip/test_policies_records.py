"""What recording policies keep of a training forward: for how long, and never in a copy."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from policy_runner import HIDDEN, INTERMEDIATE, Ffns, run

from anabranch.skip import Action, LayerRouter, MixtureOfDepths, State, ThreeWayRouter, WidthRouter

POLICIES: dict[str, Any] = {
    "router": lambda: LayerRouter(4, HIDDEN, actions=(Action.SKIP, Action.RUN), objective="straight_through"),
    "depths": lambda: MixtureOfDepths(4, HIDDEN, every=1),
    "ways": lambda: ThreeWayRouter(4, HIDDEN, 3, INTERMEDIATE),
    "widths": lambda: WidthRouter(4, HIDDEN, (2, INTERMEDIATE)),
}


def tokens() -> torch.Tensor:
    return torch.randn(2, 5, HIDDEN, dtype=torch.float64)


def layers_of(policy: Any) -> set[int]:
    return {layer for values in policy._recorded.values() for layer in values}


@pytest.mark.parametrize("name", POLICIES)
def test_copies_and_pickles_have_no_records(name: str) -> None:
    policy = POLICIES[name]().double()
    run(Ffns(4), policy, tokens())
    assert layers_of(policy) == {0, 1, 2, 3}
    file = io.BytesIO()
    torch.save(policy, file)
    file.seek(0)
    for other in (
        copy.deepcopy(policy),
        copy.copy(policy),
        pickle.loads(pickle.dumps(policy)),
        torch.load(file, weights_only=False),
    ):
        assert not layers_of(other)
        for key, value in policy.state_dict().items():
            assert torch.equal(other.state_dict()[key], value)
        run(Ffns(4), other, tokens())
        assert layers_of(other) == {0, 1, 2, 3}
    assert layers_of(policy) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", POLICIES)
def test_a_forward_that_ends_early_leaves_nothing_of_the_last(name: str) -> None:
    policy, x, state = POLICIES[name]().double(), tokens(), State(4)
    run(Ffns(4), policy, x)
    for layer in (0, 1):
        policy.decide(layer, 0, x, state)
    assert layers_of(policy) == {0, 1}
    policy.forget()
    assert not layers_of(policy)
    policy.decide(3, 0, x, State(4))
    assert layers_of(policy) == {3}
