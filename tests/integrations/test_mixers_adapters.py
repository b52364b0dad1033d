"""`patch_mixers` beside what others put into a hyper-connection, and keywords that transformers renames."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mixer_families import build, glm, gradients, hunyuan, one_thread, qwen, run, tokens  # noqa: F401  (for every test)
from torch import Tensor, nn

from anabranch.integrations.transformers import patch_mixers


class Adapted(nn.Module):
    """A layer with a low-rank term beside it, as peft wraps one."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Linear(base_layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, base_layer.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def adapt(model: Any, name: str, *, every: bool) -> None:
    for layer in model.model.layers[: None if every else 1]:
        for hc in (layer.attn_hyper_connection, layer.mlp_hyper_connection):
            setattr(hc, name, Adapted(getattr(hc, name)))


@pytest.mark.parametrize(
    ("name", "first"),
    [("input_mix_weight_down", "adapted"), ("input_mix_weight_up", "patched"), ("block_inject_weight", "patched")],
)
def test_adapters_run_and_learn(name: str, first: str) -> None:
    model, ids = build(qwen), tokens()
    other = functools.partial(adapt, model, name, every=first == "adapted")
    other() if first == "adapted" else patch_mixers(model)
    patch_mixers(model) if first == "adapted" else other()
    got, got_gradients = gradients(model, ids)
    for module in model.modules():
        module.__dict__.pop("forward", None)
    expected, expected_gradients = gradients(model, ids)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    adapters = [key for key in got_gradients if f"{name}.up" in key or f"{name}.down" in key]
    assert len(adapters) == (8 if first == "adapted" else 4)
    for key in adapters:
        assert got_gradients[key].any()
        torch.testing.assert_close(got_gradients[key], expected_gradients[key], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "name"), [(qwen, "hc_norm"), (qwen, "input_mix_weight_up"), (hunyuan, "input_norm")]
)
def test_hooks_on_parts_run(family: Callable[[], Any], name: str) -> None:
    model, ids = build(family), tokens()
    patch_mixers(model)
    expected = run(model, ids)
    calls: list[str] = []
    for key, module in model.named_modules():
        if key.endswith(f"layers.0.attn_hc.{name}") or key.endswith(f"layers.0.mlp_hyper_connection.{name}"):
            module.register_forward_hook(lambda *_: calls.append("hook"))
    torch.testing.assert_close(run(model, ids), expected, atol=1e-5, rtol=1e-4)
    assert calls == ["hook"]


def test_a_wrapped_connection_is_called() -> None:
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, streams: Tensor) -> Any:
            post, u = self.inner(streams)
            return 2 * post, u

    model, ids = build(hunyuan), tokens()
    patch_mixers(model)
    plain = run(model, ids)
    layer = model.model.layers[0]
    layer.attn_hc = Doubled(layer.attn_hc)
    got = run(model, ids)
    del layer.__dict__["forward"], layer.attn_hc.inner.__dict__["forward"]
    torch.testing.assert_close(got, run(model, ids), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got, plain, atol=1e-3)


@pytest.mark.parametrize("family", [hunyuan, glm, qwen])
def test_the_cache_by_its_old_name(family: Callable[[], Any]) -> None:
    """A layer that is called with `past_key_values` fills that cache."""
    model = build(family).eval()
    base = getattr(model, "model", model)
    index = 1 if family is glm else 0
    layer, seen = base.layers[index], []
    attention = getattr(layer, "self_attn", None) or layer.linear_attn
    attention.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["cache"]), with_kwargs=True)
    patch_mixers(model)
    called: dict[str, Any] = {}
    handle = layer.register_forward_pre_hook(
        lambda _, args, kwargs: called.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    cached = model(input_ids=tokens(), use_cache=True).past_key_values
    handle.remove()
    kwargs = dict(called["kwargs"])
    assert kwargs.pop("cache", None) is cached
    layer(*called["args"], past_key_values=type(cached)(config=model.config), **kwargs)
    assert seen[0] is cached and type(seen[1]) is type(cached) and seen[1] is not cached
