"""The room's own policies on models of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from skip_cases import HIDDEN, INTERMEDIATE, LAYERS, build, prompt, steps, with_layers
from torch import nn

from anabranch import skip
from anabranch.skip import Action, KeyValueRule

POLICIES: dict[str, Any] = {
    "uniform": lambda: skip.UniformSkip(1.4),
    "contiguous": lambda: skip.ContiguousSkip(1, 2),
    "cosine": lambda: skip.CosineSkip(0.8, warmup_tokens=2),
    "router": lambda: skip.LayerRouter(LAYERS, HIDDEN),
    "first": lambda: skip.LayerRouter(LAYERS, HIDDEN, actions=(Action.SKIP, Action.RUN)),
    "temporal": lambda: skip.TemporalDrop([1, 2], HIDDEN, 3),
    "widths": lambda: skip.WidthRouter(LAYERS, HIDDEN, (43, 86, INTERMEDIATE)),
    "three ways": lambda: skip.ThreeWayRouter(LAYERS, HIDDEN, 43, INTERMEDIATE),
    "small beside": lambda: skip.ThreeWayRouter(LAYERS, HIDDEN, 43, INTERMEDIATE, small="separate"),
    "bandit": lambda: skip.BanditSkip(LAYERS, HIDDEN, 2),
    "depths": lambda: skip.MixtureOfDepths(LAYERS, HIDDEN),
}
CAUSAL = ["three ways", "small beside", "bandit", "depths", "cosine"]


def make(name: str) -> Any:
    torch.manual_seed(5)
    policy = POLICIES[name]()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(0, 0.3)
    if name == "bandit":
        policy.finish()
    return policy.eval()


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("name", POLICIES)
def test_a_batch_generates_what_each_sequence_does(name: str, options: dict[str, Any]) -> None:
    """With left padding too: no policy decides for a sequence by what lies beside it."""
    model, tokens = build("qwen3"), prompt(3, 9)
    tokens[1, :3] = 0
    mask = (tokens != 0).long()
    policy = make(name)
    skip.apply(model, policy)
    options = {"max_new_tokens": 7, "do_sample": False, **options}
    together = model.generate(tokens, attention_mask=mask, **options)[:, 9:]
    for row, begin in ((0, 0), (1, 3), (2, 0)):
        alone = model.generate(tokens[row : row + 1, begin:], **options)[:, 9 - begin :]
        assert torch.equal(together[row : row + 1], alone)
    total = skip.report(model, skip_limits()).total
    assert 0 < total.kept_tokens < total.total_tokens


def skip_limits() -> Any:
    from anabranch.cli.machine import Limits

    return Limits(1e12, 1e11)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_policies_decode_what_they_prefill(name: str) -> None:
    model, tokens = build(), prompt(2, 12)
    skip.apply(model, make(name))
    with torch.no_grad():
        whole = model(tokens).logits
    torch.testing.assert_close(steps(model, tokens, 7), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["uniform", "contiguous"])
@pytest.mark.parametrize("length", [11, 12])
def test_a_prompt_in_chunks_runs_all_layers(name: str, length: int) -> None:
    model, tokens = build(), prompt(2, length)
    skip.apply(model, make(name))
    whole = model.generate(tokens, max_new_tokens=6, do_sample=False)
    chunked = model.generate(tokens, max_new_tokens=6, do_sample=False, prefill_chunk_size=4)
    assert torch.equal(chunked, whole)
    total = skip.report(model, skip_limits()).total
    assert 0 < total.kept_tokens < total.total_tokens


def test_uniform_decodes_with_its_layers_on_the_prompts_keys() -> None:
    model, tokens = build(), prompt(2, 8)
    policy = skip.UniformSkip(1.4)
    kept = policy.kept_layers(LAYERS)
    assert len(kept) < LAYERS
    skip.apply(model, policy)
    logits = steps(model, tokens, 7)
    skip.remove(model)
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        prefill = model(tokens[:, :7], cache=cache, use_cache=True).logits
        short = with_layers(model, kept)
        cache.layers = [cache.layers[layer] for layer in kept]
        last = short(tokens[:, 7:], cache=cache, use_cache=True).logits
    torch.testing.assert_close(logits, torch.cat((prefill, last), 1), rtol=1e-4, atol=1e-4)


def test_temporal_drop_gives_the_corrected_anchor() -> None:
    model, tokens = build(), prompt(2, 10)
    policy = make("temporal")
    skip.apply(model, policy)
    seen: list[Any] = []
    hook = model.model.layers[1].register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    steps(model, tokens, 7)
    hook.remove()
    anchor = seen[0][1][:, -1:]
    with torch.no_grad():
        for x, y in seen[1:3]:  # steps 1 and 2; 3 refreshes
            delta = x @ policy.lora_a[0].T @ policy.lora_b[0].T
            torch.testing.assert_close(y, anchor + policy.scale * delta, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", list(KeyValueRule))
def test_rules_agree_for_a_router_whose_decisions_are_frozen(rule: KeyValueRule) -> None:
    """A layer that a sequence skips at its prompt never runs for it: nobody reads what its slot holds."""
    model, tokens = build(), prompt(3, 9)
    policy = skip.LayerRouter(LAYERS, HIDDEN, layers=[1, 2, 3])
    skip.apply(model, policy)
    wanted = steps(model, tokens, 6)
    skip.apply(model, policy, key_values=rule)
    torch.testing.assert_close(steps(model, tokens, 6), wanted, rtol=1e-4, atol=1e-4)


def test_a_policy_for_another_model_is_refused() -> None:
    model = build()
    for policy in (
        skip.LayerRouter(LAYERS + 1, HIDDEN),
        skip.TemporalDrop([LAYERS], HIDDEN, 3),
        skip.WidthRouter(LAYERS, HIDDEN, (86, INTERMEDIATE + 1)),
        skip.ContiguousSkip(1, LAYERS),
        nn.Linear(2, 2),
    ):
        with pytest.raises(ValueError, match="must"):
            skip.apply(model, policy)
        assert not any("forward" in module.__dict__ for module in model.modules())
