"""`patch_mixers` on tiny random models of every family, against transformers' own forwards."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", minversion="5.23")
pytest.importorskip("transformers.models.qwen4_exp")

from transformers.models import deepseek_v4, glm5_next, hy_v4, qwen4_exp  # noqa: E402

from anabranch.integrations.transformers import patch_mixers, restore_mixers  # noqa: E402
from anabranch.mixers import spectrum  # noqa: E402

VOCABULARY = 97
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "max_position_embeddings": 64,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
}
INDEX: dict[str, Any] = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 4}
LATENT: dict[str, Any] = {"q_lora_rank": 8, "kv_lora_rank": 8, "v_head_dim": 16, "num_key_value_heads": 4}
TWO_KINDS = ["linear_attention", "indexed_attention"]


def deepseek() -> Any:
    config = deepseek_v4.DeepseekV4Config(
        **COMMON, **INDEX, num_key_value_heads=1, head_dim=16, q_lora_rank=8, n_routed_experts=4, o_groups=2,
        o_lora_rank=8, sliding_window=8, partial_rotary_factor=0.5, layer_types=["sliding_attention"] * 2,
        mlp_layer_types=["moe"] * 2,
    )  # fmt: skip
    return deepseek_v4.DeepseekV4ForCausalLM(config)


def hunyuan() -> Any:
    config = hy_v4.HYV4Config(
        **COMMON, **INDEX, **LATENT, intermediate_size=24, head_dim=16, n_routed_experts=4, qk_nope_head_dim=8,
        qk_rope_head_dim=8, hc_mult=3, hc_magnitude=1.5,
    )  # fmt: skip
    return hy_v4.HYV4ForCausalLM(config)


def glm() -> Any:
    config = glm5_next.Glm5NextTextConfig(
        **COMMON, **INDEX, **LATENT, intermediate_size=24, n_routed_experts=4, qk_nope_head_dim=16, index_kpool=2,
        linear_head_dim=8, linear_num_heads=4, layer_types=TWO_KINDS,
    )  # fmt: skip
    return glm5_next.Glm5NextTextModel(config)


def qwen() -> Any:
    config = qwen4_exp.Qwen4ExpTextConfig(
        **(COMMON | {"eos_token_id": 96}), num_key_value_heads=2, head_dim=16, linear_key_head_dim=8,
        linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        shared_expert_intermediate_size=16, num_experts=4, hc_lowrank=6,
        indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=4,
        indexer_compress_ratio=2, layer_types=TWO_KINDS, ple_layer_ids=[1], ple_embed_dim=8, heads_per_ngram=2,
        ngram_vocab_size_base=20, make_ngram_vocab_size_divisible_by=4, split_ngram_parts=1,
    )  # fmt: skip
    return qwen4_exp.Qwen4ExpForCausalLM(config)


FAMILIES: list[Callable[[], Any]] = [deepseek, hunyuan, glm, qwen]
HEADS = {deepseek: 1, hunyuan: 1, glm: 0, qwen: 0}


def build(family: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Any:
    """Random, with hyper-connections that differ from token to token and layer to layer."""
    torch.manual_seed(0)
    model = family()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hc" in name or "hyper_connection" in name:
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() < 2 else 0.1))
    return model.to(dtype)


def tokens() -> Tensor:
    return torch.randint(2, VOCABULARY, (2, 9))


def run(model: Any, ids: Tensor) -> Tensor:
    out = model(input_ids=ids, use_cache=False)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def gradients(model: Any, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = run(model, ids)
    out.float().log_softmax(-1).square().mean().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family: Callable[[], Any]) -> None:
    wide, ids = build(family).eval(), tokens()
    model = copy.deepcopy(wide).bfloat16()
    with torch.no_grad():
        exact, theirs = run(wide, ids), run(model, ids)
        patch_mixers(model)
        ours = run(model, ids)
    assert ours.dtype == theirs.dtype
    assert (ours.float() - exact).norm() < 1.5 * (theirs.float() - exact).norm()


@pytest.mark.parametrize("family", [deepseek, hunyuan, qwen])
def test_generation(family: Callable[[], Any]) -> None:
    model, ids = build(family).eval(), tokens()
    expected = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    patch_mixers(model)
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None), expected)


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
