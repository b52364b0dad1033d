"""The policies that the skip demo compares, and how they come by what they know."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anabranch import skip
from anabranch.cli.skip_model import CONTEXT, LAYERS, WIDTH, Curve, language_loss, train
from anabranch.skip import Action, ContiguousSkip, CosineSkip, LayerRouter, Policy, TemporalDrop, UniformSkip

SPEEDUPS = (1.3, 1.6, 2.0)  # of 8 layers 6, 5 and 4 run
COSINE_RATES = (0.25, 0.5)
ROUTER_TARGETS = (2 / 3, 1 / 3)  # of the 6 layers between the first and the last: 6 and 4 of 8 run
TEMPORAL = (((2, 3, 4, 5), 2), ((1, 2, 3, 4, 5, 6), 3))  # dropped layers and cycle: 3/4 and 1/2 of the FFNs run
BUDGET, RANK, LEARNING_RATE = 10.0, WIDTH // 4, 1e-2
CALIBRATION_SEQUENCES = 16

FAMILIES = ("dense", "contiguous", "uniform", "cosine", "router", "temporal")


@dataclasses.dataclass
class Candidate:
    """One policy at one budget; policy None is the dense model. `learn` prepares it in so many seconds."""

    family: str
    budget: str
    policy: Policy | None
    learn: Callable[[nn.Module, Tensor, float], None] | None = None

    @property
    def name(self) -> str:
        return f"{self.family} {self.budget}".strip()


def candidates(seed: int) -> Iterator[Candidate]:
    """All of them, the dense model first; those of one family by falling budget."""
    torch.manual_seed(seed)
    yield Candidate("dense", "", None)
    for speedup in SPEEDUPS:
        kept = int(LAYERS / speedup)
        first = (kept + 1) // 2
        block = ContiguousSkip(first, first + LAYERS - kept - 1)
        yield Candidate("contiguous", f"{kept} of {LAYERS} layers", block)
    for speedup in SPEEDUPS:
        yield Candidate("uniform", f"{int(LAYERS / speedup)} of {LAYERS} layers", UniformSkip(speedup))
    for rate in COSINE_RATES:
        cosine = CosineSkip(1.0)
        yield Candidate("cosine", f"{1 - rate:.0%} of FFNs", cosine, partial(_calibrate, cosine, rate))
    for target in ROUTER_TARGETS:
        kept = round(2 + target * (LAYERS - 2))
        router = LayerRouter(
            LAYERS,
            WIDTH,
            actions=(Action.SKIP, Action.RUN),
            layers=range(1, LAYERS - 1),
            objective="straight_through",
        )
        yield Candidate(
            "router", f"aims at {kept} of {LAYERS} layers", router, partial(_train_router, router, target, seed)
        )
    for layers, cycle in TEMPORAL:
        temporal = TemporalDrop(layers, WIDTH, cycle, rank=RANK)
        budget = f"{len(layers)} layers at 1 byte in {cycle}"
        yield Candidate("temporal", budget, temporal, partial(_train_temporal, temporal, seed))


def with_policy(model: nn.Module, policy: Policy | None) -> nn.Module:
    """A copy of the model with the policy on it."""
    twin = copy.deepcopy(model).eval()
    if policy is not None:
        skip.apply(twin, policy.eval())
    return twin


@torch.no_grad()
def _calibrate(policy: CosineSkip, rate: float, model: nn.Module, text: Tensor, seconds: float) -> None:
    """The threshold that skips the wished share of FFNs on text that the model was trained on."""
    starts = torch.linspace(0, len(text) - CONTEXT - 1, CALIBRATION_SEQUENCES).long()[:, None]
    skip.apply(model, policy)
    try:
        with policy.observing() as observed:
            model(text[starts + torch.arange(CONTEXT)], use_cache=False)
    finally:
        skip.remove(model)
    policy.calibrate(observed, rate, LAYERS)


def _train_router(
    policy: LayerRouter, target: float, seed: int, model: nn.Module, text: Tensor, seconds: float
) -> None:
    """FiRST's routers, straight through, on the frozen model; each training sequence is taken for a prompt."""

    def loss_of(batch: Tensor) -> tuple[Tensor, Tensor]:
        nats, loss = language_loss(model, batch)
        return nats, loss + BUDGET * policy.budget_loss(target)

    skip.apply(model, policy.train())
    try:
        train("router", policy.parameters(), loss_of, text, seconds, seed, Curve(), LEARNING_RATE)
    finally:
        skip.remove(model)


def _train_temporal(policy: TemporalDrop, seed: int, model: nn.Module, text: Tensor, seconds: float) -> None:
    """LoRA-Drop's corrections on the frozen model: tokens off the cycle take the anchor, and nobody sees their keys."""
    causal = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril()
    seen = (causal & policy.refreshed(CONTEXT))[None, None]

    def hide(module: nn.Module, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**options, "attention_mask": seen}

    def mix(layer: int, module: nn.Module, arguments: Any, y: Tensor) -> Tensor:
        return policy.training_output(layer, arguments[0], y)

    decoder: Any = model
    hooks = []
    for index in policy.layers:
        layer: nn.Module = decoder.model.layers[index]
        hooks.append(layer.register_forward_pre_hook(hide, with_kwargs=True))
        hooks.append(layer.register_forward_hook(partial(mix, index)))
    try:
        train("lora", policy.parameters(), partial(language_loss, model), text, seconds, seed, Curve(), LEARNING_RATE)
    finally:
        for hook in hooks:
            hook.remove()
