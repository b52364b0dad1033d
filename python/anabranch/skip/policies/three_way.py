"""`ThreeWayRouter`: each token takes the big FFN, a small one, or none (Duo-LLM)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from anabranch.skip.losses import budget_loss
from anabranch.skip.otherwise import SmallFfn
from anabranch.skip.policies.common import (
    RecordingPolicy,
    check_at_least,
    check_layers,
    check_size,
    straight_through,
    wide,
)
from anabranch.skip.policies.width_router import check_widths
from anabranch.skip.policy import Decision, Keep, State, Width

Small = Literal["prefix", "separate"]


class ThreeWayRouter(RecordingPolicy):
    """A linear router per layer chooses for each token: 0 no FFN, 1 the small one, 2 the big one (ties: the cheaper).

    `small="prefix"`: the small FFN is the first features of the big one, `Width(choice, (0, small, big))`.
    `small="separate"`: it has weights of its own, as in the paper, and is the else-branch of the big one, `Keep(choice
    == 1, otherwise=SmallFfn)`. One call has one else-branch, so there is no third way: 0 is the small FFN, 1 the big.

    Three things can choose: the router; chance (`random_routing`), which trains all FFNs before a router exists; and a
    pattern (`forced`), which `search.oracle_search` varies.

    Gradient: straight through. In training the FFN that ran is multiplied by a gate of value 1 with the gradient of its
    probability: `dp = <dy, FFN(norm x)>`. Tokens that skip, and separate small FFNs, have no gate: the router learns of
    them through the softmax's normalisation and `budget_loss` only. Under chance or a pattern it has none. Weights of a
    separate small FFN learn as the else-branch.

    Training loss: the model's own plus `budget_loss`.

    Cost: of a decision, a product with `[H, ways]` per token. No host read.

    Source: Duo-LLM (arXiv 2410.10846; no code). How its routers get a gradient is not known: the gate is ours.

    Args:
        num_layers, hidden_size: of the model.
        small_size, big_size: intermediate features, `0 < small_size < big_size`.
        small: where the small FFN's weights are; separate ones start with a down-projection of 0.

    Raises:
        ValueError: an argument out of range; in `check`, another model, or a big size that is not its intermediate size
            (separate) or above it (prefix).
    """

    def __init__(
        self, num_layers: int, hidden_size: int, small_size: int, big_size: int, *, small: Small = "prefix"
    ) -> None:
        super().__init__()
        op = "ThreeWayRouter"
        check_at_least(op, 1, num_layers=num_layers, hidden_size=hidden_size)
        check_widths(op, (small_size, big_size))
        if small not in ("prefix", "separate"):
            raise ValueError(f"{op}: small is {small!r}, must be 'prefix' or 'separate'; prefix needs no other weights")
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.widths = (small_size, big_size)
        self.small = small
        self.num_ways = 3 if small == "prefix" else 2
        self.routers = nn.ModuleList(nn.Linear(hidden_size, self.num_ways) for _ in range(num_layers))
        if small == "separate":
            std = hidden_size**-0.5
            self.gate_up_proj = nn.Parameter(torch.randn(num_layers, 2 * small_size, hidden_size) * std)
            self.down_proj = nn.Parameter(torch.zeros(num_layers, hidden_size, small_size))
        self._forced: Tensor | None = None
        self._edges: Tensor | None = None

    def check(self, num_layers: int, hidden_size: int, intermediate_size: int) -> None:
        op = "ThreeWayRouter"
        check_size(op, "num_layers", self.num_layers, num_layers)
        check_size(op, "hidden_size", self.hidden_size, hidden_size)
        check_widths(op, self.widths, intermediate_size)
        if self.small == "separate":
            check_size(op, "big_size", self.widths[1], intermediate_size)

    def skippable_layers(self, num_layers: int) -> set[int]:
        check_layers("ThreeWayRouter", (self.num_layers - 1,), num_layers)
        return set(range(self.num_layers))

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        choice, gate = self._choose(layer, x)
        if gate is not None:
            gate = gate.to(x.dtype)
        if self.small == "prefix":
            return Width(choice, (0, *self.widths), gate=gate)
        branch = SmallFfn(self.gate_up_proj[layer].to(x.dtype), self.down_proj[layer].to(x.dtype))
        return Keep(choice == 1, gate=gate, otherwise=branch)

    def _choose(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The way of each token, int64 `[B, S]`, and its gate `[B, S]` in training."""
        shape = x.shape[:2]
        if self._forced is not None:
            ways = self._forced[layer]
            return ways.reshape(ways.shape + (1,) * (2 - ways.dim())).expand(shape), None
        if self._edges is not None:
            edges = self._edges.to(x.device, non_blocking=True)
            return (torch.rand(*shape, 1, device=x.device) >= edges).sum(-1), None
        router = self.routers[layer]
        logits = wide(router(x.to(next(router.parameters()).dtype)))
        choice = logits.argmax(-1)
        if not self.learning:
            return choice, None
        probs = logits.softmax(-1)
        self._record(layer, big=probs[..., -1])
        chosen = probs.gather(-1, choice[..., None])[..., 0]
        return choice, straight_through(torch.ones_like(chosen), chosen)

    @contextmanager
    def random_routing(self, probabilities: Sequence[float] | None = None) -> Iterator[None]:
        """While in it each token takes each way by chance, from torch's global generator; default: all alike.

        Raises:
            ValueError: not one probability per way, a negative one, or a sum that is not 1.
        """
        shares = [1 / self.num_ways] * self.num_ways if probabilities is None else list(probabilities)
        if len(shares) != self.num_ways or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"ThreeWayRouter: probabilities is {shares}, must be {self.num_ways} shares that sum to 1; "
                "give one per way"
            )
        self._edges = torch.tensor(shares[:-1]).cumsum(0)
        try:
            yield
        finally:
            self._edges = None

    @contextmanager
    def forced(self, pattern: Sequence[int] | Tensor) -> Iterator[None]:
        """While in it the pattern chooses: one way per layer, int64 `[L]`, `[L, B]` per sequence or `[L, B, S]`.

        Raises:
            ValueError: another dtype or number of layers, or a way that there is not. The pattern is read on the host.
        """
        ways = torch.as_tensor(pattern)
        if ways.dtype != torch.int64 or not 1 <= ways.dim() <= 3 or ways.shape[0] != self.num_layers:
            raise ValueError(
                f"ThreeWayRouter: pattern is {ways.dtype} of shape {tuple(ways.shape)}, must be int64 of "
                f"({self.num_layers},), (layers, batch) or (layers, batch, tokens); give one way per layer"
            )
        if ways.numel() and not 0 <= int(ways.min()) <= int(ways.max()) < self.num_ways:
            raise ValueError(
                f"ThreeWayRouter: pattern has ways from {int(ways.min())} to {int(ways.max())}, must have 0 to "
                f"{self.num_ways - 1} with small={self.small!r}; number the ways from the cheapest"
            )
        self._forced = ways
        try:
            yield
        finally:
            self._forced = None

    def budget_loss(self, target: float) -> Tensor:
        """`(mean probability of the big FFN - target)^2` over layers and tokens of the last training forward.

        Gradient: of the probabilities themselves, so tokens near the edge move most. Padding counts as tokens do.
        """
        return budget_loss(torch.stack(self._take("big")), target)

    def extra_repr(self) -> str:
        return f"widths={self.widths}, small={self.small!r}"
