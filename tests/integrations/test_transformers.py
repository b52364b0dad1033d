"""experts_implementation="anabranch" on tiny random models, against transformers' own eager experts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.0")

from anabranch import CostMeter  # noqa: E402
from anabranch.integrations.transformers import experts_forward, pack, register, unpack  # noqa: E402

COMMON = {
    "vocab_size": 97,
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODELS = {
    "mixtral": lambda inner: transformers.MixtralConfig(
        **COMMON, intermediate_size=inner, num_local_experts=5, num_experts_per_tok=2
    ),
    "qwen3_moe": lambda inner: transformers.Qwen3MoeConfig(
        **COMMON,
        intermediate_size=40,
        moe_intermediate_size=inner,
        num_experts=6,
        num_experts_per_tok=3,
        head_dim=10,
    ),
    "olmoe": lambda inner: transformers.OlmoeConfig(
        **COMMON, intermediate_size=inner, num_experts=6, num_experts_per_tok=3
    ),
    "gpt_oss": lambda inner: transformers.GptOssConfig(
        **COMMON, intermediate_size=inner, num_local_experts=4, num_experts_per_tok=2, head_dim=10
    ),
}
if hasattr(transformers, "NemotronHConfig"):  # experts without a gate
    MODELS["nemotron_h"] = lambda inner: transformers.NemotronHConfig(
        **{name: value for name, value in COMMON.items() if name != "num_hidden_layers"},
        layers_block_type=["full_attention", "moe"] * 2,
        moe_intermediate_size=inner,
        moe_shared_expert_intermediate_size=24,
        n_routed_experts=6,
        num_experts_per_tok=3,
        head_dim=10,
    )
if hasattr(transformers, "AriaTextConfig"):  # weights [E, in, out] with the usual gate
    MODELS["aria_text"] = lambda inner: transformers.AriaTextConfig(
        **COMMON, intermediate_size=inner, moe_num_experts=6, moe_topk=2
    )


def build(name: str, inner: int, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    register()
    register()  # twice is once
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name](inner)).to(dtype)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "bias" in parameter_name:  # biases start at zero, where a forgotten one would not show
                parameter.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("inner", [32, 37])
@pytest.mark.parametrize("name", MODELS)
def test_logits_gradients_and_generation_equal_eager(name: str, inner: int) -> None:
    model = build(name, inner)
    tokens = torch.randint(1, 97, (2, 11))
    results = []
    for implementation in ("eager", "anabranch"):
        model.set_experts_implementation(implementation)
        model.train()
        model.zero_grad()
        out = model(tokens, labels=tokens)
        out.loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.eval()
        generated = model.generate(tokens, max_new_tokens=12, do_sample=False)
        results.append((out.logits.detach(), gradients, generated))
    (eager_logits, eager_gradients, eager_tokens), (logits, gradients, generated) = results
    torch.testing.assert_close(logits, eager_logits, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == eager_gradients.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, eager_gradients[parameter], rtol=1e-4, atol=1e-5)
    assert torch.equal(generated, eager_tokens)


@pytest.mark.skipif(not hasattr(transformers, "MuseSparkTextConfig"), reason="these transformers have no muse_spark")
@pytest.mark.parametrize("inner", [32, 37])
def test_a_norm_behind_each_expert(inner: int) -> None:
    register()
    config = transformers.MuseSparkTextConfig(
        **COMMON,
        intermediate_size=40,
        moe_hidden_size=24,
        moe_intermediate_size=inner,
        num_local_experts=6,
        num_experts_per_tok=3,
        head_dim=10,
    )
    from transformers.models.muse_spark.modeling_muse_spark import MuseSparkTextModel

    model = MuseSparkTextModel(config)
    assert pack(model) == 0
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.experts.post_expert_norm.weight.normal_()
    tokens, upstream = torch.randint(1, 97, (2, 11)), torch.randn(2, 11, 40)
    results = []
    for implementation in ("eager", "anabranch"):
        model.set_experts_implementation(implementation)
        model.zero_grad()
        states = model(tokens).last_hidden_state
        (states * upstream).sum().backward()
        results.append(
            (states.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    (eager_states, eager_gradients), (states, gradients) = results
    torch.testing.assert_close(states, eager_states, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == eager_gradients.keys()
    for parameter, gradient in gradients.items():
        wanted = eager_gradients[parameter]
        assert (gradient - wanted).abs().max() <= 1e-5 * wanted.abs().max(), parameter


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_the_meter_counts_either_way(name: str) -> None:
    """gpt-oss, composed of several ops, costs what the one op of Mixtral does."""
    model = build(name, 37).eval()
    model.set_experts_implementation("anabranch")
    experts = model.config.num_local_experts
    with CostMeter(model) as meter, torch.no_grad():
        model(torch.randint(1, 97, (2, 11)))
    numbers = 40 * 74 + 37 * 40
    cost = meter.total()
    assert cost.executed_flops == 2 * 22 * 2 * 2 * numbers  # layers, tokens, choices
    assert cost.dense_flops == 2 * 22 * experts * 2 * numbers
    assert 0 < cost.executed_bytes <= cost.dense_bytes == 2 * experts * numbers * 4
    assert {module.rsplit(".", 1)[1] for module in meter.by_module()} == {"experts"}


def test_bfloat16_is_close_to_eager() -> None:
    model = build("qwen3_moe", 32, torch.bfloat16).eval()
    tokens = torch.randint(1, 97, (2, 11))
    logits = []
    for implementation in ("eager", "anabranch"):
        model.set_experts_implementation(implementation)
        with torch.no_grad():
            logits.append(model(tokens).logits.float())
    torch.testing.assert_close(logits[1], logits[0], rtol=5e-2, atol=5e-2)


def test_ids_beyond_the_last_expert_mean_no_expert() -> None:
    experts = build("mixtral", 32).model.layers[0].mlp.experts
    hidden, weights = torch.randn(3, 40), torch.rand(3, 2)
    with_sentinels = experts_forward(experts, hidden, torch.tensor([[0, 5], [9, 2], [5, 5]]), weights)
    first = experts_forward(
        experts, hidden[:1], torch.tensor([[0, 0]]), torch.stack((weights[0, 0], weights[0, 0] * 0))[None]
    )
    torch.testing.assert_close(with_sentinels[:1], first)
    assert (with_sentinels[2] == 0).all()


def test_float32_weights_under_bfloat16_states() -> None:
    experts = build("mixtral", 32).model.layers[0].mlp.experts
    index, weights = torch.randint(0, 5, (4, 2)), torch.rand(4, 2)
    hidden = torch.randn(4, 40).bfloat16()
    out = experts_forward(experts, hidden, index, weights)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, experts_forward(experts, hidden.float(), index, weights).bfloat16())


def greedy(model: torch.nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the prompt, and twelve more tokens."""
    with torch.no_grad():
        return model(tokens).logits, model.generate(tokens, max_new_tokens=12, do_sample=False)


