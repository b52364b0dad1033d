"""`skip.apply` in scope "layer": layers that are skipped or repeated, and what their key-value cache gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from skip_cases import HIDDEN, LAYERS, TABLE, Sequences, Stepwise, build, order_of, prompt, static, steps, with_layers
from torch import Tensor

from anabranch import skip
from anabranch.skip import Action, Anchor, CachedDelta, Decision, KeyValueRule, Layer, LowRank, SmallFfn, State
from anabranch.skip.runtime.depth import Depth

COMPUTE, ALIAS, HOLE = KeyValueRule
CASES = ["llama", "llama_bias", "qwen2", "qwen3", "phi3"]


@pytest.mark.parametrize("device_path", [False, True])
@pytest.mark.parametrize(
    ("name", "cache", "rule"),
    [(name, "dynamic", HOLE) for name in CASES[1:]]
    + [(name, "static", COMPUTE) for name in CASES[1:]]
    + [("llama", cache, rule) for cache in ("none", "lazy", "dynamic", "static") for rule in KeyValueRule],
)
def test_each_sequence_of_a_batch_runs_its_own_layers(
    name: str, cache: str, rule: KeyValueRule, device_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fixed actions per sequence equal models that have just these layers, prompt and decoding.

    `device_path`: as on a GPU, where the host does not look at the actions.
    """
    if device_path:
        monkeypatch.setattr(Depth, "on_host", staticmethod(lambda tensor: False))
    model, tokens = build(name), prompt(4, 12)
    references = [with_layers(model, order_of(row)) for row in TABLE]
    skip.apply(model, Sequences(TABLE, rule))
    if cache == "none":
        with torch.no_grad():
            logits = model(tokens).logits
    else:
        made = {"dynamic": None, "lazy": transformers.DynamicCache(), "static": static(model)}[cache]
        logits = steps(model, tokens, 7, made)
    for row, reference in enumerate(references):
        with torch.no_grad():
            wanted = reference(tokens[row : row + 1]).logits
        torch.testing.assert_close(logits[row : row + 1], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", [COMPUTE, HOLE])
def test_layer_0_skipped_from_the_start(rule: KeyValueRule) -> None:
    """Silently wrong in a patch without slots: positions are read from layer 0."""
    model, tokens = build(), prompt(2, 12)
    reference = with_layers(model, [1, 2, 3])
    for policy in (Stepwise(lambda layer, step: int(layer > 0), rule, False), Sequences([[0, 1, 1, 1]], rule)):
        skip.apply(model, policy)
        for cache in (None, static(model)):
            with torch.no_grad():
                torch.testing.assert_close(
                    steps(model, tokens, 5, cache), reference(tokens).logits, rtol=1e-4, atol=1e-4
                )


def test_a_repeated_layer_has_a_slot_of_its_own() -> None:
    """Silently wrong in a patch that writes one slot twice: its length doubles."""
    model, tokens = build(), prompt(2, 12)
    reference = with_layers(model, [0, 1, 1, 2, 3])
    skip.apply(model, Stepwise(lambda layer, step: 2 if layer == 1 else 1, COMPUTE))
    cache = transformers.DynamicCache(config=model.config)
    logits = steps(model, tokens, 5, cache)
    with torch.no_grad():
        torch.testing.assert_close(logits, reference(tokens).logits, rtol=1e-4, atol=1e-4)
    lengths = [layer.get_seq_length() for layer in cache.layers if layer.keys is not None]
    assert lengths == [12] * (LAYERS + 1)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("kind", ["delta", "anchor", "lora", "adapter", "small"])
def test_else_branches_of_a_layer(kind: str, each: bool) -> None:
    model, tokens = build(), prompt(2, 5)
    x = torch.randn(2, 5, HIDDEN)
    a, b, up = torch.randn(3, HIDDEN), torch.randn(HIDDEN, 3), torch.randn(6, HIDDEN)
    norm = model.model.layers[1].input_layernorm
    branch, wanted = {
        "delta": (CachedDelta(x), lambda h: h + x),
        "anchor": (Anchor(x), lambda h: x),
        "lora": (Anchor(x, a, b, 0.5), lambda h: x + 0.5 * h @ a.T @ b.T),
        "adapter": (LowRank(a, b, "relu", 2.0), lambda h: h + 2 * (norm(h) @ a.T).relu() @ b.T),
        "small": (
            SmallFfn(up, b),
            lambda h: h + (torch.nn.functional.silu(norm(h) @ up[:3].T) * (norm(h) @ up[3:].T)) @ b.T,
        ),
    }[kind]
    policy = Sequences([[1, 0, 1, 1], [1, 1, 1, 1]] if each else [[1, 0, 1, 1]])
    policy.otherwise = branch
    skip.apply(model, policy)
    states: list[Tensor] = []
    hook = model.model.layers[1].register_forward_hook(lambda module, args, out: states.extend((args[0], out)))
    with torch.no_grad():
        model(tokens)
        torch.testing.assert_close(states[1][:1], wanted(states[0])[:1], rtol=1e-4, atol=1e-4)
    hook.remove()


ROWS, DOWN, UP = torch.randn(2, 5, HIDDEN), torch.randn(3, HIDDEN), torch.randn(HIDDEN, 3)
WRONG_BRANCHES: dict[str, tuple[Any, str]] = {
    "activation": (LowRank(DOWN, UP, "tanh"), "activation is 'tanh', must be one of"),  # type: ignore[arg-type]
    "one matrix": (Anchor(ROWS, lora_a=DOWN), r"shapes \(3, 64\) and None, must have \(r, 64\)"),
    "a row for all": (CachedDelta(ROWS[0, 0]), r"otherwise\.delta has shape \(64,\)"),
    "an anchor for all": (Anchor(ROWS[:, :1]), r"otherwise\.anchor has shape \(2, 1, 64\)"),
    "other features": (LowRank(DOWN[:, 1:], UP), r"LowRank, has matrices of shapes \(3, 63\)"),
    "another rank": (SmallFfn(torch.randn(8, HIDDEN), UP), r"must have \(2 r, 64\) and \(64, r\)"),
    "no branch": (torch.nn.Identity(), "otherwise is Identity, must be LowRank"),
}


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("case", WRONG_BRANCHES)
def test_else_branches_that_do_not_fit_are_named(case: str, each: bool) -> None:
    model, tokens = build(), prompt(2, 5)
    policy = Sequences([[1, 0, 1, 1], [1, 1, 1, 1]] if each else [[1, 0, 1, 1]])
    policy.otherwise, message = WRONG_BRANCHES[case]
    skip.apply(model, policy)
    with pytest.raises(ValueError, match=message):
        model(tokens)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("kind", ["delta", "anchor", "lora", "adapter", "small"])
def test_float32_branches_of_a_bfloat16_model(kind: str, each: bool) -> None:
    """The branch is cast to the stream's dtype: so it is what a branch in bfloat16 gives."""
    model, tokens = build(dtype=torch.bfloat16), prompt(2, 5)
    make = {
        "delta": lambda cast: CachedDelta(cast(ROWS)),
        "anchor": lambda cast: Anchor(cast(ROWS)),
        "lora": lambda cast: Anchor(cast(ROWS), cast(DOWN), cast(UP), 0.5),
        "adapter": lambda cast: LowRank(cast(DOWN), cast(UP)),
        "small": lambda cast: SmallFfn(cast(torch.cat((DOWN, DOWN.flip(1)))), cast(UP)),
    }[kind]
    policy = Sequences([[1, 0, 1, 1], [1, 1, 1, 1]] if each else [[1, 0, 1, 1]])
    results = []
    for cast in (lambda part: part, lambda part: part.bfloat16()):
        policy.otherwise = make(cast)
        skip.apply(model, policy)
        with torch.no_grad():
            results.append(model(tokens).logits)
    assert results[0].dtype == torch.bfloat16 and torch.equal(*results)


def test_a_gate_on_a_layer_takes_its_gradient() -> None:
    model, tokens = build(), prompt(2, 5)
    gate = torch.rand(2, requires_grad=True)

    class Gated(Stepwise):
        def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
            return Layer(Action.RUN, gate=gate) if layer == 1 else None

    skip.apply(model, Gated(lambda layer, step: 1, COMPUTE))
    logits = model(tokens).logits
    (ours,) = torch.autograd.grad(logits.square().sum(), gate)
    skip.remove(model)
    hook = model.model.layers[1].register_forward_hook(
        lambda module, args, out: args[0] + gate[:, None, None] * (out - args[0])
    )
    wanted = model(tokens).logits
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, torch.autograd.grad(wanted.square().sum(), gate)[0], rtol=1e-4, atol=1e-2)
    hook.remove()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_with_skipped_layers(checkpointing: bool) -> None:
    """Gradients of mixed actions equal those of models that have just these layers."""
    model, tokens = build(), prompt(4, 8)
    wanted = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for row, actions in enumerate(TABLE):
        order = order_of(actions)
        reference = with_layers(model, order).train()
        reference(tokens[row : row + 1]).logits.square().sum().backward()
        for name, parameter in reference.named_parameters():
            parts = name.split(".")
            if parts[1] == "layers":
                parts[2] = str(order[int(parts[2])])
            wanted[".".join(parts)] += parameter.grad
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    skip.apply(model, Sequences(TABLE))
    model(tokens).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-4 * float(wanted[name].abs().max()))
