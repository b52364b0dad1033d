"""What skipping costs in quality and gains in time, both while decoding with a key-value cache."""

from __future__ import annotations

import dataclasses
import inspect
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from anabranch import skip
from anabranch.cli.machine import Limits

PROMPT, SEQUENCES, MOST_SCORED, FEWEST_SCORED = 64, 16, 96, 8
MOST_ROUNDS, FEWEST_ROUNDS, MOST_NEW, FEWEST_NEW = 15, 3, 48, 4


@dataclasses.dataclass
class SkipResult:
    """What one policy at one budget has shown so far; a report can be written at any time.

    Attributes:
        bits: per byte of held-out text; None before it is measured.
        rates: tokens per second of each round of greedy decoding.
        ffn_share: FLOPs of FFNs that ran over those of all, while decoding.
        layer_shares: the same per layer, in tokens.
    """

    family: str
    budget: str
    bits: float | None = None
    rates: list[float] = dataclasses.field(default_factory=list)
    ffn_share: float = 1.0
    layer_shares: list[float] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.family} {self.budget}".strip()

    @property
    def tokens_per_second(self) -> float:
        return statistics.median(self.rates) if self.rates else 0.0

    def speedup(self, dense: SkipResult) -> float:
        """Median over the rounds that both have of our speed over the dense model's: drift meets both alike."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.rates, dense.rates, strict=False))


@torch.no_grad()
def measure_quality(model: nn.Module, text: Tensor, scored: int, result: SkipResult) -> float:
    """Scores held-out text byte by byte with a cache, as the model would decode it. Returns seconds per byte.

    The prompt of each sequence is given at once and not scored. Then the true bytes are fed one at a time, so each
    policy decides from what it would know while it generates.

    Args:
        text: held-out; `SEQUENCES` stretches of it at even distances.
        scored: bytes after each prompt.
    """
    starts = torch.linspace(0, len(text) - PROMPT - scored - 1, SEQUENCES).long()[:, None]
    rows = text[starts + torch.arange(PROMPT + scored + 1)]
    decoder: Any = model
    # transformers 5.24 renamed the argument.
    name = "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
    cache = {name: DynamicCache(config=decoder.config)}
    decoder(rows[:, :PROMPT], use_cache=True, **cache)
    skips = result.family != "dense"
    prompt = _counts(model) if skips else []
    begin, nats = time.perf_counter(), 0.0
    for position in range(PROMPT, PROMPT + scored):
        out = decoder(rows[:, position : position + 1], use_cache=True, **cache)
        nats += float(F.cross_entropy(out.logits[:, -1], rows[:, position + 1]))
    elapsed = time.perf_counter() - begin
    result.bits = nats / scored / math.log(2)
    if skips:
        shares = [(after - before) / (scored * SEQUENCES) for after, before in zip(_counts(model), prompt, strict=True)]
        result.layer_shares, result.ffn_share = shares, sum(shares) / len(shares)
    return elapsed / scored


def _counts(model: Any) -> list[int]:
    """Tokens that have run each layer's FFN since the policy was applied."""
    # Only counts are read, so the machine's limits do not matter.
    return [layer.kept_tokens for layer in skip.report(model, Limits(1.0, 1.0)).layers]


@torch.no_grad()
def measure_speed(
    models: Sequence[nn.Module], results: Sequence[SkipResult], text: Tensor, new_tokens: int, seconds: float
) -> None:
    """Greedy `generate` of one sequence by all models in turn, round by round, so that drift meets all alike.

    Runs for so long, `FEWEST_ROUNDS` at least after one to warm up.
    """
    deadline, rounds = time.monotonic() + seconds, 0
    while rounds <= FEWEST_ROUNDS or (time.monotonic() < deadline and rounds <= MOST_ROUNDS):
        for model, result in zip(models, results, strict=True):
            rate = _rate(model, text[None, :PROMPT], new_tokens)
            if rounds:
                result.rates.append(rate)
        rounds += 1


def _rate(model: Any, prompt: Tensor, new_tokens: int) -> float:
    """Bytes per second after the first, which the prompt gives."""
    stamps: list[float] = []

    class Clock:
        def put(self, value: Tensor) -> None:
            stamps.append(time.perf_counter())

        def end(self) -> None:
            pass

    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=new_tokens + 1,
        max_new_tokens=new_tokens + 1,
        streamer=Clock(),
    )
    return new_tokens / (stamps[-1] - stamps[1])  # put is called with the prompt, then with each byte
