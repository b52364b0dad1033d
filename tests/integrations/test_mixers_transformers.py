"""`patch_mixers` on tiny random models of every family, against transformers' own forwards."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mixer_families import (  # noqa: F401  (one_thread is for every test)
    FAMILIES,
    HEADS,
    build,
    deepseek,
    gradients,
    hunyuan,
    hunyuan_vl,
    one_thread,
    qwen,
    run,
    tokens,
)
from torch import nn

from anabranch.integrations.transformers import patch_mixers, restore_mixers
from anabranch.mixers import spectrum


@pytest.mark.parametrize("family", [*FAMILIES, hunyuan_vl])
def test_outputs_and_all_gradients(family: Callable[[], Any]) -> None:
    model, ids = build(family), tokens()
    expected, expected_gradients = gradients(model, ids)
    assert patch_mixers(model) == 4 + (family is qwen)  # qwen4_exp ends with one of the same class
    got, got_gradients = gradients(model, ids)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert got_gradients.keys() == expected_gradients.keys()
    assert any("hc" in name or "hyper" in name for name in got_gradients)
    for name, gradient in got_gradients.items():
        other = expected_gradients[name]
        assert (gradient - other).norm() <= 1e-4 * other.norm() + 1e-7, name


@pytest.mark.parametrize("family", [deepseek, hunyuan, qwen])  # glm5_next's are deepseek_v4's
def test_modules_are_drop_ins(family: Callable[[], Any]) -> None:
    """A hook on a hyper-connection sees it called: the layer's own forward with the module's patched one."""
    model, ids = build(family), tokens()
    expected, expected_gradients = gradients(model, ids)
    patch_mixers(model)
    calls = []
    for name, module in model.named_modules():
        if name.endswith(("attn_hc", "attn_hyper_connection")):
            module.register_forward_hook(lambda *_: calls.append(1))
    got, got_gradients = gradients(model, ids)
    assert len(calls) == 2
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    for name, gradient in got_gradients.items():
        other = expected_gradients[name]
        assert (gradient - other).norm() <= 1e-4 * other.norm() + 1e-7, name


@pytest.mark.parametrize("family", [deepseek, hunyuan, qwen])
def test_bfloat16(family: Callable[[], Any]) -> None:
    wide, ids = build(family).eval(), tokens()
    model = copy.deepcopy(wide).bfloat16()
    with torch.no_grad():
        exact, theirs = run(wide, ids), run(model, ids)
        patch_mixers(model)
        ours = run(model, ids)
    assert ours.dtype == theirs.dtype
    assert (ours.float() - exact).norm() < 1.5 * (theirs.float() - exact).norm()


@pytest.mark.parametrize("family", [hunyuan, qwen])
def test_generation(family: Callable[[], Any]) -> None:
    model, ids = build(family).eval(), tokens()
    expected = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    patch_mixers(model)
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_spectrum(family: Callable[[], Any]) -> None:
    model, ids = build(family).eval(), tokens()
    patch_mixers(model)
    found = spectrum(model, input_ids=ids)
    assert found.row_gain.shape == (4, ids.numel())  # heads mix nothing and are left out
    if family in (hunyuan, qwen):
        assert torch.equal(found.singular_values, torch.ones_like(found.singular_values))
    else:  # the shipped iterations end with the sums that are rows of H
        assert found.row_error.max() < 1e-5 and found.singular_values[-1, :, 1].max() < 0.5


def test_compile_in_one_graph() -> None:
    model, ids = build(hunyuan).eval(), tokens()
    model.model.layers = model.model.layers[:1]
    patch_mixers(model)
    with torch.no_grad():
        expected = run(model, ids)
        torch.testing.assert_close(run(torch.compile(model, fullgraph=True, backend="aot_eager"), ids), expected)


def test_gradient_checkpointing() -> None:
    model, ids = build(deepseek).train(), tokens()
    patch_mixers(model)
    expected = gradients(model, ids)
    model.gradient_checkpointing_enable()
    got = gradients(model, ids)
    assert torch.equal(got[0], expected[0])
    assert all(torch.equal(got[1][name], expected[1][name]) for name in expected[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_patched_twice_restored_and_copied(family: Callable[[], Any]) -> None:
    model, ids = build(family).eval(), tokens()
    before, names = run(model, ids), list(model.state_dict())
    count = patch_mixers(model)
    once = run(model, ids)
    assert patch_mixers(model) == count and torch.equal(run(model, ids), once)
    assert list(model.state_dict()) == names
    patched = [module for module in model.modules() if "forward" in module.__dict__]
    assert len(patched) == count + 2 + HEADS[family]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(other, ids), once)
        with torch.no_grad():
            next(other.parameters()).zero_()
        assert not torch.equal(run(other, ids), once)  # the copy's own parameters run
    restore_mixers(model)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.equal(run(model, ids), before)
    restore_mixers(model)


def test_bad_models() -> None:
    with pytest.raises(ValueError, match="model is a Linear without hyper-connections"):
        patch_mixers(nn.Linear(2, 2))
    model = build(deepseek)
    layer = model.model.layers[1]
    layer.forward = layer.forward
    with pytest.raises(ValueError, match=r"model\.layers\.1 has a forward of its own"):
        patch_mixers(model)
    del layer.forward
    assert not any("forward" in module.__dict__ for module in model.modules())
    patch_mixers(model)
    layer._old_forward = layer.forward  # what accelerate's hooks do
    with pytest.raises(ValueError, match="hook of accelerate's around the patch"):
        restore_mixers(model)
    del layer._old_forward
    one = build(deepseek)
    one.model.layers[0].attn_hc.hc_mult = 1
    with pytest.raises(ValueError, match="there are 1 streams"):
        patch_mixers(one)
