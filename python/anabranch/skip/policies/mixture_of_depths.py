"""`MixtureOfDepths`: in every second layer only the k tokens of highest score run their FFN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anabranch.skip.policies.common import RecordingPolicy, check_at_least, check_size, wide
from anabranch.skip.policy import Decision, Keep, State


class MixtureOfDepths(RecordingPolicy):
    """`y = x + r FFN(norm x)` for the k tokens of a sequence with the largest `r = w x`, and `y = x` for the others.

    In training exactly `k = max(1, floor(capacity S))` tokens of each sequence run (ties: the earlier one; padding
    comes last). **This choice is not causal**: whether a token runs depends on later ones. So in inference, the prompt
    included, a small predictor decides instead for each token by itself whether it would be among the k: then
    decoding with a cache equals one call for the whole sequence, and the number of tokens varies.

    Gradient: the router's from the gate r of tokens that ran, `dr = <dy, FFN(norm x)>`, and through r to x. Tokens that
    skipped give it none. The predictor's from `predictor_loss` alone, a binary cross-entropy against the top k; it
    reads x detached.

    Training loss: the model's own, plus `predictor_loss`.

    Cost: of a decision, a product with one vector and a sort of S numbers per sequence in training; in inference the
    predictor, `Linear(H, hidden) -> SiLU -> Linear(hidden, 1)`. No host read. `Keep.capacity` is B k in training, so
    that the op touches no more rows.

    Source: Mixture-of-Depths (arXiv 2404.02258: every second block, 12.5 %), which routes whole blocks; here attention
    runs for all tokens, so keys and values are exact. Not repeated from `astramind-ai/Mixture-of-depths`: r scales the
    residual too, the k-th token is lost to a strict comparison, sequences are looped over in Python.

    Args:
        num_layers, hidden_size: of the model.
        capacity: share of tokens that run, in (0, 1].
        every: layers `every - 1, 2 every - 1, ...` are routed; 1 routes all.
        hidden: of the predictor.

    Raises:
        ValueError: an argument out of range, or no layer to route; in `check`, another model.
    """

    def __init__(
        self, num_layers: int, hidden_size: int, *, capacity: float = 0.125, every: int = 2, hidden: int = 64
    ) -> None:
        super().__init__()
        op = "MixtureOfDepths"
        check_at_least(op, 1, num_layers=num_layers, hidden_size=hidden_size, every=every, hidden=hidden)
        if not 0 < capacity <= 1:
            raise ValueError(f"{op}: capacity is {capacity}, must be above 0 and at most 1; it is a share of tokens")
        if every > num_layers:
            raise ValueError(f"{op}: every is {every}, must be at most {num_layers} layers; lower it")
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.capacity = capacity
        self.every = every
        routed = range(every - 1, num_layers, every)
        self.routers = nn.ModuleDict({str(layer): nn.Linear(hidden_size, 1, bias=False) for layer in routed})
        self.predictors = nn.ModuleDict(
            {
                str(layer): nn.Sequential(nn.Linear(hidden_size, hidden), nn.SiLU(), nn.Linear(hidden, 1))
                for layer in routed
            }
        )

    def check(self, num_layers: int, hidden_size: int, intermediate_size: int) -> None:
        check_size("MixtureOfDepths", "num_layers", self.num_layers, num_layers)
        check_size("MixtureOfDepths", "hidden_size", self.hidden_size, hidden_size)

    def skippable_layers(self, num_layers: int) -> set[int]:
        return set(range(self.every - 1, num_layers, self.every))

    def rows(self, length: int) -> int:
        """How many tokens of a sequence of this length run in training."""
        return min(length, max(1, int(self.capacity * length)))

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        if str(layer) not in self.routers:
            return None
        scores = _apply(self.routers[str(layer)], x)
        if not self.learning:
            return Keep(_apply(self.predictors[str(layer)], x) > 0, gate=scores.to(x.dtype))
        k = self.rows(x.shape[1])
        mask = top_k_mask(scores.detach(), k, state.padding)
        predicted = _apply(self.predictors[str(layer)], x.detach())
        losses = F.binary_cross_entropy_with_logits(predicted, mask.to(predicted.dtype), reduction="none")
        real = torch.ones_like(mask) if state.padding is None else state.padding
        self._record(layer, predictor=losses.masked_fill(~real, 0).sum() / real.sum().clamp(min=1))
        return Keep(mask, gate=scores.to(x.dtype), capacity=x.shape[0] * k)

    def predictor_loss(self) -> Tensor:
        """Mean binary cross-entropy of the predictors over layers and real tokens of the last training forward."""
        return torch.stack(self._take("predictor")).mean()

    def extra_repr(self) -> str:
        return f"capacity={self.capacity}, every={self.every}"


def top_k_mask(scores: Tensor, k: int, padding: Tensor | None = None) -> Tensor:
    """bool `[B, S]`, true for exactly k entries of each row of scores `[B, S]`: the largest, the earlier among equals.

    Padding comes after every real token, and is taken only where there are fewer than k of those.
    """
    if padding is not None:
        scores = scores.masked_fill(~padding, -torch.inf)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :k], True)


def _apply(module: nn.Module, x: Tensor) -> Tensor:
    """The module's one output per token, `[B, S]` in float32 at least, computed in the dtype of its weights."""
    return wide(module(x.to(next(module.parameters()).dtype))[..., 0])