def packed_copies(model: torch.nn.Module) -> list[Any]:
    """What the packed modules hold; None for one that has not packed yet."""
    caches = [getattr(module, "_anabranch_packed", None) for module in model.modules()]
    return [cache.packed for cache in caches if cache is not None]


@pytest.mark.cpu
@pytest.mark.parametrize("inner", [32, 37])
@pytest.mark.parametrize("name", MODELS)
def test_packed_gives_the_same_logits_and_tokens(name: str, inner: int) -> None:
    model = build(name, inner).eval()
    model.set_experts_implementation("anabranch")
    tokens = torch.randint(1, 97, (2, 11))
    logits, generated = greedy(model, tokens)
    layers = 0 if name == "gpt_oss" else 2  # gpt-oss has a gate of its own
    assert pack(model) == layers
    packed_logits, packed_generated = greedy(model, tokens)
    torch.testing.assert_close(packed_logits, logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(packed_generated, generated)
    first = packed_copies(model)
    assert len(first) == layers and None not in first
    greedy(model, tokens)
    assert all(a is b for a, b in zip(packed_copies(model), first, strict=True))
    model.set_experts_implementation("eager")
    torch.testing.assert_close(greedy(model, tokens)[0], logits, rtol=1e-4, atol=1e-4)
    unpack(model)
    model.set_experts_implementation("anabranch")
    assert packed_copies(model) == [] and torch.equal(greedy(model, tokens)[0], logits)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_int8_is_close(dtype: torch.dtype) -> None:
    model = build("qwen3_moe", 37, dtype).eval()
    model.set_experts_implementation("anabranch")
    tokens = torch.randint(1, 97, (2, 11))
    logits = greedy(model, tokens)[0].float()
    pack(model, torch.int8)
    small = greedy(model, tokens)[0].float()
    assert all(copy.gate_up.dtype == torch.int8 for copy in packed_copies(model))
    assert 0 < (small - logits).norm() < 0.03 * logits.norm()


@pytest.mark.cpu
def test_a_training_step_repacks() -> None:
    model = build("mixtral", 37)
    model.set_experts_implementation("anabranch")
    pack(model)
    tokens = torch.randint(1, 97, (2, 11))
    greedy(model, tokens)
    first = packed_copies(model)
    model(tokens, labels=tokens).loss.backward()  # on the weights themselves
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    logits, _ = greedy(model, tokens)
    assert not any(a is b for a, b in zip(packed_copies(model), first, strict=True))
    unpack(model)
    torch.testing.assert_close(logits, greedy(model, tokens)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.cpu
def test_a_packed_model_is_copied_and_saved_without_its_packed_weights(tmp_path: Path) -> None:
    model = build("mixtral", 37).eval()
    model.set_experts_implementation("anabranch")
    names, tokens = list(model.state_dict()), torch.randint(1, 97, (2, 11))
    pack(model)
    logits, _ = greedy(model, tokens)
    assert list(model.state_dict()) == names
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copy.deepcopy(model), loaded):
        assert packed_copies(other) == [None, None]
        with torch.no_grad():
            other.model.layers[1].mlp.experts.down_proj.mul_(2)
        assert torch.equal(greedy(model, tokens)[0], logits)
        other_logits, _ = greedy(other, tokens)
        assert None not in packed_copies(other) and not torch.equal(other_logits, logits)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="anabranch")
    torch.testing.assert_close(greedy(again, tokens)[0], logits, rtol=1e-4, atol=1e-5)
