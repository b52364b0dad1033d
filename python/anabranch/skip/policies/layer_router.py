"""`LayerRouter`: each sequence's prompt decides which layers it skips, runs or repeats (Dr.LLM, FiRST)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from anabranch.skip.losses import UNLABELLED, budget_loss, focal_loss
from anabranch.skip.policies.common import (
    RecordingPolicy,
    check_at_least,
    check_layers,
    check_size,
    layer_tuple,
    straight_through,
    token_numbers,
    wide,
)
from anabranch.skip.policy import Action, Decision, KeyValueRule, Layer, State

Objective = Literal["supervised", "straight_through"]

_ACTIONS = ((Action.SKIP, Action.RUN), (Action.SKIP, Action.RUN, Action.REPEAT))


class LayerRouter(RecordingPolicy):
    """A small MLP per layer reads the prompt and decides for its sequence, once: the decision holds for every step.

    The real tokens of the prompt are cut into up to `windows` equal windows, the remainder at the end dropped. Each
    window's mean goes through `Linear(d, hidden) -> GELU -> Linear(hidden, actions)`, logits are averaged over windows,
    and the largest wins (the lower action among equals). A sequence without real tokens runs.

    The knob `p` leans the softmax: -1 is all skip, -.5 the router, +.5 all run, +1 all repeat, and between two of
    them probabilities are mixed linearly before the largest is taken.

    Where the prompt comes in chunks (`generate(prefill_chunk_size=...)`), the first chunk decides; without a cache each
    call is a prompt and decides anew. Since decisions are frozen, a layer that a sequence skipped is never run for it,
    and leaves no keys and values.

    Gradient, `objective="supervised"` (Dr.LLM): from labels alone, by `supervised_loss` (focal). The action is an
    argmax and takes none. In training the labels drive what runs (`teacher_forcing`); the model is frozen.
    `objective="straight_through"` (FiRST): in training every layer runs and its update is multiplied by a gate whose
    value is the hard decision and whose gradient is that of the softmax of "run", leant by p; so layers that would be
    skipped have a gradient too. Add `budget_loss`; without it nothing asks for skips. In both the router reads x
    detached: it shapes no features.

    Cost: on the prompt a mean over its tokens and two small products per layer; on later steps nothing. No host read.

    Source: Dr.LLM (arXiv 2510.12773) with actions skip, run, repeat; FiRST (arXiv 2410.12513; no code, its loss is not
    known) with skip and run. Not repeated from Dr.LLM's release: sample 0 decides for the batch, decoding decides
    anew from one token, a repeated layer writes its keys twice into one slot, the language model's loss alone trains
    an argmax, and p = .5 by default, which is no router at all.

    Args:
        num_layers, hidden_size: of the model.
        actions: (SKIP, RUN) or (SKIP, RUN, REPEAT).
        layers: those with a router; default all. The others run.
        windows, hidden: of the router.
        p: the knob, -1 to 1; without REPEAT at most .5.
        objective: what trains it. "straight_through" knows no REPEAT.

    Raises:
        ValueError: an argument out of range; in `check`, another model; in `decide`, a state whose prompt this policy
            has not seen.
    """

    scope = "layer"
    key_value_rule = KeyValueRule.HOLE
    revives = False

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        *,
        actions: tuple[Action, ...] = (Action.SKIP, Action.RUN, Action.REPEAT),
        layers: Iterable[int] | None = None,
        windows: int = 8,
        hidden: int = 128,
        p: float = -0.5,
        objective: Objective = "supervised",
    ) -> None:
        super().__init__()
        op = "LayerRouter"
        check_at_least(op, 1, num_layers=num_layers, hidden_size=hidden_size, windows=windows, hidden=hidden)
        if actions not in _ACTIONS:
            raise ValueError(f"{op}: actions is {actions}, must be (SKIP, RUN) or (SKIP, RUN, REPEAT); pass one")
        if objective not in ("supervised", "straight_through"):
            raise ValueError(
                f"{op}: objective is {objective!r}, must be 'supervised' or 'straight_through'; choose what trains it"
            )
        if objective == "straight_through" and len(actions) == 3:
            raise ValueError(
                f"{op}: actions has REPEAT, must be (SKIP, RUN) with straight_through; a gate has no second pass"
            )
        self.layers = layer_tuple(op, range(num_layers) if layers is None else layers, num_layers)
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.actions = actions
        self.windows = windows
        self.objective = objective
        self.repeats = len(actions) == 3
        self.p = p
        self.routers = nn.ModuleDict(
            {
                str(layer): nn.Sequential(nn.Linear(hidden_size, hidden), nn.GELU(), nn.Linear(hidden, len(actions)))
                for layer in self.layers
            }
        )
        self._labels: Tensor | None = None

    @property
    def p(self) -> float:
        """The knob; it holds for prompts from now on, not for sequences that are under way."""
        return self._p

    @p.setter
    def p(self, value: float) -> None:
        high = 1.0 if self.repeats else 0.5
        if not -1 <= value <= high:
            raise ValueError(
                f"LayerRouter: p is {value}, must lie between -1 and {high} for {len(self.actions)} actions; "
                "-0.5 is the router as trained"
            )
        self._p = value

    def check(self, num_layers: int, hidden_size: int, intermediate_size: int) -> None:
        check_size("LayerRouter", "num_layers", self.num_layers, num_layers)
        check_size("LayerRouter", "hidden_size", self.hidden_size, hidden_size)

    def skippable_layers(self, num_layers: int) -> set[int]:
        check_layers("LayerRouter", self.layers, num_layers)
        return set(self.layers)

    def logits(self, layer: int, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """The router's logits `[B, actions]` for the prompt x `[B, S, H]`; zeros for a sequence without tokens."""
        router = self.routers[str(layer)]
        batch, length, _ = x.shape
        if padding is None:
            counts = torch.full((batch,), length, device=x.device)
        else:
            counts = padding.sum(1)
            x = x.masked_fill(~padding[..., None], 0)  # what padding holds may be NaN
        windows = counts.clamp(max=self.windows)
        sizes = counts // windows.clamp(min=1)
        window = token_numbers(x, padding) // sizes.clamp(min=1)[:, None]
        numbers = torch.arange(self.windows, device=x.device)
        inside = numbers[:, None] == window[:, None, :]
        if padding is not None:
            inside = inside & padding[:, None, :]
        weight = next(router.parameters())
        values = wide(x)
        means = inside.to(values.dtype) @ values / sizes.clamp(min=1)[:, None, None]
        votes = wide(router(means.to(weight.dtype)))
        # The remainder makes windows of its own, which have no vote.
        valid = (numbers < windows[:, None]).to(votes.dtype)
        return (votes * valid[..., None]).sum(1) / windows.clamp(min=1)[:, None]

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        if str(layer) not in self.routers:
            return None
        key = ("action", layer)
        if step > 0:
            if key not in state.memory:
                raise ValueError(
                    f"LayerRouter: state has no decision for layer {layer}, must be one whose prompt (step 0) this "
                    "policy saw; start a new state"
                )
            return Layer(state.memory[key])
        logits = self.logits(layer, x.detach(), state.padding)
        probs = self._lean(logits.softmax(-1))
        action = probs.argmax(-1)
        if state.padding is not None:
            action = action.masked_fill(~state.padding.any(1), int(Action.RUN))
        elif x.shape[1] == 0:
            action = torch.full_like(action, int(Action.RUN))
        gate = None
        if self._labels is not None:
            labels = self._labels[:, layer]
            action = labels.masked_fill(labels == UNLABELLED, int(Action.RUN))
            if self.learning:
                self._record(layer, logits=logits, labels=labels)
        elif self.learning and self.objective == "straight_through":
            gate = straight_through((action == Action.RUN).to(probs.dtype), probs[:, 1])
            self._record(layer, gate=gate)
            gate = gate.to(x.dtype)
        state.memory[key] = action
        return Layer(action) if gate is None else Layer(Action.RUN, gate=gate)

    def _lean(self, probs: Tensor) -> Tensor:
        """The probabilities under the knob: mixed with those of the sure choice at its end of the segment."""
        low, high = (-1.0, -0.5) if self.p < -0.5 else (-0.5, 0.5) if self.p < 0.5 else (0.5, 1.0)
        share = (self.p - low) / (high - low)
        sure = torch.eye(len(self.actions), dtype=probs.dtype, device=probs.device)
        if low == -1.0:
            return torch.lerp(sure[0].expand_as(probs), probs, share)
        if low == -0.5:
            return torch.lerp(probs, sure[1].expand_as(probs), share)
        return torch.lerp(sure[1], sure[-1], share).expand_as(probs)

    @contextmanager
    def teacher_forcing(self, labels: Tensor) -> Iterator[None]:
        """While in it, prompts take the actions of labels, int64 `[B, num_layers]`; `UNLABELLED` entries run.

        Raises:
            ValueError: another dtype or number of layers.
        """
        if labels.dtype != torch.int64 or labels.dim() != 2 or labels.shape[1] != self.num_layers:
            raise ValueError(
                f"LayerRouter: labels is {labels.dtype} of shape {tuple(labels.shape)}, must be int64 of (batch, "
                f"{self.num_layers}); give one action per layer, as search.path_labels does"
            )
        self._labels = labels
        try:
            yield
        finally:
            self._labels = None

    def supervised_loss(self, *, class_weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
        """`focal_loss` of the last forward under `teacher_forcing`. Raises ValueError where there was none."""
        logits, labels = self._take("logits"), self._take("labels")
        return focal_loss(torch.stack(logits, 1), torch.stack(labels, 1), class_weights=class_weights, gamma=gamma)

    def budget_loss(self, target: float) -> Tensor:
        """`(share of routed layers that ran - target)^2`, straight through, of the last training forward."""
        return budget_loss(torch.stack(self._take("gate")), target)
