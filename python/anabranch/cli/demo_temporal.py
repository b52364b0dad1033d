"""`python -m anabranch demo --job temporal`: NAT learns to predict the next links of an edge stream."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch
from torch import Tensor

from anabranch.cli.progress import progress_bar, table
from anabranch.cli.temporal_report import HOPS, write_report
from anabranch.cli.temporal_stream import generated_stream
from anabranch.papers.link_prediction import EVALUATION_BATCH, LinkMetrics, evaluate, train_epoch
from anabranch.papers.nat import NAT
from anabranch.temporal import EdgeList, NegativeSampler, TimeSplit, hide_nodes, load_edges, split_by_time, unseen_nodes

BATCH, LEARNING_RATE = 100, 3e-4
GENERATED_EVENTS, GENERATED_NODES = 30_000, 600
_POINTS = 40  # of the plots of the cache


@dataclasses.dataclass
class TemporalResult:
    """What a run has found so far; the report can be written at any time.

    Attributes:
        events, losses: of every batch of training, events of the stream so far and its loss.
        points: events at each look at the cache; occupancy: of each hop then; collisions: shares of the writes of each
            hop, since the look before, that found another key in their slot.
        train_seconds, trained: seconds and events of all training.
        epochs: epochs that were trained, the last one perhaps in part.
        parts: metrics by the name of the part.
        hidden: nodes whose events were left out of training.
    """

    events: list[int] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    points: list[int] = dataclasses.field(default_factory=list)
    occupancy: list[list[float]] = dataclasses.field(default_factory=list)
    collisions: list[list[float]] = dataclasses.field(default_factory=list)
    train_seconds: float = 0.0
    trained: int = 0
    epochs: int = 0
    parts: dict[str, LinkMetrics] = dataclasses.field(default_factory=dict)
    hidden: int = 0


def run(minutes: float, edges_file: Path | None, epochs: int, out: Path, seed: int, hidden_share: float = 0.0) -> int:
    """Trains `epochs` epochs, or what `minutes` leave time for, evaluates, prints the tables, writes the report.

    hidden_share of the nodes, drawn from those of later events, is left out of training (`hide_nodes`). Returns 130
    after Ctrl-C, else 0.
    """
    torch.manual_seed(seed)
    deadline = time.monotonic() + 60 * minutes
    if edges_file is None:
        events = min(GENERATED_EVENTS, max(2000, int(10_000 * minutes)))
        edges, name = generated_stream(events, max(60, events // 50), seed), "a generated stream"
    else:
        edges, name = load_edges(edges_file), edges_file.name
    split, hidden = hide_nodes(split_by_time(edges), hidden_share, seed=seed)
    if min(len(part) for part in split) == 0:
        raise ValueError(f"{name} has {len(edges)} events, must have enough to split by time; give a longer stream")
    print(f"{len(edges):,} events among {edges.num_nodes:,} nodes of {name}", flush=True)
    result, status = TemporalResult(hidden=len(hidden)), 0
    try:
        _train_and_evaluate(edges, split, result, epochs, deadline, seed)
    except KeyboardInterrupt:
        print("\ninterrupted: the report holds what there is", flush=True)
        status = 130
    tables, notes = [quality_rows(result), cache_rows(result)], conclusions(result, split)
    print(*(table(rows) for rows in tables), *notes, sep="\n", flush=True)
    write_report(out, result, name, tables, notes)
    print(f"wrote {out}", flush=True)
    return status


class _TimeIsUp(Exception):
    pass


def _train_and_evaluate(
    edges: EdgeList, split: TimeSplit, result: TemporalResult, epochs: int, deadline: float, seed: int
) -> None:
    model = NAT(edges.num_nodes, edges.features, time_origin=int(edges.time[0]), seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    unseen = unseen_nodes(split.train)
    sampler = NegativeSampler(split.train.dst, seed)
    # Evaluation takes about a tenth of an epoch, and is not to be cut.
    budget = deadline - 0.25 * (deadline - time.monotonic())
    progress = progress_bar("NAT", epochs * len(split.train))
    written = torch.zeros(3, 3, dtype=torch.int64)
    start = time.monotonic()

    def on_batch(done: int, loss: Tensor, stats: Tensor) -> None:
        nonlocal written
        written = written + stats
        trained = result.epochs * len(split.train) + done
        result.events.append(trained)
        result.losses.append(float(loss))
        result.trained, result.train_seconds = trained, time.monotonic() - start
        if done == len(split.train) or len(result.points) < _POINTS * trained / (epochs * len(split.train)):
            result.points.append(trained)
            result.occupancy.append(model.cache.occupancy().tolist())
            result.collisions.append((written[:, 1] / written[:, 0].clamp(min=1)).tolist())
            written = torch.zeros_like(written)
        progress.update(trained - progress.n)
        progress.set_postfix_str(f"loss {result.losses[-1]:.3f}, {trained / result.train_seconds:,.0f} events/s")
        if time.monotonic() > budget:
            raise _TimeIsUp

    try:
        for epoch in range(epochs):
            model.reset_state()
            train_epoch(model, optimizer, split.train, sampler, batch_size=BATCH, epoch=epoch, on_batch=on_batch)
            result.epochs += 1
    except _TimeIsUp:
        left = split.train[result.trained - result.epochs * len(split.train) :]
        evaluate(model, left, sampler, unseen)  # what training had no time for is seen, at least
    finally:
        progress.close()
    seen = len(edges) - len(split.validation) - len(split.test)
    for name, part in (("validation", split.validation), ("test", split.test)):
        seen += len(part)
        result.parts[name] = evaluate(model, part, NegativeSampler(edges[:seen].dst, seed + 1), unseen)


def quality_rows(result: TemporalResult) -> list[tuple[str, ...]]:
    """Metrics of each part, over all of its events, the transductive and the inductive ones; header first."""
    rows: list[tuple[str, ...]] = [("part", "which", "events", "AP", "AUC", "AP by batch", "AUC by batch", "events/s")]
    for name, m in result.parts.items():
        batches = (f"{m.batch_ap:.4f}", f"{m.batch_auc:.4f}", f"{m.all.events / max(m.seconds, 1e-9):,.0f}")
        for which, scores in (("all", m.all), ("transductive", m.transductive), ("inductive", m.inductive)):
            numbers = [f"{value:.4f}" if value == value else "-" for value in (scores.ap, scores.auc)]
            rest = batches if which == "all" else ("-",) * 3
            rows.append((name, which, f"{scores.events:,}", *numbers, *rest))
    return rows


def cache_rows(result: TemporalResult) -> list[tuple[str, ...]]:
    """Occupied slots at the end of training, and writes that found their slot taken by another key; header first."""
    rows: list[tuple[str, ...]] = [("cache", "occupied", "collisions")]
    if result.points:
        shares = [sum(column) / len(result.collisions) for column in zip(*result.collisions, strict=True)]
        rows += [(hop, f"{o:.1%}", f"{c:.1%}") for hop, o, c in zip(HOPS, result.occupancy[-1], shares, strict=True)]
    return rows


def conclusions(result: TemporalResult, split: TimeSplit) -> list[str]:
    """What the tables say, in sentences."""
    speed, threads = result.trained / max(result.train_seconds, 1e-9), torch.get_num_threads()
    epochs = result.trained / len(split.train)
    notes = [
        f"Trained on {result.trained:,} events ({epochs:.2f} epochs, batches of {BATCH}) in "
        f"{result.train_seconds:.1f} s: {speed:,.0f} events/s on {threads} thread{'s' * (threads > 1)}. One negative "
        "for each event, uniform over the destinations seen so far; the parts follow each other in time, 70, 15 and "
        "15 %."
    ]
    if result.parts:
        hidden = f", or are among the {result.hidden:,} that were hidden from it" if result.hidden else ""
        notes.append(
            "Transductive events are those between nodes that training saw; in inductive ones a node or both are new"
            f"{hidden}. Batches are of {EVALUATION_BATCH} events, over which NAT's release averages."
        )
    return notes
