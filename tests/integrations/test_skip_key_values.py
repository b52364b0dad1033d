"""Whole layers that change from step to step and sequence to sequence: holes, second slots, padding, beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from skip_cases import LAYERS, TABLE, Sequences, Stepwise, build, order_of, prompt, static, steps, with_layers
from skip_references import masked_slots
from torch import Tensor

from anabranch import skip
from anabranch.skip import Decision, KeyValueRule, Layer, State
from anabranch.skip.runtime.depth import Depth

COMPUTE, ALIAS, HOLE = KeyValueRule


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


@pytest.mark.parametrize("device_path", [False, True])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("rule", [COMPUTE, HOLE])
@pytest.mark.parametrize("seed", range(2))
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
