"""`skip.apply` in scope "layer": layers that are skipped or repeated, and what their key-value cache gets."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from skip_cases import HIDDEN, LAYERS, Sequences, Stepwise, build, prompt, steps
from torch import Tensor, nn

from anabranch import skip
from anabranch.skip import Action, Anchor, CachedDelta, Decision, KeyValueRule, Layer, LowRank, SmallFfn, State
from anabranch.skip.runtime.depth import Depth

COMPUTE, ALIAS, HOLE = KeyValueRule
TABLE = [[1, 0, 1, 2], [2, 1, 0, 1], [1, 1, 1, 1], [1, 0, 0, 1]]  # per sequence and layer: skip, run, repeat
CASES = ["llama", "llama_bias", "qwen2", "qwen3", "phi3"]


def with_layers(model: Any, order: list[int]) -> Any:
    """The model that runs these of its layers in this order, each with a cache slot of its own."""
    other = copy.deepcopy(model)
    skip.remove(other)
    layers = []
    for slot, index in enumerate(order):
        layer = copy.deepcopy(model.model.layers[index])
        layer.__dict__.pop("forward", None)
        layer.self_attn.layer_idx = slot
        layers.append(layer)
    other.model.layers = nn.ModuleList(layers)
    other.config.num_hidden_layers = len(layers)
    if getattr(other.config, "layer_types", None) is not None:
        other.config.layer_types = ["full_attention"] * len(layers)
    return other


def order_of(row: list[int]) -> list[int]:
    return [layer for layer, action in enumerate(row) for _ in range(action)]


def static(model: Any, length: int = 24) -> Any:
    return transformers.StaticCache(config=model.config, max_cache_len=length)


def allowed(rule: KeyValueRule, row: list[list[int]]) -> bool:
    return rule is not ALIAS or all(each[0] != 0 for each in row)


@pytest.mark.parametrize("device_path", [False, True])
@pytest.mark.parametrize("rule", [COMPUTE, ALIAS, HOLE])
@pytest.mark.parametrize("cache", ["none", "dynamic", "lazy", "static"])
@pytest.mark.parametrize("name", CASES)
def test_each_sequence_of_a_batch_runs_its_own_layers(
    name: str, cache: str, rule: KeyValueRule, device_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fixed actions per sequence equal models that have just these layers, prompt and decoding.

    `device_path`: as on a GPU, where the host does not look at the actions.
    """
    if device_path:
        monkeypatch.setattr(Depth, "on_host", staticmethod(lambda tensor: False))
    model, tokens = build(name), prompt(4, 12)
    references = [with_layers(model, order_of(row)) for row in TABLE]
    skip.apply(model, Sequences(TABLE, rule))
    if cache == "none":
        with torch.no_grad():
            logits = model(tokens).logits
    else:
        made = {"dynamic": None, "lazy": transformers.DynamicCache(), "static": static(model)}[cache]
        logits = steps(model, tokens, 7, made)
    for row, reference in enumerate(references):
        with torch.no_grad():
            wanted = reference(tokens[row : row + 1]).logits
        torch.testing.assert_close(logits[row : row + 1], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", [COMPUTE, HOLE])
def test_layer_0_skipped_from_the_start(rule: KeyValueRule) -> None:
    """Silently wrong in a patch without slots: positions are read from layer 0."""
    model, tokens = build(), prompt(2, 12)
    reference = with_layers(model, [1, 2, 3])
    for policy in (Stepwise(lambda layer, step: int(layer > 0), rule, False), Sequences([[0, 1, 1, 1]], rule)):
        skip.apply(model, policy)
        for cache in (None, static(model)):
            with torch.no_grad():
                torch.testing.assert_close(
                    steps(model, tokens, 5, cache), reference(tokens).logits, rtol=1e-4, atol=1e-4
                )


def test_a_repeated_layer_has_a_slot_of_its_own() -> None:
    """Silently wrong in a patch that writes one slot twice: its length doubles."""
    model, tokens = build(), prompt(2, 12)
    reference = with_layers(model, [0, 1, 1, 2, 3])
    skip.apply(model, Stepwise(lambda layer, step: 2 if layer == 1 else 1, COMPUTE))
    cache = transformers.DynamicCache(config=model.config)
    logits = steps(model, tokens, 5, cache)
    with torch.no_grad():
        torch.testing.assert_close(logits, reference(tokens).logits, rtol=1e-4, atol=1e-4)
    lengths = [layer.get_seq_length() for layer in cache.layers if layer.keys is not None]
    assert lengths == [12] * (LAYERS + 1)


def test_a_repeat_that_begins_and_ends_while_decoding() -> None:
    """The second pass sees the tokens that had one: the others are masked, however the batch is made."""
    model, tokens = build(), prompt(2, 12)

    def actions(layer: int, step: int) -> int:
        return 2 if layer == 1 and step in (2, 3, 5) else 1

    skip.apply(model, Stepwise(actions, COMPUTE))
    logits = steps(model, tokens, 7)
    skip.remove(model)
    torch.testing.assert_close(logits, masked_slots(model, tokens, 7, actions, COMPUTE), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("rule", [COMPUTE, HOLE])
@pytest.mark.parametrize("skipped", [0, 1, 3])
def test_a_layer_that_runs_again_after_it_was_skipped(
    skipped: int, rule: KeyValueRule, cache: str, attention: str
) -> None:
    """A size mismatch in a patch without slots."""
    model, tokens = build(attention=attention), prompt(2, 12)

    def actions(layer: int, step: int) -> int:
        return int(layer != skipped or step in (0, 3, 4))

    skip.apply(model, Stepwise(actions, rule))
    logits = steps(model, tokens, 7, static(model) if cache == "static" else None)
    skip.remove(model)
    torch.testing.assert_close(logits, masked_slots(model, tokens, 7, actions, rule), rtol=1e-4, atol=1e-4)


def masked_slots(model: Any, tokens: Tensor, first: int, actions: Any, rule: KeyValueRule) -> Tensor:
    """One call for the whole sequence that computes everything, with a plain loop over the layers.

    Token t runs layer l as `actions(l, step of t)` says, for all sequences or as a list of one per sequence; a layer's
    attention sees the tokens that have keys in it.
    """
    batch, length = tokens.shape
    step = [max(0, position - first + 1) for position in range(length)]
    decoder = model.model
    with torch.no_grad():
        x = decoder.embed_tokens(tokens)
        positions = torch.arange(length)[None]
        angles = decoder.rotary_emb(x, position_ids=positions)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        for index, layer in enumerate(decoder.layers):
            action = torch.tensor([actions(index, each) for each in step]).reshape(length, -1).T.expand(batch, -1)
            for turn in (1, 2):
                runs = action >= turn
                slots = torch.ones_like(runs) if turn == 1 and rule is COMPUTE else runs
                seen = causal & (slots[:, None, :] | torch.eye(length).bool())
                mask = torch.where(seen, 0.0, torch.finfo(x.dtype).min)[:, None]
                y = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=angles)
                x = torch.where(runs[..., None], y, x)
        return model.lm_head(decoder.norm(x))


@pytest.mark.parametrize("device_path", [False, True])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("rule", [COMPUTE, HOLE])
@pytest.mark.parametrize("seed", range(4))
def test_any_actions_for_any_sequence_at_any_step(
    seed: int, rule: KeyValueRule, cache: str, device_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device_path:
        monkeypatch.setattr(Depth, "on_host", staticmethod(lambda tensor: False))
    model, tokens = build("qwen3"), prompt(3, 12)
    table = torch.randint(0, 3, (LAYERS, 6, 3), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")

    class Table(Stepwise):
        def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
            return Layer(table[layer, step].to(x.device))

    def actions(layer: int, step: int) -> Any:
        return table[layer, step].tolist()

    skip.apply(model, Table(lambda layer, step: 2 * (step % 2), rule))
    logits = steps(model, tokens, 7, static(model) if cache == "static" else None)
    skip.remove(model)
    torch.testing.assert_close(logits, masked_slots(model, tokens, 7, actions, rule), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", [COMPUTE, HOLE])
def test_skips_and_holes_with_left_padding(rule: KeyValueRule) -> None:
    """Each sequence of a padded batch gives what it gives alone."""
    model, tokens = build(), prompt(2, 12)
    table = [[1, 0, 1, 2], [1, 2, 0, 1]]
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    skip.apply(model, Sequences(table, rule))
    both = steps(model, tokens, 7, attention_mask=mask)
    for row, begin in ((0, 0), (1, 4)):
        skip.apply(model, Sequences(table[row : row + 1], rule))
        alone = steps(model, tokens[row : row + 1, begin:], 7 - begin)
        torch.testing.assert_close(both[row : row + 1, begin:], alone, rtol=1e-4, atol=1e-4)


def test_the_policy_is_told_which_tokens_are_padding() -> None:
    model, tokens = build(), prompt(2, 9)
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    seen: list[Tensor | None] = []

    class Watching(Stepwise):
        def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
            seen.append(state.padding)
            return None

    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        skip.apply(model, Watching(lambda layer, step: 1, COMPUTE))
        for options in ({}, {"cache_implementation": "static"}):
            seen.clear()
            model.generate(tokens, attention_mask=mask, max_new_tokens=3, do_sample=False, **options)
            assert len(seen) == 3 * LAYERS
            assert all(torch.equal(padding, mask.bool()) for padding in seen[:LAYERS])
            assert all(padding is None or padding.all() for padding in seen[LAYERS:])
    seen.clear()
    with torch.no_grad():
        model(tokens)
        model(tokens, attention_mask=mask)
    assert all(padding is None or padding.all() for padding in seen[:LAYERS])
    assert all(torch.equal(padding, mask.bool()) for padding in seen[LAYERS:])


@pytest.mark.parametrize("rule", [COMPUTE, HOLE])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "cache_implementation": "static"}, {}])
def test_generation_equals_models_with_these_layers(options: dict[str, Any], rule: KeyValueRule) -> None:
    """Beams take their sequence's decisions, holes and second slots along."""
    model, tokens = build(), prompt(3, 7)
    table = TABLE[:3]
    wanted = [
        with_layers(model, order_of(row)).generate(
            tokens[index : index + 1], max_new_tokens=8, do_sample=False, **options
        )
        for index, row in enumerate(table)
    ]
    skip.apply(model, Sequences(table, rule))
    generated = model.generate(tokens, max_new_tokens=8, do_sample=False, **options)
    assert torch.equal(generated, torch.cat(wanted))


def test_beams_reorder_what_a_policy_remembers() -> None:
    """A policy that answers from the tokens it has seen gives, in beam search, what a replay of the winner gives."""
    model, tokens = build(), prompt(2, 7)

    class Remembering(Sequences):
        """Skips layer 2 for a sequence while the last embedded token before this one had a negative first feature."""

        def __init__(self) -> None:
            super().__init__([[1, 1, 0, 1]], HOLE, revives=True)

        def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
            if layer == 0:
                state.memory["before"] = state.memory.get("last", torch.ones(x.shape[0]))
                state.memory["last"] = x[:, -1, 0].clone()
            return Layer((state.memory["before"] >= 0).long()) if layer == 2 else None

    skip.apply(model, Remembering())
    out = model.generate(
        tokens, max_new_tokens=8, do_sample=False, num_beams=4, return_dict_in_generate=True, output_scores=True
    )
    logits = steps(model, out.sequences, 7).log_softmax(-1)
    picked = logits[:, 6:-1].gather(-1, out.sequences[:, 7:, None])[..., 0]
    torch.testing.assert_close(picked.sum(1) / 8, out.sequences_scores, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("kind", ["delta", "anchor", "lora", "adapter", "small"])
def test_else_branches_of_a_layer(kind: str, each: bool) -> None:
    model, tokens = build(), prompt(2, 5)
    x = torch.randn(2, 5, HIDDEN)
    a, b, up = torch.randn(3, HIDDEN), torch.randn(HIDDEN, 3), torch.randn(6, HIDDEN)
    norm = model.model.layers[1].input_layernorm
    branch, wanted = {
        "delta": (CachedDelta(x), lambda h: h + x),
        "anchor": (Anchor(x), lambda h: x),
        "lora": (Anchor(x, a, b, 0.5), lambda h: x + 0.5 * h @ a.T @ b.T),
        "adapter": (LowRank(a, b, "relu", 2.0), lambda h: h + 2 * (norm(h) @ a.T).relu() @ b.T),
        "small": (
            SmallFfn(up, b),
            lambda h: h + (torch.nn.functional.silu(norm(h) @ up[:3].T) * (norm(h) @ up[3:].T)) @ b.T,
        ),
    }[kind]
    policy = Sequences([[1, 0, 1, 1], [1, 1, 1, 1]] if each else [[1, 0, 1, 1]])
    policy.otherwise = branch
    skip.apply(model, policy)
    states: list[Tensor] = []
    hook = model.model.layers[1].register_forward_hook(lambda module, args, out: states.extend((args[0], out)))
    with torch.no_grad():
        model(tokens)
        torch.testing.assert_close(states[1][:1], wanted(states[0])[:1], rtol=1e-4, atol=1e-4)
    hook.remove()


def test_a_gate_on_a_layer_takes_its_gradient() -> None:
    model, tokens = build(), prompt(2, 5)
    gate = torch.rand(2, requires_grad=True)

    class Gated(Stepwise):
        def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
            return Layer(Action.RUN, gate=gate) if layer == 1 else None

    skip.apply(model, Gated(lambda layer, step: 1, COMPUTE))
    logits = model(tokens).logits
    (ours,) = torch.autograd.grad(logits.square().sum(), gate)
    skip.remove(model)
    hook = model.model.layers[1].register_forward_hook(
        lambda module, args, out: args[0] + gate[:, None, None] * (out - args[0])
    )
    wanted = model(tokens).logits
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, torch.autograd.grad(wanted.square().sum(), gate)[0], rtol=1e-4, atol=1e-2)
    hook.remove()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_with_skipped_layers(checkpointing: bool) -> None:
    """Gradients of mixed actions equal those of models that have just these layers."""
    model, tokens = build(), prompt(4, 8)
    wanted = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for row, actions in enumerate(TABLE):
        order = order_of(actions)
        reference = with_layers(model, order).train()
        reference(tokens[row : row + 1]).logits.square().sum().backward()
        for name, parameter in reference.named_parameters():
            parts = name.split(".")
            if parts[1] == "layers":
                parts[2] = str(order[int(parts[2])])
            wanted[".".join(parts)] += parameter.grad
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    skip.apply(model, Sequences(TABLE))
    model(tokens).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-4 * float(wanted[name].abs().max()))
