"""SPLASH: node features that hold for nodes of the future, and SLIM, a small model over the last events of a node.

Source: "Simple yet Effective Node Property Prediction on Edge Streams under Distribution Shifts" (arXiv 2504.00328).
A node has as features one of three augmentations: random numbers, its position in the graph of the training events, or
its degree as waves. A node that training has not seen gets the running mean of its neighbours' features; the release
adds these up with `+=` under equal indices and loses all but one, `RunningMean` keeps all. Which of the three is taken
is decided before any network is trained, by linear probes on what a mean over the last events gives.

Where gradients come from: the loss trains SLIM; features, means and rings are states without gradient.

    python -m anabranch.papers.splash --data FILE --epochs N

runs the experiment of `splash_experiment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from anabranch.temporal import (
    EdgeList,
    RecentNeighbors,
    RunningMean,
    WholeState,
    degree_encoding,
    masked_mean_sum,
    unseen_nodes,
)

Kind = Literal["random", "positional", "degree"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class SLIM(nn.Module):
    """`h = LN(MLP[mean_j m_j; x]) + alpha LN'(sum_j m_j)`, `m_j = MLP[x_j; e_j; cos(age_j w)]`, over a node's events j.

    The frequencies w are fixed, from 1 to 1e-9 in equal ratios.

    Args:
        feature_dim: of x and x_j; edge_dim: of e_j, 0 for none.
        hidden: of messages and of the result.
        time_dim: frequencies.
        alpha: weight of the sum, which unlike the mean knows how many events there are.
        dropout: inside both MLPs.
    """

    frequencies: Tensor

    def __init__(
        self,
        feature_dim: int,
        edge_dim: int = 0,
        hidden: int = 64,
        *,
        time_dim: int = 16,
        alpha: float = 1.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.register_buffer("frequencies", torch.logspace(0, -9, time_dim))
        self.message = _mlp(feature_dim + edge_dim + time_dim, hidden, dropout)
        self.update = _mlp(hidden + feature_dim, hidden, dropout)
        self.norm, self.sum_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)

    def forward(self, context: Context) -> Tensor:
        """`[B, hidden]` for B nodes and what they had last."""
        waves = (context.age[..., None] * self.frequencies).cos()
        parts = [context.neighbor_x, waves] if context.edge_x is None else [context.neighbor_x, context.edge_x, waves]
        mean, total = masked_mean_sum(self.message(torch.cat(parts, dim=-1)), context.valid)
        updated = self.update(torch.cat([mean, context.x], dim=-1))
        return self.norm(updated) + self.alpha * self.sum_norm(total)


def _mlp(inputs: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden))


class Context(NamedTuple):
    """B nodes as SLIM sees them.

    x `[B, d]`; neighbor_x `[B, k, d]`; edge_x `[B, k, e]` or None; age float `[B, k]`, time since each event; valid
    bool `[B, k]`.
    """

    x: Tensor
    neighbor_x: Tensor
    edge_x: Tensor | None
    age: Tensor
    valid: Tensor

    def probe(self) -> Tensor:
        """`[B, 2 d]`: a node's features and the mean of its last neighbours', which the linear probes see."""
        mean, _ = masked_mean_sum(self.neighbor_x, self.valid)
        return torch.cat([self.x, mean], dim=-1)


class NodeFeatures(nn.Module):
    """One augmentation of all nodes, and what it says of nodes that training has not seen.

    Args:
        kind: "random": N(0, 1/dim) numbers. "positional": the first `dim` eigenvectors of `D^-1/2 A D^-1/2`, A the
            graph of the training events, by orthogonal iteration; it stands in for the release's node2vec, which
            factorises a relative of that matrix by random walks. "degree": sines and cosines of how many events a node
            had so far.
        train: the training events, which say which nodes are known.
        dim: even.
        seed: of the random numbers, and of the iteration's start.

    Unknown nodes of the first two have the mean of what their neighbours had when the events came; 0 before any.
    """

    table: Tensor
    known: Tensor

    def __init__(self, kind: Kind, train: EdgeList, dim: int, *, seed: int = 0) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"NodeFeatures: kind is {kind!r}, must be one of {', '.join(KINDS)}; choose one")
        self.kind, self.dim = kind, dim
        start = torch.randn(train.num_nodes, dim, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        table = start.to(train.src.device) * dim**-0.5
        if kind == "positional":
            table = _positions(train, table)
        self.register_buffer("table", table)
        self.register_buffer("known", ~unseen_nodes(train))
        self.means = RunningMean(train.num_nodes, dim, device=train.src.device)

    def forward(self, nodes: Tensor) -> Tensor:
        """float32 `[..., dim]` of nodes int64 `[...]` now, that is after the events given so far."""
        flat = nodes.reshape(-1)
        if self.kind == "degree":
            found = degree_encoding(self.means.count[flat, 0], self.dim)
        else:
            found = torch.where(self.known[flat][:, None], self.table[flat], self.means(flat))
        return found.view(*nodes.shape, self.dim)

    def observe(self, edges: EdgeList) -> None:
        """Takes a batch of events: each end's mean gets the other's features as they were before the batch."""
        self.means.update(torch.cat([edges.src, edges.dst]), self(torch.cat([edges.dst, edges.src])))

    def reset(self) -> None:
        """Forgets all events."""
        self.means.reset()


def _positions(train: EdgeList, start: Tensor, rounds: int = 30) -> Tensor:
    """Leading eigenvectors of the normalised adjacency (plus identity, so that the largest are the foremost)."""
    size = train.num_nodes
    pairs = torch.stack([torch.cat([train.src, train.dst]), torch.cat([train.dst, train.src])]).unique(dim=1)
    degree = torch.bincount(pairs[0], minlength=size).clamp_min(1).float()
    values = (degree[pairs[0]] * degree[pairs[1]]).rsqrt()
    matrix = torch.sparse_coo_tensor(pairs, values, (size, size), check_invariants=False).coalesce()
    vectors = torch.linalg.qr(start).Q
    for _ in range(rounds):
        vectors = torch.linalg.qr(vectors + matrix @ vectors).Q
    # Rows of norm about 1, as the random ones have.
    return vectors * (size / start.shape[1]) ** 0.5


class StreamContext(WholeState):
    """The last k events of every node with their features: gives each query its `Context`.

    Args:
        features: of nodes; edges: the whole stream, whose event features are looked up by event id; k: events a node.
    """

    edge_features: Tensor | None

    def __init__(self, features: NodeFeatures, edges: EdgeList, k: int) -> None:
        super().__init__()
        self.features = features
        self.recent = RecentNeighbors(edges.num_nodes, k, device=edges.src.device)
        self.register_buffer("edge_features", edges.features, persistent=False)  # the stream's, not the model's

    def forward(self, nodes: Tensor, time: Tensor) -> Context:
        """The context of nodes int64 `[B]` at times int64 `[B]`, from the events given so far."""
        neighbors, times, event_ids = self.recent.lookup(nodes)
        valid = neighbors >= 0
        edge_x = None if self.edge_features is None else self.edge_features[event_ids.clamp_min(0)]
        age = torch.where(valid, time[:, None] - times, 0).float()
        return Context(self.features(nodes), self.features(neighbors.clamp_min(0)), edge_x, age, valid)

    def observe(self, edges: EdgeList) -> None:
        """Takes a batch of events."""
        self.features.observe(edges)
        self.recent.insert(edges.src, edges.dst, edges.time, edges.event_id)

    def reset(self) -> None:
        """Forgets all events."""
        self.features.reset()
        self.recent.reset()


def probe_loss(x: Tensor, labels: Tensor, *, splits: int = 5, decay: float = 1e-3) -> float:
    """The loss on later queries of linear classifiers fitted to earlier ones, the mean of `splits` such cuts.

    Args:
        x: `[Q, d]`, queries in order of time; labels: int64 `[Q]`.
        splits: cut s of them trains on the first s parts of `splits + 1` and is judged on the part after.
        decay: weight of the squared weights.
    """
    parts = torch.arange(splits + 2) * len(x) // (splits + 1)
    losses = []
    for end, stop in zip(parts[1:-1].tolist(), parts[2:].tolist(), strict=True):
        seen, answers = x[:end], labels[:end]
        centre, scale = seen.mean(0), seen.std(0).clamp_min(1e-6)
        probe = nn.Linear(x.shape[1], int(labels.max()) + 1, device=x.device)
        nn.init.zeros_(probe.weight)
        nn.init.zeros_(probe.bias)
        optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=50, line_search_fn="strong_wolfe")
        fit = (_Fit(optimizer, probe, (seen - centre) / scale, answers, decay)).closure
        optimizer.step(fit)
        with torch.no_grad():
            later = (x[end:stop] - centre) / scale
            losses.append(float(nn.functional.cross_entropy(probe(later), labels[end:stop])))
    return sum(losses) / len(losses)


class _Fit(NamedTuple):
    optimizer: torch.optim.Optimizer
    probe: nn.Linear
    x: Tensor
    labels: Tensor
    decay: float

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.probe(self.x), self.labels)
        loss = loss + self.decay * self.probe.weight.square().sum()
        loss.backward()
        return loss


def select_features(
    probes: Mapping[Kind, Tensor], labels: Tensor, *, splits: int = 5
) -> tuple[Kind, dict[Kind, float]]:
    """The augmentation whose linear probes have the lowest loss on later queries.

    Args:
        probes: for each kind the probe features of queries in order of time, `[Q, d]`, as `Context.probe` gives them.
        labels: int64 `[Q]`.

    Returns:
        The kind, and `probe_loss` of each.
    """
    losses = {kind: probe_loss(x, labels, splits=splits) for kind, x in probes.items()}
    return min(losses, key=losses.__getitem__), losses


if __name__ == "__main__":
    from anabranch.papers.splash_experiment import main

    raise SystemExit(main())
