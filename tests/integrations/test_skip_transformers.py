"""`skip.apply` in scope "ffn": tokens that skip their FFN in models of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from skip_cases import HIDDEN, INTERMEDIATE, LAYERS, MODELS, Hashed, Never, build, prompt, steps
from skip_references import masked_reference
from torch import Tensor, nn

from anabranch import skip
from anabranch.skip import LowRank

ANSWERS = ["none", "keep", "width", "layer_none", "layer_run", "layer_each"]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", MODELS)
def test_never_skip_is_the_model_to_the_bit(name: str, answer: str) -> None:
    model, tokens = build(name), prompt()
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    with torch.no_grad():
        plain = model(tokens).logits
        padded = model(tokens, attention_mask=mask).logits
    generated = model.generate(tokens, max_new_tokens=6, do_sample=False)
    skip.apply(model, Never(answer))
    with torch.no_grad():
        # What a GPU decides the host does not read: there the op runs, and rounds in its own way.
        same = torch.equal if tokens.device.type == "cpu" else lambda a, b: torch.allclose(a, b, atol=1e-4)
        assert same(model(tokens).logits, plain)
        assert same(model(tokens, attention_mask=mask).logits, padded)
    assert torch.equal(model.generate(tokens, max_new_tokens=6, do_sample=False), generated)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_compacted_equals_masked(name: str, pack: bool, gate: bool) -> None:
    model, tokens, policy = build(name), prompt(), Hashed(gate=gate)
    with torch.no_grad():
        wanted = masked_reference(model, policy, tokens)
        skip.apply(model, policy, pack=pack)
        torch.testing.assert_close(model(tokens).logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["llama", "llama_bias"])
def test_compacted_equals_masked_in_bfloat16(name: str, autocast: bool) -> None:
    """With masks that are given: a hash of rounded rows may flip."""
    model, tokens = build(name, torch.float32 if autocast else torch.bfloat16), prompt(3, 20)
    masks = [torch.rand(3, 20) < 0.5 for _ in range(LAYERS)]

    class Given(Hashed):
        def mask(self, layer: int, x: Tensor) -> Tensor:
            return masks[layer]

    with torch.no_grad(), torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
        wanted = masked_reference(model, Given(), tokens).float()
        skip.apply(model, Given())
        logits = model(tokens).logits.float()
    assert (logits - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("checkpointing", [None, True, False])
@pytest.mark.parametrize("name", ["llama", "llama_bias", "qwen2", "qwen3", "phi3"])
def test_gradients_equal_the_masked_reference(name: str, checkpointing: bool | None) -> None:
    """Also under gradient checkpointing, reentrant or not, where each decision is asked for once."""
    model, tokens, policy = build(name), prompt(), Hashed(gate=True)
    parameters = {**dict(model.named_parameters()), **{f"policy.{n}": p for n, p in policy.named_parameters()}}
    gradients: list[dict[str, Tensor]] = []
    for patched in (False, True):
        model.train()
        if patched:
            if checkpointing is not None:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
                model.enable_input_require_grads()
            skip.apply(model, policy)
            logits = model(tokens).logits
        else:
            logits = masked_reference(model, policy, tokens)
        policy.asked = 0 if not patched else policy.asked
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        gradients.append({n: p.grad.clone() for n, p in parameters.items() if p.grad is not None})
        for parameter in parameters.values():
            parameter.grad = None
    assert policy.asked == LAYERS
    assert gradients[0].keys() == gradients[1].keys() == parameters.keys()
    for parameter_name, wanted in gradients[0].items():
        error = (gradients[1][parameter_name] - wanted).abs().max()
        assert error <= 2e-5 * max(1e-3, wanted.abs().max()), parameter_name


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    ("name", "widths"),
    [*((name, None) for name in MODELS), ("llama", (0, INTERMEDIATE)), ("qwen3", (0, 40, INTERMEDIATE))],
)
def test_prefill_equals_token_by_token(name: str, widths: Any, static: bool) -> None:
    model, tokens = build(name), prompt(2, 12)
    skip.apply(model, Hashed(widths=widths))
    with torch.no_grad():
        whole = model(tokens).logits
    cache = transformers.StaticCache(config=model.config, max_cache_len=20) if static else None
    torch.testing.assert_close(steps(model, tokens, 5, cache), whole, rtol=1e-4, atol=1e-4)


def test_an_else_branch_and_its_gradient() -> None:
    model, tokens = build(), prompt()
    branch = LowRank(nn.Parameter(torch.randn(3, HIDDEN) * 0.1), nn.Parameter(torch.randn(HIDDEN, 3) * 0.1))
    policy = Hashed(share=1.1, otherwise=branch)  # every token takes the branch
    skip.apply(model, policy)
    logits = model(tokens).logits
    logits.square().sum().backward()
    ours = [branch.down_proj.grad.clone(), branch.up_proj.grad.clone()]
    branch.down_proj.grad = branch.up_proj.grad = None
    skip.remove(model)
    for layer in model.model.layers:
        layer.mlp.forward = lambda z: F.relu(z @ branch.down_proj.T) @ branch.up_proj.T
    wanted = model(tokens).logits
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    wanted.square().sum().backward()
    for gradient, reference in zip(ours, (branch.down_proj.grad, branch.up_proj.grad), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-3 * float(reference.abs().max()))


def test_generation_with_left_padding_equals_each_sequence_alone() -> None:
    model = build()
    skip.apply(model, Hashed())
    tokens = prompt(1, 9)
    alone = model.generate(tokens, max_new_tokens=8, do_sample=False)[:, 9:]
    short = model.generate(tokens[:, 4:], max_new_tokens=8, do_sample=False)[:, 5:]
    batch = torch.cat((tokens, torch.cat((torch.zeros(1, 4, dtype=torch.int64), tokens[:, 4:]), 1)))
    mask = (batch != 0).long()
    for extra in ({}, {"cache_implementation": "static"}):
        both = model.generate(batch, attention_mask=mask, max_new_tokens=8, do_sample=False, **extra)[:, 9:]
        assert torch.equal(both, torch.cat((alone, short)))


def test_beam_search_equals_that_of_each_sequence_alone() -> None:
    model, tokens = build(), prompt(3)
    skip.apply(model, Hashed())
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3}
    wanted = [model.generate(tokens[row : row + 1], **options) for row in range(3)]
    assert torch.equal(model.generate(tokens, **options), torch.cat(wanted))


def test_the_cosine_is_observed_whether_or_not_the_op_ran() -> None:
    model, tokens = build(), prompt()

    class Observing(Hashed):
        needs_cosine = True

        def __init__(self, share: float) -> None:
            super().__init__(share)
            self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

        def observe(self, layer: int, step: int, x: Tensor, y: Tensor, cosine: Tensor | None, state: Any) -> None:
            assert cosine is not None and cosine.dtype == torch.float32
            self.seen.append((x, y, cosine))

    for share in (0.0, 0.5):
        policy = Observing(share)
        skip.apply(model, policy)
        with torch.no_grad():
            model(tokens)
        assert len(policy.seen) == LAYERS
        for x, y, cosine in policy.seen:
            torch.testing.assert_close(cosine, F.cosine_similarity(x, y, dim=-1), rtol=1e-4, atol=1e-5)
