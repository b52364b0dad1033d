"""`TemporalDrop`: some layers run at every c-th token only, and are corrected in between (LoRA-Drop)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anabranch.skip.otherwise import Anchor
from anabranch.skip.policies.common import check_at_least, check_layers, check_size, layer_tuple, token_numbers
from anabranch.skip.policy import Action, Decision, KeyValueRule, Layer, Policy, State


class TemporalDrop(Policy):
    """Every `cycle`-th step runs all layers; at the others each of `layers` returns its last output, corrected.

    A refresh remembers the output a of each dropped layer at the last real token. Until the next refresh, the layer
    returns `a + (alpha / rank) B A x` with x its input now: attention and FFN are skipped, its own residual is not
    added, no keys and values are written, and later tokens attend to the slots that exist. The prompt is a refresh, and
    so is any call of several tokens; the count starts anew with each `State`, and each chunk of a prompt counts as one.
    Without a cache each call is a prompt, and nothing is dropped.

    Gradient: through `training_output`, for calls with the whole sequence: tokens off the cycle take the anchor and its
    correction, so B and A (A from the second step on, since B starts at 0), the anchor's layer and the layers below
    learn from the model's own loss. Under `skip.apply` that is the first call of a stream, with the policy in training
    mode and gradients on; it gives what decoding would from the first token on. Decoding steps remember anchors
    detached.

    Training loss: the model's own.

    Cost: of a decision, nothing; of a dropped layer, two products of rank r per row.

    Source: LoRA-Drop (arXiv 2601.02569; rank = alpha = 16). Not repeated from its release: a hard-coded set of layers,
    a refresh and a cache write at periods of their own beside the configured one, a counter that runs on between
    prompts. In its training, tokens attend to keys of positions that inference does not have: `skip.apply` takes them
    out under HOLE; by hand, mask them by `refreshed(S)`.

    Args:
        layers: those that are dropped.
        hidden_size: of the model.
        cycle: one step in so many is a refresh; at least 2.
        rank: of the correction, at least 1; default 16.
        alpha: its scale times rank; default `rank`.

    Raises:
        ValueError: an argument out of range; in `check`, another model; in `decide`, a state whose prompt this policy
            has not seen.
    """

    scope = "layer"
    needs_output = True
    key_value_rule = KeyValueRule.HOLE
    trains_by_output = True

    def __init__(
        self, layers: Iterable[int], hidden_size: int, cycle: int, *, rank: int = 16, alpha: float | None = None
    ) -> None:
        super().__init__()
        op = "TemporalDrop"
        check_at_least(op, 1, hidden_size=hidden_size, rank=rank)
        check_at_least(op, 2, cycle=cycle)
        self.layers = layer_tuple(op, layers)
        self.hidden_size = hidden_size
        self.cycle = cycle
        self.scale = 1.0 if alpha is None else alpha / rank
        self.lora_a = nn.Parameter(torch.randn(len(self.layers), rank, hidden_size) * hidden_size**-0.5)
        self.lora_b = nn.Parameter(torch.zeros(len(self.layers), hidden_size, rank))
        self._index = {layer: index for index, layer in enumerate(self.layers)}

    def check(self, num_layers: int, hidden_size: int, intermediate_size: int) -> None:
        check_layers("TemporalDrop", self.layers, num_layers)
        check_size("TemporalDrop", "hidden_size", self.hidden_size, hidden_size)

    def skippable_layers(self, num_layers: int) -> set[int]:
        check_layers("TemporalDrop", self.layers, num_layers)
        return set(self.layers)

    def refreshed(self, length: int) -> Tensor:
        """bool `[length]`, true at the positions that run all layers in training."""
        return torch.arange(length, device=self.lora_a.device) % self.cycle == 0

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        if layer not in self._index or self._refreshes(step, x):
            return None
        anchor = state.memory.get(("anchor", layer))
        if anchor is None:
            raise ValueError(
                f"TemporalDrop: state has no anchor for layer {layer}, must be one whose prompt (step 0) this policy "
                "saw; start a new state"
            )
        index = self._index[layer]
        lora_a, lora_b = self.lora_a[index].to(x.dtype), self.lora_b[index].to(x.dtype)
        return Layer(Action.SKIP, otherwise=Anchor(anchor.expand_as(x), lora_a, lora_b, self.scale))

    def observe(self, layer: int, step: int, x: Tensor, y: Tensor, cosine: Tensor | None, state: State) -> None:
        if layer not in self._index or not self._refreshes(step, x) or y.shape[1] == 0:
            return
        if state.padding is None:
            anchor = y[:, -1:]
        else:
            column = (state.padding * torch.arange(y.shape[1], device=y.device)).amax(1)
            anchor = y.gather(1, column[:, None, None].expand(-1, 1, y.shape[2]))
        # A copy, so that the whole prompt's output does not live on behind a view of its last token.
        state.memory["anchor", layer] = anchor.detach().clone()

    def _refreshes(self, step: int, x: Tensor) -> bool:
        return step % self.cycle == 0 or x.shape[1] != 1

    def trained_output(
        self, layer: int, x: Tensor, run: Callable[[Tensor | None], Tensor], state: State
    ) -> Tensor | None:
        if layer not in self._index or state.step > 0:
            return None
        positions = token_numbers(x, state.padding)
        return self.training_output(layer, x, run(positions % self.cycle != 0), positions)

    def training_output(self, layer: int, x: Tensor, y: Tensor, positions: Tensor | None = None) -> Tensor:
        """What the layer gives in training: y at every `cycle`-th position, the corrected anchor at the others.

        In a forward hook of the layer it trains the model as it will run:
        `layer.register_forward_hook(lambda module, args, y: policy.training_output(index, args[0], y))`.

        Args:
            layer: one of `layers`.
            x, y: `[B, S, H]`, the layer's input and full output.
            positions: int64 `[S]` or `[B, S]`, each token's number in its sequence, rising by 1 from token to token;
                default 0 to S - 1. With padding at the left pass `padding.cumsum(1) - 1`: negative ones count as 0.

        Returns:
            `[B, S, H]`. A token whose anchor lies before the call, because the positions start off the cycle, gets y.

        Raises:
            ValueError: a layer that is not dropped.

        Cost:
            A gather and two products of rank r over all tokens, beside the full layer.
        """
        if layer not in self._index:
            raise ValueError(
                f"TemporalDrop.training_output: layer is {layer}, must be one of {list(self.layers)}; "
                "pass a dropped layer"
            )
        index = self._index[layer]
        columns = torch.arange(x.shape[1], device=x.device)
        phase = (columns if positions is None else positions.clamp(min=0)) % self.cycle
        source = (columns - phase).expand(x.shape[:2])
        anchors = y.gather(1, source.clamp(min=0)[..., None].expand_as(y))
        correction = F.linear(F.linear(x, self.lora_a[index].to(x.dtype)), self.lora_b[index].to(x.dtype))
        dropped = (phase > 0) & (source >= 0)
        return torch.where(dropped[..., None], anchors + self.scale * correction, y)

    def extra_repr(self) -> str:
        return f"layers={self.layers}, cycle={self.cycle}, rank={self.lora_a.shape[1]}, scale={self.scale}"
