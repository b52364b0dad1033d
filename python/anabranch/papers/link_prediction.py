"""Training and evaluating models that predict the next links of an edge stream."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from anabranch.temporal import EdgeList, NegativeSampler, average_precision, roc_auc

EVALUATION_BATCH = 32  # as the releases of NAT and CAWN have it: rows of a batch do not see each other's events


class LinkModel(Protocol):
    """What is trained here: scores a batch against its negatives, then takes its events in."""

    def __call__(self, src: Tensor, dst: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Any]: ...
    def insert(self, events: EdgeList, rows: Any) -> Tensor: ...
    def reset_state(self) -> None: ...
    def train(self, mode: bool = True) -> Any: ...


class Scores(NamedTuple):
    """Average precision and area under the ROC curve over some events together; NaN where there is none."""

    events: int
    ap: float
    auc: float


@dataclasses.dataclass(frozen=True)
class LinkMetrics:
    """Of one pass over a part of a stream, one negative for each event.

    Attributes:
        all: of all events.
        transductive: of those whose ends both are in events of training.
        inductive: of the others: an end or both are new, or were hidden from training (`hide_nodes`).
        batch_ap, batch_auc: means over batches of `EVALUATION_BATCH` events, as the releases of NAT and CAWN report.
        seconds: of the pass.
    """

    all: Scores
    transductive: Scores
    inductive: Scores
    batch_ap: float
    batch_auc: float
    seconds: float


def train_epoch(
    model: LinkModel,
    optimizer: torch.optim.Optimizer,
    edges: EdgeList,
    sampler: NegativeSampler,
    *,
    batch_size: int = 100,
    epoch: int = 0,
    on_batch: Callable[[int, Tensor, Tensor], None] | None = None,
) -> float:
    """One pass over the stream in order, a step a batch; returns its seconds.

    Args:
        model: is trained from the state it is in; call `reset_state` for a new epoch.
        sampler: one negative destination for each event.
        epoch: another one, other negatives.
        on_batch: hears of every batch: events so far, its loss, and what `insert` returned.
    """
    start = time.perf_counter()
    model.train()
    done = 0
    all_negatives = sampler.sample(edges.event_id, epoch=epoch)  # they do not depend on the batches
    for batch in edges.batches(batch_size):
        negatives = all_negatives[done : done + len(batch)]
        positive, negative, rows = model(batch.src, batch.dst, negatives)
        loss = binary_cross_entropy_with_logits(positive, torch.ones_like(positive))
        loss = loss + binary_cross_entropy_with_logits(negative, torch.zeros_like(negative))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        stats = model.insert(batch, rows)
        done += len(batch)
        if on_batch is not None:
            on_batch(done, loss.detach(), stats)
    return time.perf_counter() - start


@torch.no_grad()
def evaluate(
    model: LinkModel, edges: EdgeList, sampler: NegativeSampler, unseen: Tensor, *, epoch: int = 0
) -> LinkMetrics:
    """One pass over the stream in order without training; the model takes the events in.

    Args:
        model: in the state that the events before these have left.
        sampler: one negative destination for each event.
        unseen: bool `[num_nodes]`, nodes that training never saw (`unseen_nodes`).
        epoch: another one, other negatives.
    """
    start = time.perf_counter()
    model.train(False)
    positives, negatives, done = [], [], 0
    all_negatives = sampler.sample(edges.event_id, epoch=epoch)
    for batch in edges.batches(EVALUATION_BATCH):
        positive, negative, rows = model(batch.src, batch.dst, all_negatives[done : done + len(batch)])
        done += len(batch)
        model.insert(batch, rows)
        positives.append(positive)
        negatives.append(negative[:, 0])
    seconds = time.perf_counter() - start
    batches = [_ap_and_auc(*pair) for pair in zip(positives, negatives, strict=True)]
    positive, negative = (torch.cat([edges.src.new_empty(0).float(), *one]) for one in (positives, negatives))
    inductive = unseen[edges.src] | unseen[edges.dst]
    count = max(len(batches), 1)

    def scores(some: Tensor) -> Scores:
        return Scores(int(some.sum()), *_ap_and_auc(positive[some], negative[some]))

    return LinkMetrics(
        scores(torch.ones_like(inductive)),
        scores(~inductive),
        scores(inductive),
        sum(ap for ap, _ in batches) / count,
        sum(auc for _, auc in batches) / count,
        seconds,
    )


def _ap_and_auc(positive: Tensor, negative: Tensor) -> tuple[float, float]:
    scores = torch.cat([positive, negative])
    labels = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)])
    return float(average_precision(scores, labels)), float(roc_auc(scores, labels))
