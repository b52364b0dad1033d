"""`report`: what a policy has skipped on a model, what that saved, and when it cannot pay."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import nn

from anabranch.skip.runtime.counters import Count
from anabranch.skip.runtime.decoder import BoundForward

if TYPE_CHECKING:
    from anabranch.cli.machine import Limits

_COLUMNS = ("GFLOP", "MB read", "ms")  # of what ran, and of the same without a policy


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """The FFN of one layer since `apply`.

    Attributes:
        calls: forwards of the model.
        kept_tokens: tokens whose FFN ran, each pass of a repeated layer; total_tokens: all that came, padding too.
        executed_flops, dense_flops: of the FFN's products for these, and for every token once.
        executed_bytes, dense_bytes: weights that the calls had to read, and all of them in each call.
        executed_ms, dense_ms: the least time for both on this machine: the slower of arithmetic and reading.
    """

    calls: int
    kept_tokens: int
    total_tokens: int
    executed_flops: int
    dense_flops: int
    executed_bytes: int
    dense_bytes: int
    executed_ms: float
    dense_ms: float

    def __add__(self, other: LayerReport) -> LayerReport:
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return LayerReport(*(a + b for a, b in zip(ours, theirs, strict=True)))


@dataclasses.dataclass(frozen=True)
class Report:
    """All layers; `str` is a table.

    Attributes:
        layers: in order.
        peak, bandwidth: FLOPs and bytes per second of the machine.
        crossover_rows: tokens per call from which arithmetic takes longer than reading the weights.
        bound_calls: FFN calls of 2 tokens up to the crossover whose tokens were decided one by one.
        read_share: of all weights, what those calls read.
    """

    layers: tuple[LayerReport, ...]
    peak: float
    bandwidth: float
    crossover_rows: float
    bound_calls: int
    read_share: float

    @property
    def total(self) -> LayerReport:
        """The sum of the layers."""
        return sum(self.layers, LayerReport(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0))

    @property
    def advice(self) -> str:
        """When skipping cannot pay; empty where that was not so."""
        if not self.bound_calls:
            return ""
        return (
            f"{self.bound_calls} FFN calls had 2 to {self.crossover_rows:.0f} tokens, decided one by one, and read "
            f"{self.read_share:.0%} of the weights: there reading bounds the time, and one token that stays costs as "
            "much as all. Skipping tokens cannot pay in such calls; skip layers or choose widths for the whole batch, "
            "use smaller weights, or decode one sequence at a time."
        )

    def __str__(self) -> str:
        lines = [f"{'layer':>6} {'kept':>15} {'%':>6}" + "".join(f"{name:>10}{'of':>10}" for name in _COLUMNS)]
        rows = [(str(index), layer) for index, layer in enumerate(self.layers)]
        for name, row in [*rows, ("all", self.total)]:
            kept = f"{row.kept_tokens}/{row.total_tokens}"
            share = 100 * row.kept_tokens / max(1, row.total_tokens)
            pairs = (
                (row.executed_flops / 1e9, row.dense_flops / 1e9),
                (row.executed_bytes / 1e6, row.dense_bytes / 1e6),
                (row.executed_ms, row.dense_ms),
            )
            numbers = "".join(f"{number:10.3f}" for pair in pairs for number in pair)
            lines.append(f"{name:>6} {kept:>15} {share:6.1f}{numbers}")
        lines.append(
            f"ms are the FFNs' least times at {self.peak / 1e9:.0f} GFLOP/s and {self.bandwidth / 1e9:.1f} GB/s, as "
            f"measured; from {self.crossover_rows:.0f} tokens per call arithmetic bounds them, below reading does."
        )
        return "\n".join([*lines, self.advice] if self.advice else lines)


def report(model: nn.Module, limits: Limits | None = None) -> Report:
    """What the policy on this model has skipped since `apply`.

    Counted are FFNs (attention that a skipped layer saves is not). The times are predictions: for calls of one size the
    larger of FLOPs over the machine's peak and bytes over its bandwidth.

    Args:
        model: with a policy applied.
        limits: peak and bandwidth; None measures them (on a CPU a second, and 512 MB for that time).

    Returns:
        A `Report`; `print` shows it as a table, a row for each layer.

    Raises:
        ValueError: no policy is applied.

    Cost:
        Reads the counters: on a GPU this waits for the stream.
    """
    found = [module.__dict__.get("forward") for module in model.modules()]
    forwards = [each for each in found if isinstance(each, BoundForward)]
    if not forwards:
        raise ValueError(f"report: {type(model).__name__} has no policy, must have one; call skip.apply first")
    weight = forwards[0].layer.mlp.down_proj.weight
    if limits is None:
        from anabranch.cli.machine import measure_limits

        limits = measure_limits(weight.dtype, weight.device)
    crossover = weight.element_size() * limits.peak / (2 * limits.bandwidth)
    layers, bound_calls, read, all_bytes = [], 0, 0.0, 0.0
    for forward, counts in zip(forwards, forwards[0].shared.counters.layers, strict=True):
        size, nbytes = forward.shape.intermediate_size, forward.ffn.bytes()
        flops = 6 * int(forward.layer.mlp.down_proj.weight.shape[0]) * size
        total = LayerReport(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)
        for tokens, count in counts.items():
            row = _row(tokens, count, size, flops, nbytes, limits)
            total += row
            if count.by_token and 2 <= tokens < crossover:
                bound_calls += count.by_token
                read, all_bytes = read + row.executed_bytes, all_bytes + row.dense_bytes
        layers.append(total)
    share = read / all_bytes if all_bytes else 0.0
    return Report(tuple(layers), limits.peak, limits.bandwidth, crossover, bound_calls, share)


def _row(tokens: int, count: Count, size: int, flops: int, nbytes: int, limits: Limits) -> LayerReport:
    """Calls with the same number of tokens, of a layer with `flops` per token and `nbytes` of weights."""
    executed_flops, dense_flops = int(count.features) * flops // size, count.calls * tokens * flops
    executed_bytes, dense_bytes = int(count.read) * nbytes // size, count.calls * nbytes
    return LayerReport(
        count.calls,
        int(count.kept),
        count.calls * tokens,
        executed_flops,
        dense_flops,
        executed_bytes,
        dense_bytes,
        limits.milliseconds(executed_flops, executed_bytes),
        limits.milliseconds(dense_flops, dense_bytes),
    )
