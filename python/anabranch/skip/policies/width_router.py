"""`WidthRouter`: each sample decides per block whether its FFN runs, and how wide (E-DiT)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anabranch.skip.losses import budget_loss
from anabranch.skip.otherwise import CachedDelta
from anabranch.skip.policies.common import (
    RecordingPolicy,
    check_at_least,
    check_share,
    check_size,
    masked_mean,
    straight_through,
    wide,
)
from anabranch.skip.policy import Decision, State, Width


@dataclasses.dataclass(frozen=True)
class BlockDeltaCache:
    """When a block that would run reuses what it added the last time: at `.5 <= p <= .5 + margin`.

    Attributes:
        margin: above one half; the release has .015, the paper .1.
        first_step: no reuse before this step; 15 in the release.
        max_reuses: how often in a row; 10 in the release, 5 in the paper.
    """

    margin: float = 0.015
    first_step: int = 15
    max_reuses: int = 10


class WidthRouter(RecordingPolicy):
    """Per block and sample: the FFN runs if `p = sigmoid(gate) >= .5`, with the width of largest logit, as a prefix.

    The router is `h = relu(W norm(x))`, and the means over a sample's real tokens of one gate logit and of a logit per
    width (the narrower among equals). norm is a LayerNorm without parameters: the router sees the block's input before
    the model's own norm.

    With a `BlockDeltaCache` a sample whose p is barely above one half adds what its block added the last time
    instead. It lies in the `State`: hold one State per guidance branch, and feed one denoising step per call.

    Gradient: in training every sample runs, times a gate of value `1[p >= .5]` and the gradient of p, so skipped blocks
    have one too. Widths through `training_output` (`skip.apply` calls it), where the hidden features are multiplied by
    a mask with the value of the chosen prefix and the gradient of `softmax(logits)`-weighted prefixes; as decisions of
    `decide` they only feel `budget_loss`.

    Training loss: the model's own plus `budget_loss`.

    Cost: two small products over all tokens per block, and two writes of the block's size where deltas are cached. No
    host read.

    Source: E-DiT (arXiv 2602.13993), where the gate covers the attention too; here it covers the FFN. Not repeated from
    its release: the batch's mean decides for every sample, by a host read.

    Args:
        num_layers, hidden_size: of the model.
        widths: ascending numbers of intermediate features from 1; in the paper 1/4, 1/2, 3/4 and all of them.
        hidden: of the router.
        cache: None caches nothing.

    Raises:
        ValueError: an argument out of range; in `check`, another model or a width above its intermediate size.
    """

    trains_by_output = True
    _ends: Tensor

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        widths: Sequence[int],
        *,
        hidden: int = 128,
        cache: BlockDeltaCache | None = None,
    ) -> None:
        super().__init__()
        op = "WidthRouter"
        check_at_least(op, 1, num_layers=num_layers, hidden_size=hidden_size, hidden=hidden)
        check_widths(op, widths)
        if cache is not None:
            check_share(op, margin=cache.margin)
            check_at_least(op, 0, first_step=cache.first_step, max_reuses=cache.max_reuses)
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.widths = tuple(widths)
        self.cache = cache
        self.needs_output = cache is not None
        self.register_buffer("_ends", torch.tensor(self.widths), persistent=False)
        self.routers = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden_size, hidden), nn.ReLU(), nn.Linear(hidden, 1 + len(widths)))
            for _ in range(num_layers)
        )

    def check(self, num_layers: int, hidden_size: int, intermediate_size: int) -> None:
        check_size("WidthRouter", "num_layers", self.num_layers, num_layers)
        check_size("WidthRouter", "hidden_size", self.hidden_size, hidden_size)
        check_widths("WidthRouter", self.widths, intermediate_size)

    def logits(self, layer: int, x: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The gate's logit `[B]` and the widths' `[B, widths]` for x `[B, S, H]`; 0 for a sample without tokens."""
        router = self.routers[layer]
        weight = next(router.parameters())
        scores = wide(router(F.layer_norm(x.to(weight.dtype), x.shape[-1:])))
        means = masked_mean(scores, padding)
        return means[:, 0], means[:, 1:]

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        logit, width_logits = self.logits(layer, x, state.padding)
        width = 1 + width_logits.argmax(-1)
        widths = (0, *self.widths)
        if self.learning:
            gate, _ = self._training_values(layer, logit, width_logits)
            return Width(width, widths, gate=gate[:, None].expand(x.shape[:2]).to(x.dtype))
        p = logit.sigmoid()
        runs = p >= 0.5
        otherwise = None
        if self.cache is not None:
            delta, reused = self._reuse(layer, step, p, x, state)
            runs = runs & ~reused
            state.memory["ran", layer] = runs
            state.memory["reused", layer] = reused
            otherwise = CachedDelta(delta)
        return Width(width.masked_fill(~runs, 0), widths, otherwise=otherwise)

    def observe(self, layer: int, step: int, x: Tensor, y: Tensor, cosine: Tensor | None, state: State) -> None:
        if self.cache is None or ("ran", layer) not in state.memory:
            return
        memory = state.memory
        ran, reused = memory["ran", layer], memory["reused", layer]
        delta = (y - x).detach()
        old, known, uses = self._cached(layer, delta, state)
        memory["delta", layer] = torch.where(ran[:, None, None], delta, old)
        memory["known", layer] = known | ran
        memory["uses", layer] = (uses + reused.long()).masked_fill(ran, 0)

    def _cached(self, layer: int, like: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """The cached delta, whether there is one, and how often it was reused; nothing if the shape has changed."""
        delta = state.memory.get(("delta", layer))
        if delta is not None and delta.shape == like.shape:
            return delta, state.memory["known", layer], state.memory["uses", layer]
        uses = torch.zeros(like.shape[0], dtype=torch.int64, device=like.device)
        return torch.zeros_like(like), uses > 0, uses

    def _reuse(self, layer: int, step: int, p: Tensor, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """What rows that do not run add, `[B, S, H]`, and which samples reuse, `[B]`."""
        assert self.cache is not None
        delta, known, uses = self._cached(layer, x.detach(), state)
        near = (p >= 0.5) & (p <= 0.5 + self.cache.margin)
        reused = near & known & (uses < self.cache.max_reuses)
        if step < self.cache.first_step:
            reused = torch.zeros_like(reused)
        return delta.masked_fill(~reused[:, None, None], 0), reused

    def _training_values(self, layer: int, logit: Tensor, width_logits: Tensor) -> tuple[Tensor, Tensor]:
        """The straight-through gate `[B]` and choice of width `[B, widths]`, recorded for the budget."""
        p = logit.sigmoid()
        gate = straight_through((p >= 0.5).to(p.dtype), p)
        soft = width_logits.softmax(-1)
        choice = straight_through(F.one_hot(soft.argmax(-1), len(self.widths)).to(soft.dtype), soft)
        self._record(layer, gate=gate, width=choice @ self._ends.to(choice.dtype) / self.widths[-1])
        return gate, choice

    def trained_output(
        self, layer: int, x: Tensor, run: Callable[[Tensor | None], Tensor], state: State
    ) -> Tensor | None:
        return self.training_output(layer, x, run, state.padding)

    def training_output(
        self, layer: int, x: Tensor, ffn: Callable[[Tensor], Tensor], padding: Tensor | None = None
    ) -> Tensor:
        """`x + gate ffn(mask)`: the dense form in which gate and width both take the model's gradient.

        Args:
            layer: its index.
            x: `[B, S, H]`, the FFN's input before its norm.
            ffn: given the mask `[B, 1, widths[-1]]` in x's dtype, returns the branch `[B, S, H]` with its hidden
                features (the first `widths[-1]`) multiplied by it, between activation and down-projection.
            padding: as `State.padding`.

        Cost:
            The widest FFN on all rows: training saves nothing.
        """
        gate, choice = self._training_values(layer, *self.logits(layer, x, padding))
        # Column i is in all prefixes longer than i: the sum of the choices from the first such width on.
        counts = self._ends.diff(prepend=self._ends.new_zeros(1))
        kept = choice.flip(1).cumsum(1).flip(1)
        mask = kept.repeat_interleave(counts, dim=1, output_size=self.widths[-1])
        return x + gate[:, None, None].to(x.dtype) * ffn(mask[:, None].to(x.dtype))

    def budget_loss(self, gate_target: float, width_target: float) -> Tensor:
        """`(mean gate - gate_target)^2 + (mean width - width_target)^2` of the last training forward, straight through.

        Widths are shares of the largest, and count whether or not the gate is open.
        """
        gates, widths = torch.stack(self._take("gate")), torch.stack(self._take("width"))
        return budget_loss(gates, gate_target) + budget_loss(widths, width_target)

    def extra_repr(self) -> str:
        return f"widths={self.widths}, cache={self.cache}"


def check_widths(op: str, widths: Sequence[int], intermediate_size: int | None = None) -> None:
    """Raises ValueError for widths that do not rise from 1, or that go beyond the model's intermediate size."""
    if not widths or widths[0] < 1 or any(a >= b for a, b in itertools.pairwise(widths)):
        raise ValueError(f"{op}: widths is {tuple(widths)}, must rise from at least 1; 0, a skip, is there by itself")
    if intermediate_size is not None and widths[-1] > intermediate_size:
        raise ValueError(
            f"{op}: widths is {tuple(widths)}, must be at most the model's intermediate size {intermediate_size}; "
            "take prefixes of it"
        )
