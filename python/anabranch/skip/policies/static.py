"""Layers that are skipped whatever the input: `UniformSkip` (Unified Layer Skipping) and `ContiguousSkip`."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from anabranch.skip.policies.common import check_layers
from anabranch.skip.policy import Action, Decision, KeyValueRule, Layer, Policy, State

Pattern = Literal["even", "released"]


class _StaticSkip(Policy):
    """Skips the layers of `skippable_layers` in every call but the prompt."""

    scope = "layer"
    key_value_rule = KeyValueRule.ALIAS
    revives = False

    def __init__(self, *, skip_prompt: bool) -> None:
        super().__init__()
        self.skip_prompt = skip_prompt
        self.by_step = not skip_prompt

    def check(self, num_layers: int, hidden_size: int, intermediate_size: int) -> None:
        self.skippable_layers(num_layers)

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        if not self.skip_prompt and state.in_prompt(step, x.shape[1]):
            return None
        return Layer(Action.SKIP) if layer in self.skippable_layers(state.num_layers) else None


class UniformSkip(_StaticSkip):
    """Keeps `n = floor(L / speedup)` layers at even distances, the first and the last among them.

    The prompt runs all layers, whole or in chunks (`State.in_prompt`), decoding the kept ones only. A skipped layer's
    cache reads as the nearest lower layer that ran; it must not run again for that stream. Without a cache
    (`use_cache=False`) each call is a prompt of its own, and nothing is skipped but with `skip_prompt=True`.

    Source: Unified Layer Skipping (arXiv 2404.06954). The released rule is not even: it takes ascending multiples of
    `floor(L / (n - 1))` until n layers are kept, so that 32 layers at 1.5 keep 0-19 and 31 and lose a block of 11. The
    default places layer i of n at `i (L - 1) / (n - 1)`, rounded, halves up; `pattern="released"` is there for parity.

    Gradient: none, nothing is learned. The model is fine-tuned at one speed-up by its own loss, in calls with
    `skip_prompt=True`.

    Cost: of a decision, a look into a set on the host. No tensor is read.

    Args:
        speedup: at least 1. It counts layers; the time gained is smaller.
        pattern: which layers are kept.
        skip_prompt: skips in the prompt too: for training, where a call has the whole sequence.

    Raises:
        ValueError: speed-up below 1 or unknown pattern; in `check`, a model of one layer, or a speed-up that leaves
            fewer than two.
    """

    def __init__(self, speedup: float, *, pattern: Pattern = "even", skip_prompt: bool = False) -> None:
        super().__init__(skip_prompt=skip_prompt)
        if not 1 <= speedup < math.inf:
            raise ValueError(f"UniformSkip: speedup is {speedup}, must be at least 1, finite; 1 keeps every layer")
        if pattern not in ("even", "released"):
            raise ValueError(f"UniformSkip: pattern is {pattern!r}, must be 'even' or 'released'; even is the default")
        self.speedup = speedup
        self.pattern = pattern
        self._skipped: dict[int, frozenset[int]] = {}

    def kept_layers(self, num_layers: int) -> list[int]:
        """The layers that always run, ascending. Raises ValueError where fewer than two would be left."""
        # The quotient is rounded: 33 / 1.1 is a little below 30 in floating point.
        kept = math.floor(num_layers / self.speedup + 1e-9)
        if kept < 2:
            raise ValueError(
                f"UniformSkip: speedup is {self.speedup}, must leave at least 2 of {num_layers} layers; "
                "lower it: the first and the last layer always run"
            )
        if self.pattern == "even":
            gaps = kept - 1
            return [(2 * i * (num_layers - 1) + gaps) // (2 * gaps) for i in range(kept)]
        stride = num_layers // (kept - 1)
        return [*(i * stride for i in range(kept - 1)), num_layers - 1]

    def skippable_layers(self, num_layers: int) -> set[int]:
        if num_layers not in self._skipped:
            self._skipped[num_layers] = frozenset(range(num_layers)).difference(self.kept_layers(num_layers))
        return set(self._skipped[num_layers])

    def extra_repr(self) -> str:
        return f"speedup={self.speedup}, pattern={self.pattern!r}, skip_prompt={self.skip_prompt}"


class ContiguousSkip(_StaticSkip):
    """Skips one block of layers, `first` to `last`: the baseline that policies must beat.

    Prompt, cache, gradient and cost are as in `UniformSkip`.

    Args:
        first: the first that is skipped, at least 1: layer 0 has nothing below it to stand in.
        last: the last that is skipped, at least `first`.
        skip_prompt: skips in the prompt too.

    Raises:
        ValueError: a block without layers or with layer 0; in `check`, one that the model does not have.
    """

    def __init__(self, first: int, last: int, *, skip_prompt: bool = False) -> None:
        super().__init__(skip_prompt=skip_prompt)
        if not 1 <= first <= last:
            raise ValueError(
                f"ContiguousSkip: first is {first} and last {last}, must be 1 <= first <= last; layer 0 always runs"
            )
        self.first = first
        self.last = last

    def skippable_layers(self, num_layers: int) -> set[int]:
        check_layers("ContiguousSkip", (self.last,), num_layers)
        return set(range(self.first, self.last + 1))

    def extra_repr(self) -> str:
        return f"first={self.first}, last={self.last}, skip_prompt={self.skip_prompt}"
