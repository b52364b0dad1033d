"""`CosineSkip`: tokens whose FFN hardly turns them skip the FFNs that follow (FFN-SkipLLM)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from anabranch.skip.policies.common import check_at_least, check_share, token_numbers
from anabranch.skip.policy import Decision, Keep, Policy, State

Until = Literal["end_region"] | int

_FOREVER = 1 << 30


class CosineSkip(Policy):
    """Skips a token's FFNs once one of them left it nearly where it was: `cos(x, x + FFN(norm x)) > threshold`.

    The first `cold_start` and last `cold_end` layers always run, and so do the first `warmup_tokens` real tokens of a
    sequence. In the layers between, a token whose cosine passes the threshold skips the FFNs that follow: all up to the
    last cold region, or the next m, after which one runs and is tested again. Attention always runs, so keys and values
    are exact. Each token decides for itself: decoding with a cache gives what one call for the whole sequence gives.

    Source: FFN-SkipLLM (arXiv 2404.03865; no code). Whether a token is ever tested again, and the thresholds, are not
    known: both rules are offered, and `calibrate` picks a threshold. Some models never come near 1.

    Gradient: none. The decision is hard and nothing is learned; a model may be fine-tuned with it by its own loss.

    Cost: of a decision, a comparison of `[B, S]` numbers; the cosine comes from the FFN's own epilogue.

    Args:
        threshold: of the cosine. A buffer, so that it is saved and no host read is needed.
        cold_start, cold_end: layers at either end that always run.
        warmup_tokens: tokens at the start of a sequence that always run; with `skip_prompt=False` those after the
            prompt.
        until: "end_region", or for how many layers a token skips.
        skip_prompt: whether tokens of the prompt (`State.in_prompt`) may skip.

    Raises:
        ValueError: a negative count, `until` below 1; in `check`, fewer than two layers between the cold ones, where
            nothing could ever be skipped.
    """

    needs_cosine = True
    threshold: Tensor

    def __init__(
        self,
        threshold: float,
        *,
        cold_start: int = 1,
        cold_end: int = 1,
        warmup_tokens: int = 4,
        until: Until = "end_region",
        skip_prompt: bool = True,
    ) -> None:
        super().__init__()
        check_at_least("CosineSkip", 0, cold_start=cold_start, cold_end=cold_end, warmup_tokens=warmup_tokens)
        if until != "end_region" and (isinstance(until, str) or until < 1):
            raise ValueError(
                f"CosineSkip: until is {until!r}, must be 'end_region' or a number of layers from 1; "
                "'end_region' is the default"
            )
        self.register_buffer("threshold", torch.tensor(float(threshold)))
        self.cold_start = cold_start
        self.cold_end = cold_end
        self.warmup_tokens = warmup_tokens
        self.until = until
        self.skip_prompt = skip_prompt
        self._observed: dict[int, list[Tensor]] | None = None

    def check(self, num_layers: int, hidden_size: int, intermediate_size: int) -> None:
        if num_layers - self.cold_start - self.cold_end < 2:
            raise ValueError(
                f"CosineSkip: cold_start is {self.cold_start} and cold_end {self.cold_end}, must leave at least 2 of "
                f"{num_layers} layers between them; the first of those always runs"
            )

    def skippable_layers(self, num_layers: int) -> set[int]:
        return set(range(self.cold_start + 1, num_layers - self.cold_end))

    def decide(self, layer: int, step: int, x: Tensor, state: State) -> Decision:
        if not self.cold_start <= layer < state.num_layers - self.cold_end:
            return None
        if layer == self.cold_start:
            self._begin(step, x, state)
        remaining: Tensor = state.memory["remaining"]
        return Keep(remaining == 0)

    def observe(self, layer: int, step: int, x: Tensor, y: Tensor, cosine: Tensor | None, state: State) -> None:
        if cosine is None or not self.cold_start <= layer < state.num_layers - self.cold_end:
            return
        if self._observed is not None:
            real = cosine if state.padding is None else cosine[state.padding]
            self._observed.setdefault(layer, []).append(real.detach().float().flatten())
            return
        remaining: Tensor = state.memory["remaining"]
        passed = state.memory["may_skip"] & (cosine > self.threshold)
        state.memory["remaining"] = _next_remaining(remaining, passed, self.until)

    def _begin(self, step: int, x: Tensor, state: State) -> None:
        """Sets out the flags of this call's tokens. Called again for the same step, it does the same."""
        memory = state.memory
        memory["remaining"] = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        if memory.get("step") != step:
            memory["step"] = step
            memory["first"] = memory.get("next", torch.zeros(x.shape[0], dtype=torch.int64, device=x.device))
        number = memory["first"][:, None] + token_numbers(x, state.padding)
        if self.skip_prompt or not state.in_prompt(step, x.shape[1]):
            memory["may_skip"] = number >= self.warmup_tokens
            real = x.shape[1] if state.padding is None else state.padding.sum(1)
            memory["next"] = memory["first"] + real
        else:
            memory["may_skip"] = torch.zeros_like(number, dtype=torch.bool)
            memory["next"] = memory["first"]

    @contextmanager
    def observing(self) -> Iterator[dict[int, list[Tensor]]]:
        """While in it nothing skips, and the cosines of real tokens are collected: layer to a list of `[N]`.

        What it yields is what `calibrate` takes. Every layer sees the same tokens in the same order.
        """
        self._observed = {}
        try:
            yield self._observed
        finally:
            self._observed = None

    def calibrate(self, observed: dict[int, list[Tensor]], rate: float, num_layers: int) -> float:
        """Sets the threshold that skips a share of all FFNs, and returns the share it skips of those observed.

        The cosines are those of a model that skips nothing. What follows a skipped FFN differs a little, so the real
        share does too; and warm-up tokens are taken for tokens that may skip.

        Args:
            observed: from `observing`.
            rate: wished share of the FFN calls of all `num_layers` layers.
            num_layers: of the model.

        Raises:
            ValueError: nothing observed, layers that saw different tokens, or a rate that cannot be reached: the first
                layer between the cold ones always runs.

        Cost:
            On the host: up to 512 candidates, each a walk over all observed cosines.
        """
        op = "CosineSkip.calibrate"
        check_share(op, rate=rate)
        rows = [torch.cat(observed[layer]).cpu() for layer in sorted(observed) if observed[layer]]
        if len(rows) < 2 or len({row.numel() for row in rows}) != 1 or rows[0].numel() == 0:
            sizes = [row.numel() for row in rows]
            raise ValueError(
                f"{op}: observed has {sizes} cosines per layer, must have one number for 2 layers or more; "
                "run whole forwards within observing()"
            )
        cosines = torch.stack(rows)
        candidates = torch.cat((cosines.unique(), torch.tensor([-2.0], device="cpu")))  # -2: below every cosine
        if candidates.numel() > 512:
            candidates = candidates.sort().values[torch.linspace(0, candidates.numel() - 1, 512, device="cpu").long()]
        shares = torch.stack([_skipped_share(cosines, value, self.until, num_layers) for value in candidates])
        reach = float(shares.max())
        # Shares are float32, and a wish for exactly the most must not fail by a rounding.
        if rate > reach + 1e-6:
            raise ValueError(
                f"{op}: rate is {rate}, must be at most {reach:.4f} for these layers; "
                "lower it, or make cold_start and cold_end smaller"
            )
        best = int((shares - rate).abs().argmin())
        self.threshold.fill_(float(candidates[best]))
        return float(shares[best])

    def extra_repr(self) -> str:
        return (
            f"cold_start={self.cold_start}, cold_end={self.cold_end}, warmup_tokens={self.warmup_tokens}, "
            f"until={self.until!r}, skip_prompt={self.skip_prompt}"
        )


def _next_remaining(remaining: Tensor, passed: Tensor, until: Until) -> Tensor:
    """How many layers each token still skips, after a layer: tokens that skipped count down, the others were tested."""
    layers = _FOREVER if isinstance(until, str) else until
    return torch.where(remaining > 0, remaining - 1, passed * layers)


def _skipped_share(cosines: Tensor, threshold: Tensor, until: Until, num_layers: int) -> Tensor:
    """Share of `num_layers` FFNs per token that `cosines` `[layers, N]` would have skipped."""
    remaining = torch.zeros(cosines.shape[1], dtype=torch.int64, device=cosines.device)
    skipped = torch.zeros((), device=cosines.device)
    for row in cosines:
        skipped += (remaining > 0).sum()
        remaining = _next_remaining(remaining, row > threshold, until)
    return skipped / (num_layers * cosines.shape[1])
