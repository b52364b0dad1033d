"""A cache is a policy's stream: what else happens to it is followed, or refused."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import transformers
from skip_cases import COMMON, HIDDEN, LAYERS, TABLE, Sequences, Stepwise, build, prompt, static, steps
from torch import Tensor

from anabranch import skip
from anabranch.skip import Action, Decision, KeyValueRule, Layer, Policy, State

COMPUTE, ALIAS, HOLE = KeyValueRule
SMALL = {**COMMON, "num_hidden_layers": 2}


def test_caches_that_the_policy_has_not_seen_are_refused() -> None:
    model, tokens = build(), prompt()
    plain = transformers.DynamicCache(config=model.config)
    steps(model, tokens, 5, plain)
    skip.apply(model, Sequences([[1, 0, 1, 1]]))
    with pytest.raises(ValueError, match="cache holds 9 tokens, must hold the 0"):
        steps(model, tokens, 5, plain)
    short = transformers.StaticCache(config=transformers.LlamaConfig(**SMALL), max_cache_len=20)
    with pytest.raises(ValueError, match="cache has 2 layers, must have 4"):
        steps(model, tokens, 5, short)
    seen = transformers.DynamicCache(config=model.config)
    steps(model, tokens, 5, seen)
    seen.layers[0].crop(-2)  # behind the back of the others
    with pytest.raises(ValueError, match="cache holds 7 tokens, must hold the 9"):
        steps(model, tokens, 5, seen)
    other = transformers.DynamicCache(config=model.config)
    steps(model, tokens, 5, other)
    skip.apply(model, Sequences([[1, 0, 1, 1]]))
    with pytest.raises(ValueError, match="cache holds 9 tokens, must hold the 0"):
        steps(model, tokens, 5, other)


def test_a_cache_that_was_cropped() -> None:
    """Holes are taken back with the tokens; what a policy remembers cannot be."""
    model, tokens = build(), prompt()
    policy = Stepwise(lambda layer, step: int(layer != 1 or step % 2 == 0), HOLE)
    skip.apply(model, policy)
    wanted = steps(model, tokens[:, :7], 5)
    cache = transformers.DynamicCache(config=model.config)
    steps(model, tokens, 5, cache)
    cache.crop(-4)
    stream = cache.layers[LAYERS].stream
    assert stream.state.position == 5
    stream.state.step = 1  # a policy that goes by steps would count on
    with torch.no_grad():
        rest = [model(tokens[:, i : i + 1], cache=cache, use_cache=True).logits for i in (5, 6)]
    torch.testing.assert_close(torch.cat(rest, 1), wanted[:, 5:], rtol=1e-4, atol=1e-4)
    skip.apply(model, Sequences([[1, 0, 1, 1]]))
    cache = transformers.DynamicCache(config=model.config)
    steps(model, tokens, 5, cache)
    assert not cache.is_croppable
    cache.crop(-2)
    with pytest.raises(ValueError, match="cache has lost tokens"):
        model(tokens[:, 7:8], cache=cache, use_cache=True)


def test_a_policy_that_goes_by_steps_takes_no_token_back() -> None:
    """Assisted generation does: it would see other layers than plain generation, and nobody would know."""
    model, tokens = build(), prompt(1, 9)
    skip.apply(model, skip.UniformSkip(1.4), key_values=COMPUTE)
    with pytest.raises(ValueError, match="cache that can be cropped"):
        model.generate(tokens, max_new_tokens=4, do_sample=False, prompt_lookup_num_tokens=2)
    cache = transformers.DynamicCache(config=model.config)
    steps(model, tokens, 5, cache)
    assert not cache.is_croppable
    cache.crop(-2)
    with pytest.raises(ValueError, match="cache has lost tokens that the policy remembers or counts"):
        model(tokens[:, 7:8], cache=cache, use_cache=True)


MID_STREAM: dict[str, tuple[Callable[[], Policy], KeyValueRule]] = {
    "temporal": (lambda: skip.TemporalDrop([1, 2], HIDDEN, 3), HOLE),
    "router": (lambda: Sequences([[1, 0, 1, 1], [1, 1, 0, 1]]), HOLE),
    "uniform": (lambda: skip.UniformSkip(1.4), HOLE),
    "alias": (lambda: skip.UniformSkip(1.4), ALIAS),
}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("case", MID_STREAM)
def test_removed_in_mid_stream(case: str, cache: str) -> None:
    """What the policy left out nobody else may read; copies neither, but the policy may, and all after a reset."""
    model, tokens = build(), prompt()
    make, rule = MID_STREAM[case]
    made = static(model) if cache == "static" else transformers.DynamicCache(config=model.config)
    skip.apply(model, make(), key_values=rule)
    steps(model, tokens, 5, made)
    copied = copy.deepcopy(made)
    steps(model, tokens[:, :1], 1, copied)  # the policy reads a copy on
    skip.remove(model)
    for each in (made, copied):
        lengths = [layer.get_seq_length() for layer in each.layers[:LAYERS]]
        with torch.no_grad(), pytest.raises(ValueError, match="cache lacks keys and values"):
            model(tokens[:, :1], cache=each, use_cache=True)
        assert [layer.get_seq_length() for layer in each.layers[:LAYERS]] == lengths
    if cache == "static":
        made.reset()
        torch.testing.assert_close(steps(model, tokens, 5, made), steps(model, tokens, 5), rtol=1e-4, atol=1e-4)


def test_removed_after_an_error() -> None:
    model, tokens = build(), prompt()

    class Failing(Sequences):
        def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
            if layer == 2 and step == 1:
                raise RuntimeError("interrupted")
            return super().decide(layer, step, x, state)

    skip.apply(model, Failing([[1, 0, 1, 1]], HOLE))
    cache = transformers.DynamicCache(config=model.config)
    with pytest.raises(RuntimeError, match="interrupted"):
        steps(model, tokens, 5, cache)
    skip.remove(model)
    with pytest.raises(ValueError, match="cache lacks keys and values"):
        model(tokens[:, :1], cache=cache, use_cache=True)


def test_a_cache_with_all_keys_and_values_can_be_read_on() -> None:
    """COMPUTE: the last token runs all layers on what the first ones left."""
    model, tokens = build(), prompt()
    cache = transformers.DynamicCache(config=model.config)
    skip.apply(model, Stepwise(lambda layer, step: int(layer != 1 or step % 2 == 0), COMPUTE))
    steps(model, tokens[:, :8], 5, cache)
    kept = copy.deepcopy(cache)
    with torch.no_grad():
        skip.remove(model)
        ours = model(tokens[:, 8:], cache=kept, use_cache=True).logits
        bare = transformers.DynamicCache(config=model.config)
        for index, layer in enumerate(cache.layers[:LAYERS]):
            bare.update(layer.keys, layer.values, index)
        torch.testing.assert_close(ours, model(tokens[:, 8:], cache=bare, use_cache=True).logits)


def test_a_cache_is_freed_with_its_last_user() -> None:
    model, tokens = build(), prompt()
    skip.apply(model, Sequences([[1, 0, 1, 1]]))
    cache = transformers.DynamicCache(config=model.config)
    steps(model, tokens, 5, cache)
    gc.disable()
    try:
        layer = weakref.ref(cache.layers[0])
        del cache
        assert layer() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("rule", [ALIAS, HOLE])
@pytest.mark.parametrize("each", [False, True])
def test_running_a_layer_again_without_its_keys_is_refused(rule: KeyValueRule, each: bool) -> None:
    """A policy that says it does not, and does."""
    model, tokens = build(), prompt()

    class Liar(Stepwise):
        def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
            action = self.actions(layer, step)
            return Layer(torch.tensor([1, action]) if each else Action(action))

    skip.apply(model, Liar(lambda layer, step: int(layer != 1 or step != 1), rule, revives=False))
    with pytest.raises(ValueError, match="layer 1 is to run for a sequence that has skipped it"):
        steps(model, tokens, 5)


def test_batches_are_selected_and_repeated_with_their_cache() -> None:
    model, tokens = build(), prompt(2, 9)
    skip.apply(model, Sequences([[1, 0, 1, 2], [2, 1, 0, 1]], HOLE))
    wanted = steps(model, tokens, 7)
    cache = transformers.DynamicCache(config=model.config)
    steps(model, tokens[:, :7], 7, cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    with torch.no_grad():
        rest = [model(tokens.flip(0)[:, i : i + 1], cache=cache, use_cache=True).logits for i in (7, 8)]
    torch.testing.assert_close(torch.cat(rest, 1).flip(0), wanted[:, 7:], rtol=1e-4, atol=1e-4)


def test_a_copied_cache_is_a_stream_of_its_own() -> None:
    model, tokens = build(), prompt(2, 9)
    skip.apply(model, Sequences(TABLE[:2], HOLE))
    cache = transformers.DynamicCache(config=model.config)
    whole = steps(model, tokens, 7, cache)
    again = transformers.DynamicCache(config=model.config)
    first = steps(model, tokens[:, :7], 7, again)
    for _ in range(2):
        copied = copy.deepcopy(again)
        with torch.no_grad():
            rest = [model(tokens[:, i : i + 1], cache=copied, use_cache=True).logits for i in (7, 8)]
        torch.testing.assert_close(torch.cat((first, *rest), 1), whole, rtol=1e-4, atol=1e-4)


def test_a_reset_cache_starts_again() -> None:
    model, tokens = build(), prompt(2, 9)
    skip.apply(model, Sequences(TABLE[:2], HOLE))
    for cache in (static(model), transformers.DynamicCache(config=model.config)):
        first = steps(model, tokens, 5, cache)
        cache.reset()
        torch.testing.assert_close(steps(model, tokens, 5, cache), first, rtol=1e-5, atol=1e-5)


def test_alias_refers_to_the_lower_layers_tensors() -> None:
    model, tokens = build(), prompt(2, 9)
    skip.apply(model, Stepwise(lambda layer, step: int(layer not in (1, 2) or step == 0), ALIAS, revives=False))
    cache = transformers.DynamicCache(config=model.config)
    steps(model, tokens, 6, cache)
    assert cache.layers[1].keys is cache.layers[0].keys and cache.layers[2].values is cache.layers[0].values
    assert cache.layers[3].keys is not cache.layers[0].keys
