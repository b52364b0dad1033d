"""`Stream`: what the runtime remembers of one stream of tokens beside the policy's own `State`."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.skip.policy import State


class Stream:
    """One key-value cache's tokens, or those of one call without a cache.

    A slot is the number of a cache layer: a decoder layer's own, or the one of its second pass.

    Attributes:
        owner: the number of the `apply` that made it.
        by_step: whether the policy decides by the step.
        state: handed to the policy.
        holes: slot -> bool `[B, n]`, true where one of the first n tokens has no keys and values in it.
        gone: layers that may not run again, True for all sequences or bool `[B]`.
        slots: layer -> slot of its second pass.
        last_ran: the highest layer of this call that ran for all sequences; None before there is one.
        cropped: tokens were taken back that the policy has seen.
        is_open: a forward under the policy is under way, which knows what is missing.
    """

    def __init__(self, owner: str, num_layers: int, by_step: bool) -> None:
        self.owner = owner
        self.by_step = by_step
        self.slots: dict[int, int] = {}
        self.is_open = False
        self.restart(num_layers)

    def restart(self, num_layers: int) -> None:
        """No token yet; the slots of second passes stay in the cache."""
        self.state = State(num_layers)
        self.holes: dict[int, Tensor] = {}
        self.gone: dict[int, bool | Tensor] = {}
        self.last_ran: int | None = None
        self.cropped = False
        self.batch = 0

    def reorder(self, index: Tensor) -> None:
        """Sequence b becomes what sequence `index[b]` was."""
        self.state.reorder(index)
        self.holes = {slot: holes.index_select(0, index.to(holes.device)) for slot, holes in self.holes.items()}
        self.gone = {
            layer: gone if isinstance(gone, bool) else gone.index_select(0, index.to(gone.device))
            for layer, gone in self.gone.items()
        }
        self.batch = len(index)

    def crop(self, tokens: int) -> None:
        """Takes the last tokens back. What a policy remembers of them cannot be: the next forward says so."""
        if tokens == 0 or self.state.position == 0:
            return
        self.cropped = self.by_step or bool(self.state.memory)
        self.state.position = max(0, self.state.position - tokens)
        self.holes = {slot: holes[:, : self.state.position] for slot, holes in self.holes.items()}

    def add_holes(self, slot: int, missing: Tensor, tokens: int) -> None:
        """The `tokens` tokens of this call have nothing in the slot for sequences where `missing` `[B]` holds."""
        before = self.holes.get(slot, missing.new_zeros((len(missing), 0)))
        known = missing.new_zeros((len(missing), self.state.position - before.shape[1]))
        self.holes[slot] = torch.cat((before, known, missing[:, None].expand(-1, tokens)), 1)

    def mask(self, slot: int, mask: Tensor | None, tokens: int, num_keys: int) -> Tensor | None:
        """The attention mask with the slot's holes taken out.

        Args:
            slot: of a cache layer without a sliding window.
            mask: None (causal), bool or additive `[B or 1, 1, tokens, num_keys]`.
            tokens: of this call.
            num_keys: slots that the attention will see.
        """
        holes = self.holes.get(slot)
        if holes is None:
            return mask
        wide = holes.new_zeros((holes.shape[0], num_keys))
        wide[:, : holes.shape[1]] = holes
        missing = wide[:, None, None, :]
        if mask is None:  # one token, or a first call: transformers leaves no other mask out
            ones = holes.new_ones((tokens, num_keys))
            mask = ones.tril(num_keys - tokens)[None, None]
        if mask.dtype == torch.bool:
            return mask & ~missing
        return mask.masked_fill(missing, torch.finfo(mask.dtype).min)

    def forget(self, layer: int, which: bool | Tensor) -> None:
        """The layer keeps no keys and values of these sequences from now on."""
        before = self.gone.get(layer, False)
        if which is True or before is True:
            self.gone[layer] = True
        else:
            self.gone[layer] = which if before is False else before | which

    def check_readable(self) -> None:
        """ValueError where somebody else than the policy is about to read keys and values that are not there."""
        if self.is_open:
            return
        own = [holes for slot, holes in self.holes.items() if slot < self.state.num_layers]
        if any(bool(torch.as_tensor(each).any()) for each in (*own, *self.gone.values())):
            raise ValueError(
                "forward: cache lacks keys and values of layers that a policy skipped under ALIAS or HOLE, must be "
                "read under that policy; start from an empty cache, or use KeyValueRule.COMPUTE"
            )

    def check_runs(self, layer: int, run: Tensor | None) -> None:
        """ValueError where a layer runs again that has lost keys and values; `run` `[B]`, None for all."""
        gone = self.gone.get(layer, False)
        if gone is False or (run is not None and run.device.type != "cpu"):
            return
        lost = gone if run is None else run & torch.as_tensor(gone)
        if lost is True or (isinstance(lost, Tensor) and lost.device.type == "cpu" and bool(lost.any())):
            raise ValueError(
                f"forward: layer {layer} is to run for a sequence that has skipped it, must stay skipped under the "
                "rules ALIAS and HOLE for a policy with revives=False; use KeyValueRule.COMPUTE"
            )
