"""SPLASH's experiment: nodes of a drifting graph told apart, and links of a real stream; see `anabranch.papers.splash`.

The generated stream has communities; in time nodes change theirs and new nodes come, so what training saw of a node may
be false or nothing. A query asks for the community of an event's source just before the event. A file has no such
labels: there a query is a pair, and the label whether it is an event or a drawn destination.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anabranch.cli.progress import table
from anabranch.papers.splash import KINDS, SLIM, Kind, NodeFeatures, StreamContext, select_features
from anabranch.temporal import (
    EdgeList,
    NegativeSampler,
    TimeSplit,
    average_precision,
    hide_nodes,
    load_edges,
    roc_auc,
    split_by_time,
    unseen_nodes,
)

BATCH = 200


def drifting_communities(
    num_nodes: int = 400,
    communities: int = 4,
    events: int = 12000,
    *,
    drift: float = 0.6,
    new_share: float = 0.3,
    inside: float = 0.9,
    seed: int = 0,
) -> tuple[EdgeList, Tensor]:
    """A stream of events mostly inside communities, and the community of each event's source, int64 `[E]`.

    A share `drift` of the nodes changes community once; a share `new_share` comes at random times of the second half.
    """
    draw = torch.Generator("cpu").manual_seed(seed)
    before = torch.randint(communities, (num_nodes,), generator=draw)
    after = torch.randint(communities, (num_nodes,), generator=draw)
    changes = torch.where(
        torch.rand(num_nodes, generator=draw) < drift, torch.randint(events, (num_nodes,), generator=draw), events
    )
    comes = torch.where(
        torch.rand(num_nodes, generator=draw) < new_share,
        torch.randint(events // 2, events, (num_nodes,), generator=draw),
        0,
    )
    time = torch.arange(events)

    def community(nodes: Tensor) -> Tensor:
        return torch.where(time[:, None] < changes[nodes], before[nodes], after[nodes])

    def first(fits: Tensor, candidates: Tensor) -> Tensor:
        return candidates.gather(1, fits.byte().argmax(1, keepdim=True))

    candidates = torch.randint(num_nodes, (events, 64), generator=draw)
    src = first(comes[candidates] <= time[:, None], candidates)
    candidates = torch.randint(num_nodes, (events, 64), generator=draw)
    fits = (comes[candidates] <= time[:, None]) & (candidates != src)
    same = (community(candidates) == community(src)) == (torch.rand(events, 1, generator=draw) < inside)
    dst = first(fits & same, candidates)
    return EdgeList.from_events(src[:, 0], dst[:, 0], time, num_nodes=num_nodes), community(src)[:, 0]


class Head(nn.Module):
    """SLIM and what reads it: classes of nodes, or a score of pairs."""

    def __init__(self, feature_dim: int, edge_dim: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.slim = SLIM(feature_dim, edge_dim, hidden)
        width = hidden if classes > 2 else 3 * hidden
        self.read = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))


class Batch(NamedTuple):
    """Queries of one batch of events: nodes `[B]` or pairs `[B, 2]`, times, labels, and the true nodes `[B, ends]`."""

    events: EdgeList
    nodes: Tensor
    time: Tensor
    labels: Tensor
    ends: Tensor


Queries = Callable[[EdgeList, int], Iterator[Batch]]


def node_queries(labels: Tensor) -> Queries:
    """What is the community of the source?"""

    def queries(edges: EdgeList, epoch: int) -> Iterator[Batch]:
        for batch in edges.batches(BATCH):
            yield Batch(batch, batch.src, batch.time, labels[batch.event_id], batch.src[:, None])

    return queries


def link_queries(sampler: NegativeSampler) -> Queries:
    """Is it an event, or a drawn destination?"""

    def queries(edges: EdgeList, epoch: int) -> Iterator[Batch]:
        for batch in edges.batches(BATCH):
            wrong = sampler.sample(batch.event_id, epoch=epoch, exclude=batch.dst)
            pairs = torch.stack([batch.src.repeat(2), torch.cat([batch.dst, wrong[:, 0]])], dim=1)
            labels = torch.arange(2, device=pairs.device).flip(0).repeat_interleave(len(batch))
            yield Batch(batch, pairs, batch.time.repeat(2), labels, pairs[: len(batch)].repeat(2, 1))

    return queries


def probe_features(stream: StreamContext, queries: Queries, train: EdgeList) -> tuple[Tensor, Tensor]:
    """What linear probes see of the training queries, and the labels; a pair is both ends and their product."""
    found, labels = [], []
    stream.reset()
    for batch in queries(train, 0):
        x = stream(batch.nodes.reshape(-1), batch.time.repeat_interleave(batch.nodes[0].numel())).probe()
        if batch.nodes.dim() == 2:
            left, right = x[::2], x[1::2]
            x = torch.cat([left, right, left * right], dim=1)
        found.append(x)
        labels.append(batch.labels)
        stream.observe(batch.events)
    return torch.cat(found), torch.cat(labels)


def train_and_test(
    stream: StreamContext, head: Head, queries: Queries, split: TimeSplit, epochs: int, rate: float = 2e-3
) -> tuple[Tensor, Tensor, Tensor]:
    """Trains on the first part; logits `[Q, classes]`, labels and true nodes of the last part's queries."""
    optimizer = torch.optim.Adam(head.parameters(), rate)

    def logits(batch: Batch) -> Tensor:
        if batch.nodes.dim() == 1:
            found: Tensor = head.read(head.slim(stream(batch.nodes, batch.time)))
            return found
        h = head.slim(stream(batch.nodes.reshape(-1), batch.time.repeat_interleave(2)))
        left, right = h[::2], h[1::2]
        found = head.read(torch.cat([left, right, left * right], dim=1))
        return found

    for epoch in range(epochs):
        head.train()
        stream.reset()
        total = torch.zeros(())
        for batch in queries(split.train, epoch):
            loss = nn.functional.cross_entropy(logits(batch), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch.events) / len(split.train)
            stream.observe(batch.events)
        print(f"epoch {epoch + 1} of {epochs}: loss {float(total):.4f}", flush=True)
    head.eval()
    results, stop = [], int(split.test.event_id[0])
    with torch.no_grad():
        stream.reset()
        for part in split:
            for batch in queries(part, epochs):
                if batch.events.event_id[0] >= stop:
                    results.append((logits(batch), batch.labels, batch.ends))
                stream.observe(batch.events)
    return tuple(torch.cat(column) for column in zip(*results, strict=True))  # type: ignore[return-value]


