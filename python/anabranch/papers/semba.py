"""SEMBA: signed links of a stream, from a memory of friends and a memory of enemies for every node.

Source: "Representation Learning in Continuous-Time Dynamic Signed Networks" (arXiv 2207.03408). By balance theory a
node's positive memory hears a friend's positive one and an enemy's negative one, its negative memory a friend's
negative and an enemy's positive one; temporal attention reads both. What the authors' code does otherwise is said at
`SignedMemory`, whose variant "release" is compared here, and so is one memory that hears of signs only as a feature.

Where gradients come from: the loss of a batch reaches attention, GRUs and time encoding through the messages that wait,
so one batch back; memories are stored detached.

    python -m anabranch.papers.semba --data soc-sign-bitcoinalpha.csv --columns 0,1,3,2 --epochs N

predicts the sign of each event just before it comes.
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
    MemoryTable,
    SignedMemory,
    WholeState,
    average_precision,
    load_edges,
    roc_auc,
    split_by_time,
)

VARIANTS = ("theory", "release", "single memory")


class SEMBA(WholeState):
    """The logit that an event is negative, of events as they come.

    Args:
        edges: the whole stream; column 0 of its features is signed, such as a rating.
        variant: "theory", "release", or "single memory" for a `MemoryTable` instead of a `SignedMemory`.
        memory_dim: of each of the two memories, and twice that of the single one.
        out_dim: of the embeddings; k: events that a node attends to.
    """

    def __init__(
        self, edges: EdgeList, variant: str = "theory", *, memory_dim: int = 32, out_dim: int = 64, k: int = 10
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"SEMBA: variant is {variant!r}, must be one of {', '.join(VARIANTS)}; choose one")
        if edges.features is None:
            raise ValueError("SEMBA: edges has no features, must have a signed one in column 0; choose it in columns=")
        width = edges.features.shape[1]
        self.memory: SignedMemory | MemoryTable
        if variant == "single memory":
            self.memory = MemoryTable(edges.num_nodes, 2 * memory_dim, width, time_dim=16)
        else:
            kind = "theory" if variant == "theory" else "release"
            self.memory = SignedMemory(edges.num_nodes, memory_dim, width, time_dim=16, variant=kind)  # type: ignore[arg-type]
        self.attention = TemporalAttention(edges, 2 * memory_dim, out_dim, k=k)
        self.read = nn.Sequential(nn.Linear(2 * out_dim, out_dim), nn.ReLU(), nn.Linear(out_dim, 1))

    def forward(self, edges: EdgeList) -> Tensor:
        """`[B]`: from what was observed before these events."""
        nodes, time = torch.cat([edges.src, edges.dst]), edges.time.repeat(2)
        z = self.attention(self.memories, nodes, time)
        logits: Tensor = self.read(torch.cat(z.chunk(2), dim=1)).squeeze(1)
        return logits

    def memories(self, nodes: Tensor) -> Tensor:
        """`[n, 2 memory_dim]`: both memories, or the one."""
        *parts, _ = self.memory(nodes)
        return torch.cat(parts, dim=1)

    def observe(self, edges: EdgeList) -> None:
        """Takes a batch of events."""
        assert edges.features is not None
        if isinstance(self.memory, SignedMemory):
            self.memory.update_state(edges.src, edges.dst, edges.time, is_negative(edges), edges.features)
        else:
            self.memory.update_state(edges.src, edges.dst, edges.time, edges.features)
        self.attention.observe(edges)

    def reset_state(self) -> None:
        """Forgets all events."""
        self.memory.reset_state()
        self.attention.recent.reset()


def is_negative(edges: EdgeList) -> Tensor:
    """bool `[E]`: feature 0 is below 0."""
    assert edges.features is not None
    return edges.features[:, 0] < 0


def macro_f1(predicted: Tensor, labels: Tensor) -> Tensor:
    """The mean of both classes' F1, float64 `[]`; bool `[E]` each. A class neither there nor predicted has 0."""
    scores = []
    for ours, truth in ((predicted, labels), (~predicted, ~labels)):
        both, either = (ours & truth).sum().double(), ours.sum() + truth.sum()
        scores.append(2 * both / either.clamp_min(1))
    return (scores[0] + scores[1]) / 2


def best_threshold(scores: Tensor, labels: Tensor) -> Tensor:
    """The score from which on to predict negative: of 200 quantiles the one with the best macro-F1."""
    candidates = torch.quantile(scores, torch.linspace(0, 1, 200, device=scores.device, dtype=scores.dtype))
    found = torch.stack([macro_f1(scores >= candidate, labels) for candidate in candidates])
    return candidates[found.argmax()]


class SignMetrics(NamedTuple):
    """Of the test events: AUC and average precision of "negative", and macro-F1 at validation's best threshold."""

    auc: float
    precision: float
    f1: float


def run(
    edges: EdgeList, variant: str = "theory", *, epochs: int = 5, batch: int = 200, rate: float = 1e-3, seed: int = 0
) -> SignMetrics:
    """Trains on the first 70 % of the stream, keeps the epoch with the best validation AUC, and tests."""
    torch.manual_seed(seed)
    # Features of about 1: ratings go from -10 to 10.
    assert edges.features is not None
    scale = edges.features.abs().amax(0).clamp_min(1e-6)
    edges = EdgeList.from_events(edges.src, edges.dst, edges.time, edges.features / scale, num_nodes=edges.num_nodes)
    train, validation, test = split_by_time(edges)
    model = SEMBA(edges, variant).to(edges.src.device)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    # Negatives are few: they weigh as much as the positives together.
    share = is_negative(train).float().mean().clamp(1e-3, 1 - 1e-3)
    loss_of = nn.BCEWithLogitsLoss(pos_weight=(1 - share) / share)
    best, kept = -1.0, SignMetrics(0.0, 0.0, 0.0)
    for epoch in range(epochs):
        model.train()
        model.reset_state()
        total = 0.0
        for events in train.batches(batch):
            loss = loss_of(model(events), is_negative(events).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(events) / len(train)
            model.observe(events)
        model.eval()
        scores = [_scores(model, part, batch) for part in (validation, test)]
        labels = is_negative(validation), is_negative(test)
        valid_auc = float(roc_auc(scores[0], labels[0]))
        print(f"{variant}: epoch {epoch + 1} of {epochs}, loss {total:.4f}, validation AUC {valid_auc:.4f}", flush=True)
        if valid_auc > best:
            best = valid_auc
            predicted = scores[1] >= best_threshold(scores[0], labels[0])
            kept = SignMetrics(
                float(roc_auc(scores[1], labels[1])),
                float(average_precision(scores[1], labels[1])),
                float(macro_f1(predicted, labels[1])),
            )
    return kept


@torch.no_grad()
def _scores(model: SEMBA, edges: EdgeList, batch: int) -> Tensor:
    found = []
    for events in edges.batches(batch):
        found.append(model(events))
        model.observe(events)
    return torch.cat(found)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of the experiment; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m anabranch.papers.semba", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="edge file with a signed feature, such as a rating")
    parser.add_argument("--columns", default="0,1,3,2", help="positions of src, dst, time and the signed feature")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args(argv)
    edges = load_edges(options.data, columns=[int(column) for column in options.columns.split(",")])
    print(f"{edges}, {float(is_negative(edges).float().mean()):.2%} negative")
    rows = [["model", "seed", "AUC", "AP of negatives", "macro-F1"]]
    for variant in VARIANTS:
        for seed in range(options.seeds):
            found = run(edges, variant, epochs=options.epochs, seed=seed)
            rows.append([variant, str(seed), *(f"{metric:.4f}" for metric in found)])
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
