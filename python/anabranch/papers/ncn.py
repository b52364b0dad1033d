"""NCN and NCNC: links predicted from the common neighbours of two nodes, also from those that the graph does not show.

Source: "Neural Common Neighbor with Completion for Link Prediction" (arXiv 2302.00890). For a pair (i, j), and node
representations x of a graph network,

    NCN  = MLP(beta f(sum of x_u over u in N(i) & N(j)) + g(x_i * x_j))
    NCNC adds to that sum p_u x_u for u in only one of N(i), N(j), p_u the chance that the missing edge of u is there

with p from NCN itself: `s = sigmoid(scale (logit - offset))`, `p = alpha pt s / (pt s + 1 - s)`, without gradient. The
links that a training step predicts are taken out of its graph. Sets of u are sampled to 8 in training and 128 in tests.

The release builds every intersection as a new sparse matrix from 64-bit keys; here `row_set_sum` walks two rows and
writes none of it. It adds sampled sets up as they are, while here the sum is scaled by the size of the set over that of
the sample, so that it means the same for 8 and for 128.

Where gradients come from: the loss, through `row_set_sum` and `gather_sum` to x, through x to the network and the
embeddings; p_u is a constant.

    python -m anabranch.papers.ncn --data FILE --epochs N

hides edges of a graph (FILE's static projection, or a generated geometric one) and prints how NCN, NCNC and a dot
product of the same representations find them again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anabranch.cli.progress import table
from anabranch.temporal import (
    csr_from_edges,
    gather_sum,
    hits_at,
    load_edges,
    mean_reciprocal_rank,
    row_set,
    row_set_sum,
)
from anabranch.temporal.row_intersect import RowSetMode


class Graph(NamedTuple):
    """An undirected graph in CSR: int64 `[N + 1]` and `[nnz]`, each edge in both rows."""

    row_offsets: Tensor
    column_ids: Tensor

    @property
    def num_nodes(self) -> int:
        return len(self.row_offsets) - 1

    def rows(self) -> Tensor:
        """The row of each entry, int64 `[nnz]`."""
        return torch.repeat_interleave(self.row_offsets.diff(), output_size=len(self.column_ids))

    def without(self, src: Tensor, dst: Tensor) -> Graph:
        """The graph without these edges; rows stay sorted, so nothing is sorted but the edges that go."""
        size = self.num_nodes
        rows = self.rows()
        gone = torch.cat([src * size + dst, dst * size + src]).sort().values
        keys = rows * size + self.column_ids
        kept = gone[torch.searchsorted(gone, keys).clamp(max=len(gone) - 1)] != keys
        counts = torch.bincount(rows[kept], minlength=size)
        return Graph(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), self.column_ids[kept])


class Encoder(nn.Module):
    """Two layers of `x + relu(W (D^-1/2 A D^-1/2 x))` on learned embeddings of all nodes."""

    def __init__(self, num_nodes: int, dim: int, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_nodes, dim) * 0.1)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))

    def forward(self, graph: Graph) -> Tensor:
        scale = graph.row_offsets.diff().clamp_min(1).float().rsqrt()[:, None]
        nodes = torch.arange(graph.num_nodes, device=scale.device)
        x: Tensor = self.embedding
        for layer in self.layers:
            # What a row has in common with itself is its neighbours.
            x = x + layer(scale * row_set_sum(scale * x, *graph, nodes, nodes)).relu()
        return x


class DotProduct(nn.Module):
    """The baseline: `x_i . x_j` (a graph autoencoder), whatever the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, graph: Graph, left: Tensor, right: Tensor) -> Tensor:
        return (x[left] * x[right]).sum(1)


