"""Every policy on meta tensors, where a host read or a stray CPU tensor is an error, and in mixed precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from anabranch.skip import (
    Action,
    Anchor,
    BanditSkip,
    BlockDeltaCache,
    CachedDelta,
    ContiguousSkip,
    CosineSkip,
    Keep,
    Layer,
    LayerRouter,
    LowRank,
    MixtureOfDepths,
    Policy,
    SmallFfn,
    State,
    TemporalDrop,
    ThreeWayRouter,
    UniformSkip,
    Width,
    WidthRouter,
)

LAYERS, HIDDEN, INTERMEDIATE = 4, 6, 8
FIRST = (Action.SKIP, Action.RUN)


def bandit() -> BanditSkip:
    policy = BanditSkip(LAYERS, HIDDEN, 2, rank=2)
    policy._bypassed = frozenset({1, 2})
    return policy


POLICIES: dict[str, Callable[[], Policy]] = {
    "uniform": lambda: UniformSkip(2),
    "contiguous": lambda: ContiguousSkip(1, 2),
    "cosine": lambda: CosineSkip(0.9),
    "router": lambda: LayerRouter(LAYERS, HIDDEN),
    "straight through": lambda: LayerRouter(LAYERS, HIDDEN, actions=FIRST, objective="straight_through"),
    "temporal": lambda: TemporalDrop((1, 2), HIDDEN, 2),
    "width": lambda: WidthRouter(LAYERS, HIDDEN, (2, 8), cache=BlockDeltaCache(first_step=0)),
    "three ways": lambda: ThreeWayRouter(LAYERS, HIDDEN, 2, INTERMEDIATE),
    "separate small": lambda: ThreeWayRouter(LAYERS, HIDDEN, 2, INTERMEDIATE, small="separate"),
    "bandit": bandit,
    "mixture of depths": lambda: MixtureOfDepths(LAYERS, HIDDEN),
}
every_policy = pytest.mark.parametrize("name", POLICIES)


def check_decision(decision: object, x: Tensor) -> None:
    """Dtypes, devices and shapes are those of the contract."""
    shape = x.shape[:2]
    if decision is None:
        return
    assert isinstance(decision, Layer | Keep | Width)
    other = decision.otherwise
    if isinstance(decision, Layer):
        if isinstance(decision.action, Tensor):
            assert decision.action.dtype == torch.int64 and decision.action.shape == shape[:1]
            assert decision.action.device == x.device
        gate_shape = shape[:1]
    else:
        gate_shape = shape
    if isinstance(decision, Keep):
        assert decision.mask.dtype == torch.bool and decision.mask.shape == shape and decision.mask.device == x.device
    if isinstance(decision, Width):
        assert decision.index.dtype == torch.int64 and decision.index.shape in (shape, shape[:1])
        assert decision.index.device == x.device and list(decision.widths) == sorted(decision.widths)
    if decision.gate is not None:
        assert decision.gate.shape == gate_shape and decision.gate.dtype == x.dtype
    if isinstance(other, Anchor):
        assert other.anchor.shape == x.shape and other.anchor.dtype == x.dtype
        assert other.lora_a is not None and other.lora_a.dtype == x.dtype
    if isinstance(other, CachedDelta):
        assert other.delta.shape == x.shape and other.delta.dtype == x.dtype
    if isinstance(other, LowRank | SmallFfn):
        assert other.down_proj.dtype == x.dtype


def two_calls(policy: Policy, dtype: torch.dtype, padded: bool) -> None:
    policy.check(LAYERS, HIDDEN, INTERMEDIATE)
    state = State(LAYERS)
    for length in (5, 1):
        x = torch.randn(3, length, HIDDEN, dtype=dtype)
        state.padding = torch.ones(3, length, dtype=torch.bool) if padded else None
        for layer in range(LAYERS):
            check_decision(policy.decide(layer, state.step, x, state), x)
            if policy.needs_output or policy.needs_cosine:
                cosine = torch.ones(3, length) if policy.needs_cosine else None
                policy.observe(layer, state.step, x, x + 1, cosine, state)
        state.advance(length)
        state.reorder(torch.tensor([2, 0, 0]))
    for value in state.memory.values():
        assert not isinstance(value, Tensor) or value.shape[0] == 3


@every_policy
@pytest.mark.parametrize("learning", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_no_host_read_and_one_device(name: str, learning: bool, padded: bool) -> None:
    with torch.device("meta"), torch.set_grad_enabled(learning):
        policy = POLICIES[name]()
        two_calls(policy, torch.float32, padded)


@every_policy
@pytest.mark.parametrize("learning", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_in_float32_under_another_stream(name: str, learning: bool, dtype: torch.dtype) -> None:
    with torch.set_grad_enabled(learning):
        two_calls(POLICIES[name](), dtype, padded=False)


@every_policy
def test_state_dict_round_trip(name: str) -> None:
    policy, other = POLICIES[name](), POLICIES[name]()
    other.load_state_dict(policy.state_dict())
    for key, value in policy.state_dict().items():
        loaded = other.state_dict()[key]
        assert torch.equal(value, loaded) if isinstance(value, Tensor) else value == loaded


@every_policy
def test_a_sequence_alone_and_no_sequence(name: str) -> None:
    with torch.no_grad():
        policy = POLICIES[name]()
        for batch in (1, 0):
            state, x = State(LAYERS), torch.randn(batch, 4, HIDDEN)
            for layer in range(LAYERS):
                check_decision(policy.decide(layer, 0, x, state), x)
                if policy.needs_output or policy.needs_cosine:
                    policy.observe(layer, 0, x, x, torch.ones(batch, 4), state)
