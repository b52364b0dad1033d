"""Which models and policies `skip.apply` takes; what it refuses it names, and leaves the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from skip_cases import COMMON, Hashed, Sequences, Stepwise, Wrong, build, prompt, steps
from skip_references import masked_slots
from torch import Tensor

from anabranch import skip
from anabranch.skip import Decision, Keep, KeyValueRule, Policy, State
from anabranch.skip.runtime.decoder import recognise

COMPUTE, ALIAS, HOLE = KeyValueRule
SMALL = {**COMMON, "num_hidden_layers": 2}
ACCEPTED: dict[str, Any] = {
    "LlamaConfig": {},
    "Qwen2Config": {},
    "Qwen3Config": {"head_dim": 16},
    "MistralConfig": {},
    "Phi3Config": {},
    "StableLmConfig": {},  # LayerNorm
    "SmolLM3Config": {"no_rope_layers": [1, 0]},
    "SeedOssConfig": {"head_dim": 16},
    "Glm4MoeConfig": None,
    "GraniteConfig": {"residual_multiplier": 1.0},
}
REFUSED: dict[str, Any] = {
    "GraniteConfig": {"residual_multiplier": 0.5},  # Llama's names, another residual
    "GemmaConfig": {"head_dim": 16},  # Llama's names, a norm that adds 1 to its weight
    "Gemma2Config": {"head_dim": 16},  # norms behind attention and FFN
    "Olmo2Config": {},
    "CohereConfig": {},  # attention beside the FFN
    "MixtralConfig": {"num_local_experts": 2},
    "Qwen3MoeConfig": {"num_experts": 2, "moe_intermediate_size": 8, "num_experts_per_tok": 1},
    "Starcoder2Config": {},  # no gate
    "GPT2Config": None,  # no such layers at all
}


def make(name: str, options: Any) -> Any:
    if not hasattr(transformers, name):
        pytest.skip(f"these transformers have no {name}")
    config = getattr(transformers, name)
    model = transformers.AutoModelForCausalLM.from_config(
        config(n_embd=64, n_layer=2, n_head=4) if options is None else config(**{**SMALL, **options})
    )
    return model.eval()


@pytest.mark.parametrize("name", [name for name, options in ACCEPTED.items() if options is not None])
def test_models_with_this_line_are_taken(name: str) -> None:
    """And never-skip through the op is the model, so the line was read right."""
    model, tokens = make(name, ACCEPTED[name]), prompt(2, 6)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in parameter_name else parameter.normal_(0, 0.1)
        plain = model(tokens).logits
        # A gate of one is multiplied by: the op runs where the host knows no better.
        skip.apply(model, Gated())
        torch.testing.assert_close(model(tokens).logits, plain, rtol=1e-4, atol=1e-4)


class Gated(Policy):
    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        return Keep(torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), torch.ones_like(x[..., 0]))


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused_and_named(name: str) -> None:
    model = make(name, REFUSED[name])
    keys = [set(module.__dict__) for module in model.modules()]
    with pytest.raises(ValueError, match=r"apply: (layer 0 \(\w+Layer\)|model) .*must .*; "):
        skip.apply(model, Hashed())
    assert [set(module.__dict__) for module in model.modules()] == keys


def test_looking_at_a_model_draws_no_random_number() -> None:
    model = build()
    state = torch.get_rng_state()
    skip.apply(model, Hashed())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_on_no_device_is_recognised() -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**COMMON))
    assert recognise(model).hidden_size == 64


NOT_APPLIED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no policy": (torch.nn.Linear(2, 2), {}, "policy is a Linear"),
    "layers out of range": (Wrong("ffn", None, layers={1, 4, 9}), {}, r"layers \[4, 9\].*0 to 3"),
    "negative layers": (Wrong("ffn", None, layers={-1}), {}, r"layers \[-1\]"),
    "widths above the intermediate size": (Hashed(widths=(0, 173)), {}, "widths reach 173"),
    "a rule for policies that keep attention": (Hashed(), {"key_values": HOLE}, "key_values is HOLE"),
    "a cosine of whole layers": (Wrong("layer", None, needs_cosine=True), {}, "needs the cosine"),
    "a rule by its name": (Sequences([[1, 0, 1, 1]]), {"key_values": "compute"}, "key_values is 'compute'"),
    "another type of rule": (Hashed(), {"key_values": 1}, "key_values is 1, must be a KeyValueRule"),
    "parameters elsewhere": (torch.nn.Module.to(Hashed(gate=True), "meta"), {}, "Hashed has parameters on meta"),
    "alias of nothing": (Sequences([[0, 1, 1, 1]]), {"key_values": ALIAS}, "layer 0"),
    "alias that revives": (Sequences([[1, 0, 1, 1]], revives=True), {"key_values": ALIAS}, "revives"),
}


@pytest.mark.parametrize("case", NOT_APPLIED)
def test_policies_that_do_not_fit_are_refused(case: str) -> None:
    policy, options, message = NOT_APPLIED[case]
    model, tokens = build(), prompt()
    skip.apply(model, Hashed())
    with torch.no_grad():
        before = model(tokens).logits
        with pytest.raises(ValueError, match=message):
            skip.apply(model, policy, **options)
        assert torch.equal(model(tokens).logits, before)


@pytest.mark.parametrize("policy", [Sequences([[1, 0, 1, 1]], HOLE, revives=True), Sequences([[1, 2, 1, 1]])])
def test_holes_and_repeats_need_full_masked_attention(policy: Policy) -> None:
    with pytest.raises(ValueError, match="sliding windows"):
        skip.apply(build("mistral"), policy)
    model = build()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        skip.apply(model, policy)


def test_a_replaced_forward_is_refused() -> None:
    model = build()
    model.model.layers[2].forward = lambda *args, **kwargs: args[0]
    with pytest.raises(ValueError, match=r"layer 2 .* forward of its own"):
        skip.apply(model, Hashed())
    assert "forward" not in model.model.layers[0].__dict__


def test_a_hook_put_on_after_apply_is_not_left_behind() -> None:
    """accelerate keeps the forward that it replaces as `_old_forward`."""
    model = build()
    skip.apply(model, Hashed())
    layer = model.model.layers[2]
    layer._old_forward = layer.forward
    layer.forward = lambda *args, **kwargs: layer._old_forward(*args, **kwargs)
    with pytest.raises(ValueError, match=r"remove: model\.layers\.2 has a hook"):
        skip.remove(model)
    assert all("forward" in layer.__dict__ for layer in model.model.layers)
    layer.forward = layer.__dict__.pop("_old_forward")
    skip.remove(model)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_compiled_decoder_is_one_stack() -> None:
    model, tokens = build(), prompt()
    skip.apply(model, Hashed())
    with torch.no_grad():
        wanted = model.model(tokens).last_hidden_state
    skip.remove(model)
    compiled = torch.compile(model.model, backend="eager")
    skip.apply(compiled, Hashed())
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens).last_hidden_state, wanted, rtol=1e-4, atol=1e-4)


def test_an_adapter_around_a_projection_is_refused() -> None:
    model, tokens = build(), prompt()

    class Adapter(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.mean()

    adapter = Adapter(64, 172, bias=False)
    skip.apply(model, Hashed())
    model.model.layers[3].mlp.up_proj = adapter
    with pytest.raises(ValueError, match=r"mlp\.up_proj has become a Adapter"):
        model(tokens)
    with pytest.raises(ValueError, match=r"layer 3 .* FFN"):
        skip.apply(model, Hashed())


def test_latent_attention_with_holes_and_a_late_repeat() -> None:
    """Its heads have one size in keys and another in values, and it has no `head_dim`."""
    config = transformers.DeepseekV3Config(
        **{**COMMON, "num_key_value_heads": 4}, first_k_dense_replace=4, q_lora_rank=16, kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12,
    )  # fmt: skip
    model, tokens = transformers.AutoModelForCausalLM.from_config(config).eval(), prompt(2, 11)

    def actions(layer: int, step: int) -> int:
        return [1, int(step > 1), 1 + (step == 2), 1][layer]

    for rule in (COMPUTE, HOLE):
        skip.apply(model, Stepwise(actions, rule))
        logits = steps(model, tokens, 7)
        skip.remove(model)
        torch.testing.assert_close(logits, masked_slots(model, tokens, 7, actions, rule), rtol=1e-4, atol=1e-4)


def test_the_policy_follows_the_models_mode() -> None:
    """Mixture-of-depths chooses by later tokens in training with gradients on, and must not in inference."""
    model, tokens = build().train(), prompt()
    policy = skip.MixtureOfDepths(4, 64)
    skip.apply(model, policy)
    model(tokens)
    assert policy.training
    model.eval()
    whole, part = model(tokens).logits, model(tokens[:, :5]).logits
    assert not policy.training
    torch.testing.assert_close(whole[:, :5], part, rtol=1e-4, atol=1e-4)
    model.train()
    model(tokens)
    assert policy.training and policy.predictors["1"].training
    policy.eval()  # stays so until the model's mode changes
    model(tokens)
    assert not policy.training


def test_each_apply_has_a_number_of_its_own_in_all_processes() -> None:
    model = build()
    numbers = set()
    for _ in range(2):
        skip.apply(model, Hashed())
        numbers.add(model.model.layers[0].forward.shared.number)
    assert len(numbers) == 2 and {len(number) for number in numbers} == {32}


def test_layers_called_alone_are_refused() -> None:
    model = build()
    skip.apply(model, Hashed())
    with pytest.raises(ValueError, match="layer 1 is called first"):
        model.model.layers[1](torch.randn(1, 2, 64))
