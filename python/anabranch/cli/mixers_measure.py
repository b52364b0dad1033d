"""What the mixers demo measures: training in lockstep, held-out loss, and what the mixing matrices are."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anabranch.cli.mixers_model import CONTEXT, ByteModel, Streams, optimizer_of, train_step
from anabranch.cli.progress import progress_bar
from anabranch.mixers import Spectrum, spectrum

BATCH, LEARNING_RATE = 8, 2e-3
FEWEST_BATCHES, MOST_BATCHES, FORWARD_SHARE = 2, 32, 0.4  # of held-out text; of a step of training
LAST_SHARE = 0.1


@dataclasses.dataclass
class MixerResult:
    """What one variant has shown so far; a report can be written at any time.

    Attributes:
        seed: of its weights; others than the first are there to show the noise.
        parameters: their number.
        bits: per byte, of each step of training; seconds: that each step took.
        validation_bits: of held-out text; None before it is measured.
        row_errors, column_errors, orthogonality_errors: of H, the largest of any token, by depth.
        spectrum: `[depth][n]`, singular values of the product of all H up to that depth, medians of the tokens.
    """

    name: str
    seed: int
    parameters: int = 0
    bits: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    validation_bits: float | None = None
    row_errors: list[float] = dataclasses.field(default_factory=list)
    column_errors: list[float] = dataclasses.field(default_factory=list)
    orthogonality_errors: list[float] = dataclasses.field(default_factory=list)
    spectrum: list[list[float]] = dataclasses.field(default_factory=list)

    @property
    def train_bits(self) -> float:
        """Mean of the last tenth of the steps."""
        return statistics.fmean(self.bits[-max(1, round(LAST_SHARE * len(self.bits))) :])

    @property
    def milliseconds(self) -> float:
        """Median time of a step, the first one left out where there are others."""
        return 1e3 * statistics.median(self.seconds[1:] or self.seconds)

    def times_plain(self, plain: MixerResult) -> float:
        """Median over the steps of our time over that of the plain model's: drift meets both alike."""
        ratios = [ours / theirs for ours, theirs in zip(self.seconds, plain.seconds, strict=False)]
        return statistics.median(ratios[1:] or ratios)


def train_together(
    models: Sequence[ByteModel], results: Sequence[MixerResult], text: Tensor, seconds: float, seed: int
) -> None:
    """Trains all models on the same batches, step by step in turn, for so long in all; one step at least."""
    optimizers = [optimizer_of(model, LEARNING_RATE) for model in models]
    random = torch.Generator().manual_seed(seed)
    start, progress = time.monotonic(), progress_bar("train", seconds)
    while (elapsed := time.monotonic() - start) < seconds or not results[-1].bits:
        share = min(elapsed / max(seconds, 1e-9), 1.0)
        rate = LEARNING_RATE * min(1.0, share / 0.05 + 0.05) * (0.55 + 0.45 * math.cos(math.pi * share))
        starts = torch.randint(0, len(text) - CONTEXT - 1, (BATCH, 1), generator=random)
        rows = text[starts + torch.arange(CONTEXT + 1)]
        for model, optimizer, result in zip(models, optimizers, results, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            begin = time.perf_counter()
            nats = train_step(model, optimizer, rows)
            result.seconds.append(time.perf_counter() - begin)
            result.bits.append(nats.item() / math.log(2))
        progress.update(min(time.monotonic() - start, seconds) - progress.n)
        progress.set_postfix_str(f"{results[0].bits[-1]:.3f} bits/byte, {len(results[0].bits)} steps of each")
    progress.close()


def batches_within(seconds: float, results: Sequence[MixerResult]) -> int:
    """How many held-out batches of all models fit into so long, from the times of their steps."""
    fitting = seconds / (FORWARD_SHARE * sum(result.milliseconds for result in results) / 1e3)
    return max(FEWEST_BATCHES, min(MOST_BATCHES, int(fitting)))


@torch.no_grad()
def measure(model: ByteModel, result: MixerResult, text: Tensor, batches: int) -> None:
    """Held-out loss on stretches of text at even distances, and the mixing matrices on the first of them."""
    starts = torch.linspace(0, len(text) - CONTEXT - 2, batches * BATCH).long()[:, None]
    rows = text[starts + torch.arange(CONTEXT + 1)]
    nats = [F.cross_entropy(model(one[:, :-1]).flatten(0, 1), one[:, 1:].flatten()) for one in rows.split(BATCH)]
    if isinstance(model.body, Streams):
        keep_spectrum(spectrum(model, rows[:BATCH, :-1]), result)
    result.validation_bits = statistics.fmean(one.item() for one in nats) / math.log(2)


def keep_spectrum(found: Spectrum, result: MixerResult) -> None:
    """What the report shows of it."""
    result.row_errors = found.row_error.amax(1).tolist()
    result.column_errors = found.column_error.amax(1).tolist()
    result.orthogonality_errors = found.orthogonality_error.amax(1).tolist()
    result.spectrum = found.singular_values.median(1).values.tolist()
