"""`skip.apply` in scope "ffn": tokens that skip their FFN in models of transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from skip_cases import HIDDEN, INTERMEDIATE, LAYERS, MODELS, Hashed, Never, build, prompt, steps
from torch import Tensor, nn

from anabranch import skip
from anabranch.skip import LowRank

ANSWERS = ["none", "keep", "width", "layer_none", "layer_run", "layer_each"]


def masked_reference(model: Any, policy: Hashed, tokens: Tensor, **inputs: Any) -> Tensor:
    """Logits with every FFN computed and its output multiplied by the mask, in hooks of the model's own modules."""
    handles, position = [], {}
    for index, layer in enumerate(model.model.layers):

        def before(module: nn.Module, args: Any, index: int = index) -> None:
            x = args[0]
            mask = policy.mask(index, x).to(x.dtype)
            if policy.router is not None:
                mask = mask * torch.sigmoid(policy.router(x)[..., 0])
            position[index] = mask

        def after(module: nn.Module, args: Any, out: Tensor, index: int = index) -> Tensor:
            return out * position[index][..., None]

        handles.append(layer.post_attention_layernorm.register_forward_pre_hook(before))
        handles.append(layer.mlp.register_forward_hook(after))
    try:
        return model(tokens, **inputs).logits
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", MODELS)
def test_never_skip_is_the_model_to_the_bit(name: str, answer: str) -> None:
    model, tokens = build(name), prompt()
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    with torch.no_grad():
        plain = model(tokens).logits
        padded = model(tokens, attention_mask=mask).logits
    generated = model.generate(tokens, max_new_tokens=10, do_sample=False)
    skip.apply(model, Never(answer))
    with torch.no_grad():
        # What a GPU decides the host does not read: there the op runs, and rounds in its own way.
        same = torch.equal if tokens.device.type == "cpu" else lambda a, b: torch.allclose(a, b, atol=1e-4)
        assert same(model(tokens).logits, plain)
        assert same(model(tokens, attention_mask=mask).logits, padded)
    assert torch.equal(model.generate(tokens, max_new_tokens=10, do_sample=False), generated)


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
@pytest.mark.parametrize("widths", [None, (0, INTERMEDIATE), (0, 40, INTERMEDIATE)])
@pytest.mark.parametrize("name", MODELS)
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


def test_a_policy_is_no_part_of_the_model(tmp_path: Path) -> None:
    model, tokens = build(), prompt()
    names, keys = list(model.state_dict()), [set(module.__dict__) for module in model.modules()]
    with torch.no_grad():
        plain = model(tokens).logits
    policy = Hashed(gate=True)
    skip.apply(model, policy)
    with torch.no_grad():
        logits = model(tokens).logits
    assert list(model.state_dict()) == names and not torch.equal(logits, plain)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, plain)
        skip.apply(again, policy)
        assert torch.equal(again(tokens).logits, logits)
    skip.remove(model)
    assert [set(module.__dict__) for module in model.modules()] == keys
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, plain)
    skip.remove(model)  # nothing to remove is no error


def test_copies_of_a_model_skip_by_themselves(tmp_path: Path) -> None:
    model, tokens = build(), prompt()
    skip.apply(model, Hashed())
    with torch.no_grad():
        logits = model(tokens).logits
        torch.save(model, tmp_path / "model.pt")
        for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
            assert torch.equal(other(tokens).logits, logits)
            other.model.layers[1].mlp.down_proj.weight.mul_(2)
            assert not torch.equal(other(tokens).logits, logits)
            assert torch.equal(model(tokens).logits, logits)


def test_applying_again_replaces() -> None:
    model, tokens = build(), prompt()
    with torch.no_grad():
        plain = model(tokens).logits
        skip.apply(model, Hashed())
        skip.apply(model, Never("none"))
        assert torch.equal(model(tokens).logits, plain)
    skip.remove(model)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_weights_that_change_are_packed_again() -> None:
    model, tokens = build(), prompt()
    skip.apply(model, Hashed())
    with torch.no_grad():
        first = model(tokens).logits
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
        second = model(tokens).logits
        skip.apply(model, Hashed(), pack=False)
        unpacked = model(tokens).logits
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, unpacked, rtol=1e-4, atol=1e-4)


def test_a_compiled_model_computes_the_same() -> None:
    model, tokens = build(), prompt()
    skip.apply(model, Hashed())
    with torch.no_grad():
        wanted = model(tokens).logits
        logits = torch.compile(model, backend="eager")(tokens).logits
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


def test_hidden_states_and_attentions_are_still_recorded() -> None:
    model, tokens = build(attention="eager"), prompt()
    with torch.no_grad():
        wanted = model(tokens, output_hidden_states=True, output_attentions=True)
        skip.apply(model, Never("keep"))
        out = model(tokens, output_hidden_states=True, output_attentions=True)
    for ours, theirs in zip(out.hidden_states + out.attentions, wanted.hidden_states + wanted.attentions, strict=True):
        torch.testing.assert_close(ours, theirs)