def run(
    edges: EdgeList,
    labels: Tensor | None,
    *,
    epochs: int,
    k: int = 20,
    dim: int = 32,
    hidden: int = 64,
    seed: int = 0,
    kinds: Sequence[Kind] = KINDS,
) -> tuple[Kind, dict[str, tuple[float, float]]]:
    """The experiment: the chosen kind, and for each kind the metrics of all test queries and of those with new nodes.

    The metric is accuracy of communities, or average precision (and AUC, on the terminal) of links. Row "no events" has
    the chosen features and no neighbours.
    """
    split = split_by_time(edges)
    if labels is None:
        split, _ = hide_nodes(split, seed=seed)
    queries = link_queries(NegativeSampler(edges.dst, seed)) if labels is None else node_queries(labels)
    classes = 2 if labels is None else int(labels.max()) + 1
    new = unseen_nodes(split.train)
    streams = {kind: StreamContext(NodeFeatures(kind, split.train, dim, seed=seed), edges, k) for kind in kinds}
    probes = {kind: probe_features(stream, queries, split.train) for kind, stream in streams.items()}
    chosen, losses = select_features({kind: x for kind, (x, _) in probes.items()}, probes[kinds[0]][1])
    contenders: dict[str, StreamContext] = dict(streams.items())
    contenders["no events"] = NoEvents(streams[chosen].features, edges, 1)
    results: dict[str, tuple[float, float]] = {}
    rows = [["features", "probe loss", "all", "with new nodes", "AUC"]]
    for name, stream in contenders.items():
        torch.manual_seed(seed)
        print(f"{name}:", flush=True)
        edge_dim = 0 if edges.features is None else edges.features.shape[1]
        head = Head(dim, edge_dim, hidden, classes).to(edges.src.device)
        logits, answers, ends = train_and_test(stream, head, queries, split, epochs)
        is_new = new[ends].any(1)  # a drawn pair counts with the event that it stands beside
        scores = logits[:, 1] - logits[:, 0]
        if labels is None:
            metrics = [float(average_precision(scores[part], answers[part])) for part in (is_new | True, is_new)]
        else:
            right = (logits.argmax(1) == answers).float()
            metrics = [float(right[part].mean()) for part in (is_new | True, is_new)]
        results[name] = (metrics[0], metrics[1])
        auc = f"{float(roc_auc(scores, answers)):.4f}" if labels is None else "-"
        loss = f"{losses[stream.features.kind]:.4f}" if name != "no events" else "-"
        marked = f"{name} (chosen)" if name == chosen else name
        rows.append([marked, loss, *(f"{metric:.4f}" for metric in metrics), auc])
    print(table(rows))
    return chosen, results


class NoEvents(StreamContext):
    """A stream that remembers nothing: the baseline that sees a node's features alone."""

    def observe(self, edges: EdgeList) -> None:
        self.features.observe(edges)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of the experiment; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m anabranch.papers.splash", description=__doc__)
    parser.add_argument("--data", help="edge file: links are predicted; without one, communities of a generated stream")
    parser.add_argument("--columns", help="src, dst, time and features by position or name, such as 0,1,3,2")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--k", type=int, default=20, help="events a node remembers; the paper has about 100")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    labels = None
    if options.data:
        names = options.columns.split(",") if options.columns else None
        columns = None if names is None else [int(name) if name.isdigit() else name for name in names]
        edges = load_edges(options.data, columns=columns)
    else:
        edges, labels = drifting_communities(seed=options.seed)
    print(edges)
    run(edges, labels, epochs=options.epochs, k=options.k, seed=options.seed)
    return 0
