"""A model with a policy is otherwise the model: saved, copied, compiled, recorded, and itself again after `remove`."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from skip_cases import Hashed, Never, build, prompt

from anabranch import skip


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


@pytest.mark.cpu
@pytest.mark.parametrize("how", ["fused", "data", "one weight"])
def test_writes_that_no_version_counts(how: str) -> None:
    """A fused optimizer and `.data` leave versions alone; a call with gradients frees the copy whatever was written."""
    model, tokens = build(), prompt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    skip.apply(model, Hashed())
    model(tokens).logits.square().sum().backward()
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        first, version = model(tokens).logits, weight._version
        if how == "fused":
            optimizer.step()
        elif how == "data":
            weight.data.mul_(1.5)
        else:
            weight.data[7, 5] += 50
    assert weight._version == version
    if how == "one weight":
        model(tokens)
    with torch.no_grad():
        second = model(tokens).logits
        skip.apply(model, Hashed(), pack=False)
        torch.testing.assert_close(second, model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, second)


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
