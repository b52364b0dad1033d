"""The main job: three byte-level language models of equal active compute, trained side by side on real text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from anabranch.cli.model import CONTEXT, EXPERTS, LAYERS, ROUTERS, ByteModel, experts_per_byte, losses
from anabranch.cli.progress import progress_bar, table
from anabranch.cli.report import Result, write_report
from anabranch.cli.text import BYTE_CLASSES, classify, load_text
from anabranch.core.cost import CostMeter

BATCH, LEARNING_RATE, EVALUATION_SHARE = 16, 2e-3, 0.12
VALIDATION_BATCHES, SAMPLE_BYTES = 12, 1500


def run(minutes: float, text: Path | None, out: Path, seed: int) -> int:
    """Trains all variants within `minutes`, prints the table, writes the report. Returns 130 after Ctrl-C, else 0."""
    train, validation = load_text(text)
    print(f"{len(train) + len(validation):,} bytes of {text or 'the Python standard library'}", flush=True)
    results: list[Result] = []
    status = 0
    try:
        for name in ROUTERS:
            results.append(Result(name))
            train_variant(results[-1], train, validation, 60 * minutes / len(ROUTERS), seed)
    except KeyboardInterrupt:
        print("\ninterrupted: the report holds what there is", flush=True)
        status = 130
    rows = table_rows(results)
    print(table(rows), flush=True)
    write_report(out, results, rows)
    print(f"wrote {out}", flush=True)
    return status


def train_variant(result: Result, train: Tensor, validation: Tensor, seconds: float, seed: int) -> None:
    """Trains one model for its share of the time and evaluates it into `result`."""
    torch.manual_seed(seed)
    model = ByteModel(result.name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    batches = torch.Generator().manual_seed(seed)
    start = time.monotonic()
    budget = seconds * (1 - EVALUATION_SHARE)
    progress = progress_bar(result.name, budget)
    while (elapsed := time.monotonic() - start) < budget or not result.seconds:
        share = min(elapsed / budget, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, share / 0.05 + 0.05) * (0.55 + 0.45 * math.cos(math.pi * share))
        inputs, targets = _batch(train, batches)
        logits, routings = model(inputs)
        bits, loss = losses(result.name, logits, targets, routings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        result.seconds.append(time.monotonic() - start)
        result.train_bits.append(bits.item())
        result.tokens_per_second = len(result.seconds) * BATCH * CONTEXT / result.seconds[-1]
        progress.update(min(result.seconds[-1], budget) - progress.n)
        progress.set_postfix_str(f"{bits.item():.3f} bits/byte, {result.tokens_per_second:,.0f} tokens/s")
    progress.close()
    evaluate(model.eval(), result, validation)


@torch.no_grad()
def evaluate(model: ByteModel, result: Result, validation: Tensor) -> None:
    """Validation loss, cost, and who took how many experts, on fixed stretches of held-out text."""
    bits, counts, classes = [], [], []
    loads = torch.zeros(LAYERS, EXPERTS)
    with CostMeter(model) as meter:
        for inputs, targets in _validation_batches(validation):
            logits, routings = model(inputs)
            bits.append(losses(result.name, logits, targets, routings)[0].item())
            counts.append(experts_per_byte(routings, inputs.shape).flatten())
            classes.append(torch.cat([classify(row) for row in inputs]))
            for layer, routing in enumerate(routings):
                loads[layer] += routing.plan.group_sizes()
    taken, kinds = torch.cat(counts), torch.cat(classes)
    cost = meter.total()
    result.executed_flops, result.dense_flops = cost.executed_flops, cost.dense_flops
    result.experts_mean, result.experts_std = taken.mean().item(), taken.std().item()
    for index, name in enumerate(BYTE_CLASSES):
        if (kinds == index).any():
            result.per_class[name] = taken[kinds == index].mean().item()
    if cost.executed_rows:
        result.load = (loads / loads.sum(1, keepdim=True)).tolist()
        text = validation[: SAMPLE_BYTES // CONTEXT * CONTEXT].view(-1, CONTEXT)
        shown = experts_per_byte(model(text)[1], text.shape)
        result.sample = list(zip(text.flatten().tolist(), shown.flatten().tolist(), strict=True))
    result.validation_bits = sum(bits) / len(bits)


def table_rows(results: list[Result]) -> list[tuple[str, ...]]:
    """The final table, header first."""
    rows: list[tuple[str, ...]] = [
        ("variant", "validation bits/byte", "experts/byte", "FFN FLOPs executed / all experts", "tokens/s")
    ]
    for result in results:
        routed = result.dense_flops > 0
        rows.append(
            (
                result.name,
                "-" if result.validation_bits is None else f"{result.validation_bits:.3f}",
                f"{result.experts_mean:.2f} ± {result.experts_std:.2f}" if routed else "dense",
                f"{result.executed_flops / result.dense_flops:.1%}" if routed else "100 %",
                f"{result.tokens_per_second:,.0f}",
            )
        )
    return rows


def _batch(train: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    starts = torch.randint(0, len(train) - CONTEXT - 1, (BATCH, 1), generator=generator)
    rows = train[starts + torch.arange(CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:]


def _validation_batches(validation: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    starts = torch.linspace(0, len(validation) - CONTEXT - 2, VALIDATION_BATCHES * BATCH).long()[:, None]
    for chunk in starts.split(BATCH):
        rows = validation[chunk + torch.arange(CONTEXT + 1)]
        yield rows[:, :-1], rows[:, 1:]
