"""What `decide` may answer: whatever else it gives is named, on every path, before anything of the layer runs."""

from __future__ import annotations

import pytest
import torch
from skip_cases import Wrong, build, prompt

from anabranch import skip
from anabranch.skip import Action, Keep, Layer, Policy, Width
from anabranch.skip.runtime.depth import Depth

ALL = (0, 172)
WRONG_ANSWERS: dict[str, tuple[Policy, str]] = {
    "layer in ffn": (Wrong("ffn", Layer(Action.RUN)), "gives Layer for layer 0, must give Keep"),
    "keep in layer": (Wrong("layer", Keep(torch.ones(2, 9, dtype=torch.bool))), "gives Keep for layer 0"),
    "a layer not named": (Wrong("layer", Layer(Action.SKIP)), "layer 0, must give RUN"),
    "a repeat not named": (Wrong("layer", Layer(Action.REPEAT), layers=set(range(4))), "must give SKIP or RUN"),
    "another batch": (Wrong("layer", Layer(torch.ones(3, dtype=torch.int64))), r"tensor \(3,\) .* int64 \[2\]"),
    "another dtype": (Wrong("layer", Layer(torch.ones(2))), r"int64 \[2\]"),
    "another mask": (Wrong("ffn", Keep(torch.zeros(2, 8, dtype=torch.bool))), "keep"),
    "another index": (Wrong("ffn", Width(torch.zeros(3, dtype=torch.int64), (0, 40))), "width_index"),
    "no decision": (Wrong("ffn", torch.ones(2, 9, dtype=torch.bool)), r"tensor \(2, 9\) for layer 0, must give Keep"),
    "a mask of whole numbers": (Wrong("ffn", Keep(torch.ones(2, 9, dtype=torch.int64))), "keep is int64"),
    "a mask of sequences": (Wrong("ffn", Keep(torch.ones(2, dtype=torch.bool))), r"keep has shape \(2,\)"),
    "one mask": (Wrong("ffn", Keep(torch.ones(1, 1, dtype=torch.bool))), r"keep has shape \(1, 1\)"),
    "too many": (Wrong("ffn", Keep(torch.ones(2, 9, dtype=torch.bool), capacity=17)), "keeps 18 tokens .* of 17"),
    "a short index": (Wrong("ffn", Width(torch.ones(2, dtype=torch.int32), ALL)), "width_index is int32"),
    "an index below": (Wrong("ffn", Width(torch.full((2,), -1), ALL)), r"row 0 is -1, must be in \[0, 2\)"),
    "an index above": (Wrong("ffn", Width(torch.full((2,), 7), ALL)), r"row 0 is 7, must be in \[0, 2\)"),
    "no widths": (Wrong("ffn", Width(torch.zeros(2, dtype=torch.int64), ())), "widths"),
    "no action": (Wrong("layer", Layer(5)), "gives int for layer 0, must give an Action"),  # type: ignore[arg-type]
    "one number out": (Wrong("layer", Layer(torch.tensor([5, 1]))), r"values of Action and not \[5, 1\]"),
    "all out": (Wrong("layer", Layer(torch.tensor([5, 5]))), r"not \[5, 5\]"),
    "below": (Wrong("layer", Layer(torch.tensor([-1, 0]))), r"not \[-1, 0\]"),
    "a gate for all": (
        Wrong("layer", Layer(Action.RUN, gate=torch.ones(1))),
        r"tensor \(1,\) .* a floating gate \[2\]",
    ),
    "a gate of numbers": (Wrong("layer", Layer(Action.RUN, gate=torch.ones(2).long())), "a floating gate"),
}


@pytest.mark.parametrize("case", WRONG_ANSWERS)
def test_wrong_answers_are_named(case: str) -> None:
    policy, message = WRONG_ANSWERS[case]
    model, tokens = build(), prompt()
    skip.apply(model, policy)
    with pytest.raises(ValueError, match=message):
        model(tokens)


@pytest.mark.parametrize("pack", [False, True])
def test_a_capacity_holds_on_every_path(pack: bool) -> None:
    """Packed weights and a mask that is true everywhere do not reach the op's own check."""
    model, tokens = build(), prompt()
    mask = torch.rand(2, 9) < 0.5
    skip.apply(model, Wrong("ffn", Keep(mask, capacity=int(mask.sum()))), pack=pack)
    with torch.no_grad():
        model(tokens)
        skip.apply(model, Wrong("ffn", Keep(mask, capacity=int(mask.sum()) - 1)), pack=pack)
        with pytest.raises(ValueError, match="must keep at most its capacity"):
            model(tokens)


def test_on_a_gpu_a_layer_that_may_not_skip_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at the actions there."""
    model, tokens = build(), prompt()
    with torch.no_grad():
        plain = model(tokens).logits
        monkeypatch.setattr(Depth, "on_host", staticmethod(lambda tensor: False))
        skip.apply(model, Wrong("layer", Layer(torch.tensor([0, 2])), layers=set()))
        torch.testing.assert_close(model(tokens).logits, plain, rtol=1e-4, atol=1e-4)
