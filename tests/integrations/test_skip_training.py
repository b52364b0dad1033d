"""The room's own policies in training on models of transformers: gradients per layer, steps that descend, copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from skip_cases import HIDDEN, INTERMEDIATE, LAYERS, build, prompt, steps
from torch import Tensor

from anabranch import skip
from anabranch.skip import Action

FIRST = (Action.SKIP, Action.RUN)
WIDTHS = (43, 86, 129)
POLICIES: dict[str, Any] = {
    "router": lambda: skip.LayerRouter(LAYERS, HIDDEN),
    "first": lambda: skip.LayerRouter(LAYERS, HIDDEN, actions=FIRST, objective="straight_through"),
    "temporal": lambda: skip.TemporalDrop([1, 2], HIDDEN, 3),
    "widths": lambda: skip.WidthRouter(LAYERS, HIDDEN, WIDTHS),
    "three ways": lambda: skip.ThreeWayRouter(LAYERS, HIDDEN, 43, INTERMEDIATE),
    "small beside": lambda: skip.ThreeWayRouter(LAYERS, HIDDEN, 43, INTERMEDIATE, small="separate"),
    "bandit": lambda: skip.BanditSkip(LAYERS, HIDDEN, 2),
    "depths": lambda: skip.MixtureOfDepths(LAYERS, HIDDEN),
}
BUDGETS: dict[str, Callable[[Any], Tensor]] = {
    "first": lambda policy: policy.budget_loss(0.25),
    "widths": lambda policy: policy.budget_loss(0.25, 0.5),
    "three ways": lambda policy: policy.budget_loss(0.25),
}


def make(name: str, attention: str = "sdpa") -> tuple[Any, Any]:
    """A model and a policy on it, both in training and in float64."""
    model = build("qwen3", torch.float64, attention).train()
    torch.manual_seed(5)
    policy = POLICIES[name]().double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(0, 0.1)
    policy.train()
    if name == "bandit":
        policy.sample(10)
    skip.apply(model, policy)
    return model, policy


def loss_of(name: str, model: Any, policy: Any, tokens: Tensor) -> Tensor:
    """What the policy's docstring says that it descends on, without the budget."""
    if name == "router":
        labels = torch.arange(len(tokens) * LAYERS).reshape(len(tokens), LAYERS) % 3
        with policy.teacher_forcing(labels):
            model(tokens)
        return policy.supervised_loss()
    out = model(tokens, labels=tokens).loss
    return out + policy.predictor_loss() if name == "depths" else out


def learned(name: str, policy: Any) -> Iterator[Tensor]:
    """The gradients of what each layer learns by: one tensor per layer and part."""
    if name == "temporal":
        yield from (grad[index] for grad in (policy.lora_a.grad, policy.lora_b.grad) for index in range(2))
    elif name == "bandit":
        bypassed = [policy.layers.index(layer) for layer in policy.bypassed]
        yield from (grad[index] for grad in (policy.down_proj.grad, policy.up_proj.grad) for index in bypassed)
    else:
        yield from (parameter.grad for parameter in policy.parameters())
    if name == "widths":
        yield from (router[2].weight.grad[row] for router in policy.routers for row in (0, slice(1, None)))


@pytest.mark.parametrize("name", POLICIES)
def test_every_layer_learns_of_the_models_loss(name: str) -> None:
    model, policy = make(name)
    loss_of(name, model, policy, prompt(6, 16)).backward()
    grads = list(learned(name, policy))
    assert len(grads) >= 2 and all(grad is not None and bool(grad.any()) for grad in grads)
    if name not in ("router", "first", "bandit"):  # labels are no loss of the model; skipped layers have no gradient
        used = [parameter.grad for key, parameter in model.named_parameters() if "mlp" not in key]
        assert all(grad is not None and bool(grad.any()) for grad in used)


@pytest.mark.parametrize("name", ["router", "temporal", "small beside", "bandit", "depths"])
def test_a_step_lowers_the_loss_by_what_the_gradient_says(name: str) -> None:
    """For what is smooth: not for routers whose choice is hard."""
    model, policy = make(name)
    tokens = prompt(4, 16)
    before = loss_of(name, model, policy, tokens)
    smooth = [value for key, value in policy.named_parameters() if name != "small beside" or "routers" not in key]
    grads = torch.autograd.grad(before, smooth, allow_unused=True)
    moved = [(value, grad) for value, grad in zip(smooth, grads, strict=True) if grad is not None]
    slope = sum(float(grad.square().sum()) for _, grad in moved)
    rate = 1e-3 / slope  # transformers' norms and loss are in float32
    with torch.no_grad():
        for value, grad in moved:
            value -= rate * grad
    after = loss_of(name, model, policy, tokens)
    assert float((before - after).detach()) == pytest.approx(1e-3, rel=0.02)


@pytest.mark.parametrize("name", BUDGETS)
def test_hard_choices_are_trained_towards_their_budget_and_the_loss(name: str) -> None:
    model, policy = make(name)
    model.requires_grad_(False)
    tokens, totals = prompt(4, 16), []
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(40):
        loss = loss_of(name, model, policy, tokens)
        total = loss + 10 * BUDGETS[name](policy)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert sum(totals[-5:]) < 0.95 * sum(totals[:5])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("use_cache", [False, True])
def test_temporal_drop_trains_on_what_decoding_gives(attention: str, padded: bool, use_cache: bool) -> None:
    model, policy = make("temporal", attention)
    model.float(), policy.float()  # eager attention makes its masks in float32
    tokens, mask = prompt(2, 11), torch.ones(2, 11, dtype=torch.int64)
    if padded:
        tokens[1, :3], mask[1, :3] = 0, 0  # a cycle of 3: both sequences refresh at the same steps
    policy.eval()
    wanted = steps(model, tokens, 1, attention_mask=mask)
    policy.train()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    got = model(tokens, attention_mask=mask, position_ids=positions, use_cache=use_cache).logits
    real = mask.bool()
    torch.testing.assert_close(got[real], wanted[real], rtol=1e-4, atol=1e-4)
    skip.remove(model)
    dense = model(tokens, attention_mask=mask, position_ids=positions).logits
    assert float((dense - wanted)[real].abs().max()) > 0.1


@pytest.mark.parametrize("name", ["qwen3", "phi3", "llama_bias"])
def test_widths_in_training_have_the_values_of_inference(name: str) -> None:
    model, tokens = build(name, torch.float64), prompt(8, 9)
    torch.manual_seed(5)
    policy = skip.WidthRouter(LAYERS, HIDDEN, WIDTHS).double()
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    skip.apply(model, policy.eval())
    with torch.no_grad():
        wanted = model(tokens).logits
    policy.train()
    torch.testing.assert_close(model(tokens).logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["temporal", "widths"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_change_no_gradient(name: str, reentrant: bool) -> None:
    tokens, grads = prompt(2, 9), []
    for checkpointing in (False, True):
        model, policy = make(name)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        loss_of(name, model, policy, tokens).backward()
        grads.append([parameter.grad for parameter in policy.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("name", POLICIES)
def test_a_model_copies_after_a_training_forward(name: str) -> None:
    model, policy = make(name)
    tokens = prompt(2, 9)
    model(tokens, labels=tokens)
    other = copy.deepcopy(model)
    policy.eval()
    other.model.layers[0].forward.shared.policy.eval()
    with torch.no_grad():
        assert torch.equal(other(tokens).logits, model(tokens).logits)
