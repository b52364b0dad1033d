"""PRES: large temporal batches for networks with memory, by predicting what a node's memory becomes.

Source: "PRES: Toward Scalable Memory-Based Dynamic Graph Neural Networks" (arXiv 2402.04284). In a batch a memory is
updated once, from its node's last event, however many it had; the larger the batch, the more is lost. PRES keeps count
and sum of each node's increments and stores `gamma (m + mean increment) + (1 - gamma) m_measured`, and adds
`beta (1 - cos(m_new, m))` to the loss.

This is the method as it is meant. In the release the count is never incremented, increments are scaled by the batch's
extremes, the cosine term is detached so that it teaches nothing, and the corrected memory is never stored.

Where gradients come from: the loss of a batch reaches attention, and through the messages that wait the GRU, the time
encoding and a learned gamma; the coherence term reaches the same. Memories and moments are stored detached.

    python -m anabranch.papers.pres --data FILE --epochs N --batches 200 800 3200

predicts links with and without the correction for batches of each size.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anabranch.cli.progress import table
from anabranch.papers.temporal_attention import TemporalAttention
from anabranch.temporal import (
    EdgeList,
    MemoryCorrection,
    MemoryTable,
    NegativeSampler,
    WholeState,
    average_precision,
    coherence_loss,
    load_edges,
    roc_auc,
    split_by_time,
)


class TGN(WholeState):
    """Scores of links from memories and attention over the last events (TGN, arXiv 2006.10637), with or without PRES.

    Args:
        edges: the whole stream.
        correction: PRES's, or None.
        memory_dim, out_dim, k: widths, and events that a node attends to.
    """

    def __init__(
        self,
        edges: EdgeList,
        correction: MemoryCorrection | None = None,
        *,
        memory_dim: int = 64,
        out_dim: int = 64,
        k: int = 10,
    ) -> None:
        super().__init__()
        width = 1 if edges.features is None else edges.features.shape[1]
        self.memory = MemoryTable(edges.num_nodes, memory_dim, width, time_dim=16, correction=correction)
        self.attention = TemporalAttention(edges, memory_dim, out_dim, k=k)
        self.read = nn.Sequential(nn.Linear(3 * out_dim, out_dim), nn.ReLU(), nn.Linear(out_dim, 1))

    def forward(self, edges: EdgeList, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[2 B]` of B events and of the same sources with destinations `wrong` int64 `[B]`, and the coherence.

        From what was observed before these events. The coherence loss is that of the memories with a message that
        were read; 0 in eval mode, where reading updates none.
        """
        coherence = torch.zeros((), device=wrong.device)

        def memories(nodes: Tensor) -> Tensor:
            nonlocal coherence
            if not self.training:
                return self.memory(nodes)[0]
            update = self.memory.update_rows(nodes)
            new, has = update.tables[0], update.has_message
            coherence = coherence_loss(new[has], self.memory.memory[nodes[has]])
            return new

        nodes = torch.cat([edges.src, edges.dst, wrong])
        src, dst, other = self.attention(memories, nodes, edges.time.repeat(3)).chunk(3)
        pairs = [torch.cat([src, end, src * end], dim=1) for end in (dst, other)]
        logits: Tensor = self.read(torch.cat(pairs)).squeeze(1)
        return logits, coherence

    def observe(self, edges: EdgeList) -> None:
        """Takes a batch of events."""
        raw = torch.zeros(len(edges), 1, device=edges.src.device) if edges.features is None else edges.features
        self.memory.update_state(edges.src, edges.dst, edges.time, raw, edges.event_id)
        self.attention.observe(edges)

    def reset_state(self) -> None:
        """Forgets all events."""
        self.memory.reset_state()
        self.attention.recent.reset()


class LinkMetrics(NamedTuple):
    """Of the test events and as many drawn ones."""

    precision: float
    auc: float


def run(
    edges: EdgeList,
    *,
    batch: int,
    corrected: bool,
    epochs: int = 2,
    gamma: float = 0.1,
    beta: float = 0.1,
    rate: float = 1e-3,
    seed: int = 0,
) -> LinkMetrics:
    """Trains in batches of that size on the first 70 % of the stream and tests on the last 15 %, in batches of 200.

    gamma, the share of the prediction, is learned from its start; see `MemoryCorrection` for why that is 0.1.
    """
    torch.manual_seed(seed)
    train, validation, test = split_by_time(edges)
    sampler = NegativeSampler(edges.dst, seed)
    correction = MemoryCorrection(gamma, learnable=True) if corrected else None
    model = TGN(edges, correction).to(edges.src.device)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for epoch in range(epochs):
        model.train()
        model.reset_state()
        total = 0.0
        for events in train.batches(batch):
            wrong = sampler.sample(events.event_id, epoch=epoch, exclude=events.dst)[:, 0]
            logits, coherence = model(events, wrong)
            loss = _loss(logits) + (beta * coherence if corrected else 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(events) / len(train)
            model.observe(events)
        name = "with PRES" if corrected else "without"
        print(f"batches of {batch} {name}: epoch {epoch + 1} of {epochs}, loss {total:.4f}", flush=True)
    model.eval()
    with torch.no_grad():
        for events in validation.batches(200):
            model.observe(events)
        found = []
        for events in test.batches(200):
            wrong = sampler.sample(events.event_id, epoch=epochs, exclude=events.dst)[:, 0]
            found.append(model(events, wrong)[0].view(2, -1))
            model.observe(events)
    scores = torch.cat(found, dim=1)
    labels = torch.tensor([[1], [0]], device=scores.device).expand_as(scores)
    return LinkMetrics(float(average_precision(scores, labels)), float(roc_auc(scores, labels)))


def _loss(logits: Tensor) -> Tensor:
    labels = torch.ones_like(logits)
    labels[len(logits) // 2 :] = 0
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of the experiment; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m anabranch.papers.pres", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="edge file")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[200, 800, 3200])
    parser.add_argument("--gamma", type=float, default=0.1, help="share of the prediction to begin with")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args(argv)
    edges = load_edges(options.data)
    print(edges)
    rows = [["batch", "seed", "AP without", "AP with PRES", "AUC without", "AUC with PRES"]]
    for batch in options.batches:
        for seed in range(options.seeds):
            plain, pres = (
                run(edges, batch=batch, corrected=corrected, epochs=options.epochs, gamma=options.gamma, seed=seed)
                for corrected in (False, True)
            )
            metrics = (plain.precision, pres.precision, plain.auc, pres.auc)
            rows.append([str(batch), str(seed), *(f"{metric:.4f}" for metric in metrics)])
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