class NCN(nn.Module):
    """Logits `[P]` of pairs (left, right), int64 `[P]` each, from x `[N, dim]` and the graph.

    beta is learned, from 1. A pair's own ends are in none of its sets.
    """

    def __init__(self, dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(()))
        self.common = _mlp(dim, hidden)
        self.product = _mlp(dim, hidden)
        self.read = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x: Tensor, graph: Graph, left: Tensor, right: Tensor) -> Tensor:
        shared = row_set_sum(x, *graph, left, right, exclude_pair=True)
        return self.score(x, shared, left, right)

    def score(self, x: Tensor, shared: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The logits, given the sum over the common neighbours `[P, dim]`."""
        z = self.beta * self.common(shared) + self.product(x[left] * x[right])
        logits: Tensor = self.read(z).squeeze(1)
        return logits


def _mlp(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden))


class NCNC(NCN):
    """NCN on a graph that it first completes.

    Args:
        scale, alpha, pt: of p, see above; at their defaults p = s.
        offset: of p. Default `log(pairs / edges)` of the graph: training sees an edge beside each other pair, a graph
            has far fewer, and so much is the logit too high to be that of a chance.
        train_samples, test_samples: how many nodes of each one-sided set are looked at.
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 64,
        *,
        scale: float = 1.0,
        offset: float | None = None,
        alpha: float = 1.0,
        pt: float = 1.0,
        train_samples: int = 8,
        test_samples: int = 128,
    ) -> None:
        super().__init__(dim, hidden)
        self.scale, self.offset, self.alpha, self.pt = scale, offset, alpha, pt
        self.train_samples, self.test_samples = train_samples, test_samples
        self.calls = 0

    def forward(self, x: Tensor, graph: Graph, left: Tensor, right: Tensor) -> Tensor:
        shared = row_set_sum(x, *graph, left, right, exclude_pair=True)
        capacity = self.train_samples if self.training else self.test_samples
        self.calls += self.training  # other samples in every step; in tests always the same
        sides: tuple[tuple[RowSetMode, Tensor], ...] = (("left_difference", right), ("right_difference", left))
        for mode, other in sides:
            seed = self.calls if self.training else 0
            ids, sizes = row_set(*graph, left, right, mode, capacity, seed, exclude_pair=True)
            weights = self.completion(x, graph, ids, other)
            weights = weights * (sizes / sizes.clamp(1, capacity))[:, None].to(weights.dtype)
            shared = shared + gather_sum(x, ids, weights)
        return self.score(x, shared, left, right)

    @torch.no_grad()
    def completion(self, x: Tensor, graph: Graph, ids: Tensor, other: Tensor) -> Tensor:
        """p_u `[P, K]` that each node of ids `[P, K]` has an edge to the pair's other end; 0 for ids of -1."""
        ends = other[:, None].expand_as(ids)[ids >= 0]
        offset = self.offset
        if offset is None:
            offset = math.log(max(1, graph.num_nodes**2) / max(1, len(graph.column_ids)))
        s = torch.sigmoid(self.scale * (super().forward(x, graph, ids[ids >= 0], ends) - offset))
        weights = x.new_zeros(ids.shape)
        weights[ids >= 0] = self.alpha * self.pt * s / (self.pt * s + 1 - s)
        return weights


MODELS: dict[str, Callable[[int], nn.Module]] = {"dot product": DotProduct, "NCN": NCN, "NCNC": NCNC}


