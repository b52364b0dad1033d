"""What ran, counted as it runs: sums that stay on the device until `report` asks for them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from anabranch.skip.policy import Keep, Width


@dataclasses.dataclass
class Count:
    """Calls of one layer with the same number of tokens; sums are ints, or 0-d tensors of the device.

    Attributes:
        calls: how many.
        kept: tokens whose FFN ran, a second pass counted again.
        features: intermediate features of those, summed.
        read: features whose weights had to be read: the widest of each call, a second pass again.
        by_token: calls with several decisions, so that rows of one call may differ.
    """

    calls: int = 0
    kept: int | Tensor = 0
    features: int | Tensor = 0
    read: int | Tensor = 0
    by_token: int = 0


class Counters:
    """One `Count` per layer and number of tokens in a call."""

    def __init__(self, num_layers: int) -> None:
        self.layers: list[dict[int, Count]] = [{} for _ in range(num_layers)]
        self._tables: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def uniform(self, layer: int, tokens: int, passes: int, intermediate_size: int) -> None:
        """A call in which all tokens ran the layer's FFN `passes` times."""
        count = self._count(layer, tokens)
        count.kept = count.kept + passes * tokens
        count.features = count.features + passes * tokens * intermediate_size
        count.read = count.read + passes * intermediate_size

    def masked(
        self, layer: int, tokens: int, mask: Tensor, intermediate_size: int, decisions: int, *, again: bool = False
    ) -> None:
        """A call in which tokens ran where the mask holds, which has as many `decisions` by itself.

        `again`: the second pass of a call that is counted.
        """
        count = self.layers[layer][tokens] if again else self._count(layer, tokens)
        count.by_token += decisions > 1
        kept = mask.detach().sum()
        count.kept = count.kept + kept
        count.features = count.features + kept * intermediate_size
        count.read = count.read + (kept > 0) * intermediate_size

    def decided(self, layer: int, tokens: int, decision: Keep | Width, intermediate_size: int) -> None:
        """A call of the FFN with this decision."""
        if isinstance(decision, Keep):
            self.masked(layer, tokens, decision.mask, intermediate_size, tokens)
            return
        count = self._count(layer, tokens)
        index = decision.index.detach()
        count.by_token += index.numel() > 1
        widths = self._widths(decision.widths, index.device)[index]
        each = tokens // max(1, index.numel())  # tokens of one decision: 1, or those of a sequence
        count.kept = count.kept + (widths > 0).sum() * each
        count.features = count.features + widths.sum() * each
        if index.numel():
            count.read = count.read + widths.max()

    def _widths(self, widths: tuple[int, ...], device: torch.device) -> Tensor:
        """On the device, copied there once: a copy in every call could not be captured in a CUDA graph."""
        key = (widths, device)
        if key not in self._tables:
            self._tables[key] = torch.tensor(widths, device=device)
        return self._tables[key]

    def _count(self, layer: int, tokens: int) -> Count:
        count = self.layers[layer].setdefault(tokens, Count())
        count.calls += 1
        return count