def geometric_edges(num_nodes: int = 800, degree: float = 12.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points in the unit square, joined where they are near: (src, dst) with src < dst, `degree` edges a node."""
    points = torch.rand(num_nodes, 2, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    radius = (degree / (torch.pi * num_nodes)) ** 0.5
    src, dst = ((torch.cdist(points, points) < radius).triu(1)).nonzero().unbind(1)
    return src, dst


def static_projection(path: str, columns: Sequence[int | str] | None = None) -> tuple[Tensor, Tensor, int]:
    """The distinct undirected edges of a stream, without self-loops: (src, dst) with src < dst, and the nodes."""
    edges = load_edges(path, columns=columns)
    ends = torch.stack([torch.minimum(edges.src, edges.dst), torch.maximum(edges.src, edges.dst)])
    src, dst = ends[:, ends[0] != ends[1]].unique(dim=1)
    return src, dst, edges.num_nodes


class Metrics(NamedTuple):
    """Hits@100 among shared drawn pairs, and the MRR of each edge among 50 drawn ends."""

    hits: float
    mrr: float


def run(
    src: Tensor,
    dst: Tensor,
    num_nodes: int,
    *,
    hidden_share: float,
    epochs: int,
    dim: int = 32,
    rate: float = 5e-3,
    seed: int = 0,
) -> dict[str, Metrics]:
    """Hides a share of the edges, trains each model on the others, and ranks the hidden ones.

    A step predicts a tenth of the edges that are seen, or 1024 of them, from the others: of many more the graph of a
    step would be another than that of the test.
    """
    draw = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(len(src), generator=draw, device="cpu").to(src.device)
    num_hidden = max(1, int(hidden_share * len(src)))
    hidden, seen = order[:num_hidden], order[num_hidden:]
    train_src, train_dst, test_src, test_dst = src[seen], dst[seen], src[hidden], dst[hidden]
    batch = min(1024, max(1, len(seen) // 10))
    graph = Graph(*csr_from_edges(train_src, train_dst, num_nodes))
    all_keys = (src * num_nodes + dst).sort().values

    def other_pairs(count: int) -> tuple[Tensor, Tensor]:
        """Pairs that are no edge, hidden or not: drawn, and drawn again where they are."""
        one, two = torch.randint(num_nodes, (2, count), generator=draw, device="cpu").to(src.device)
        for _ in range(8):
            keys = torch.minimum(one, two) * num_nodes + torch.maximum(one, two)
            bad = (all_keys[torch.searchsorted(all_keys, keys).clamp(max=len(all_keys) - 1)] == keys) | (one == two)
            again = torch.randint(num_nodes, (count,), generator=draw, device="cpu").to(src.device)
            two = torch.where(bad, again, two)
        return one, two

    shared = other_pairs(10000)
    own = torch.randint(num_nodes, (num_hidden, 50), generator=draw, device="cpu").to(src.device)
    results = {}
    for name, make in MODELS.items():
        torch.manual_seed(seed)
        encoder, predictor = Encoder(num_nodes, dim).to(src.device), make(dim).to(src.device)
        both = nn.ModuleList([encoder, predictor])
        optimizer = torch.optim.Adam(both.parameters(), rate)
        for epoch in range(epochs):
            total = 0.0
            for chosen in torch.randperm(len(seen), generator=draw, device="cpu").to(src.device).split(batch):
                left, right = train_src[chosen], train_dst[chosen]
                rest = graph.without(left, right)
                x = encoder(rest)
                wrong = other_pairs(len(chosen))
                logits = predictor(x, rest, torch.cat([left, wrong[0]]), torch.cat([right, wrong[1]]))
                labels = torch.ones_like(logits)
                labels[len(chosen) :] = 0
                loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(chosen) / len(seen)
            if epoch + 1 in (1, epochs):
                print(f"{name}: epoch {epoch + 1} of {epochs}, loss {total:.4f}", flush=True)
        both.eval()
        with torch.no_grad():
            x = encoder(graph)
            right_scores = predictor(x, graph, test_src, test_dst)
            shared_scores = predictor(x, graph, *shared)
            own_scores = predictor(x, graph, test_src.repeat_interleave(50), own.reshape(-1)).view(-1, 50)
            results[name] = Metrics(
                float(hits_at(100, right_scores, shared_scores)), float(mean_reciprocal_rank(right_scores, own_scores))
            )
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of the experiment; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m anabranch.papers.ncn", description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="edge file, its times unused; without one, a generated geometric graph")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--hidden", type=float, nargs="+", default=[0.1, 0.3, 0.5], help="shares of edges hidden")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.data:
        src, dst, num_nodes = static_projection(options.data)
    else:
        num_nodes = 800
        src, dst = geometric_edges(num_nodes, seed=options.seed)
    print(f"{num_nodes} nodes, {len(src)} edges")
    rows = [["hidden", "model", "Hits@100", "MRR"]]
    for share in options.hidden:
        found = run(src, dst, num_nodes, hidden_share=share, epochs=options.epochs, seed=options.seed)
        rows += [[f"{share:.0%}", name, f"{one.hits:.4f}", f"{one.mrr:.4f}"] for name, one in found.items()]
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
