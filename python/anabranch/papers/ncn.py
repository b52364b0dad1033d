"""NCN and NCNC: links predicted from the common neighbours of two nodes, also from those that the graph does not show.

Source: "Neural Common Neighbor with Completion for Link Prediction" (arXiv 2302.00890). For a pair (i, j), and node
representations x of a graph network,

    NCN  = MLP(beta f(sum of x_u over u in N(i) & N(j)) + g(x_i * x_j))
    NCNC adds to that sum p_u x_u for u in only one of N(i), N(j), p_u the chance that the missing edge of u is there

with p from NCN itself: `s = sigmoid(scale (logit - offset))`, `p = alpha pt s / (pt s + 1 - s)`, without gradient. The
links that a training step predicts are taken out of its graph. Sets of u are sampled to 8 in training and 128 in tests.

The release builds every intersection as a new sparse matrix from 64-bit keys; here `row_set_sum` walks two rows and
writes none of it, with the p_u as its weights. It adds sampled sets up as they are, while here the sum is scaled by the
size of the set over that of the sample, so that it means the same for 8 and for 128.

Where gradients come from: the loss, through `row_set_sum` to x, through x to the network and the embeddings; p_u is a
constant.

    python -m anabranch.papers.ncn --data FILE --epochs N

runs the experiment of `ncn_experiment`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anabranch.temporal import csr_from_edges, row_set, row_set_sum
from anabranch.temporal.row_intersect import RowSetMode


class Graph(NamedTuple):
    """An undirected graph in CSR, each edge in both rows.

    Attributes:
        row_offsets, column_ids: int64 `[N + 1]` and `[nnz]`.
        max_degree: no node has more neighbours; kept on the host, so that sizes follow from it without a look.
    """

    row_offsets: Tensor
    column_ids: Tensor
    max_degree: int

    @classmethod
    def from_edges(cls, src: Tensor, dst: Tensor, num_nodes: int) -> Graph:
        """The graph of these edges, int64 `[E]` each; once an edge, whichever way it is given and however often."""
        row_offsets, column_ids = csr_from_edges(src, dst, num_nodes)
        return cls(row_offsets, column_ids, int(row_offsets.diff().max()) if num_nodes else 0)

    @property
    def csr(self) -> tuple[Tensor, Tensor]:
        """row_offsets and column_ids."""
        return self.row_offsets, self.column_ids

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
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Graph(offsets, self.column_ids[kept], self.max_degree)


class Encoder(nn.Module):
    """Two layers of `x + relu(W (D^-1/2 A D^-1/2 x))` on learned embeddings of all nodes."""

    def __init__(self, num_nodes: int, dim: int, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_nodes, dim) * 0.1)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))

    def forward(self, graph: Graph) -> Tensor:
        """x `[N, dim]` of all nodes of the graph; the gradient goes to the embeddings and the layers."""
        scale = graph.row_offsets.diff().clamp_min(1).float().rsqrt()[:, None]
        nodes = torch.arange(graph.num_nodes, device=scale.device)
        x: Tensor = self.embedding
        for layer in self.layers:
            # What a row has in common with itself is its neighbours.
            x = x + layer(scale * row_set_sum(scale * x, *graph.csr, nodes, nodes)).relu()
        return x


class DotProduct(nn.Module):
    """The baseline: `x_i . x_j` (a graph autoencoder), whatever the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, graph: Graph, left: Tensor, right: Tensor) -> Tensor:
        """Logits `[P]` of pairs (left, right), int64 `[P]` each; the graph is not looked at."""
        return (x[left] * x[right]).sum(1)


class NCN(nn.Module):
    """Logits of pairs from what their two nodes have in common.

    Args:
        dim: width of x.
        hidden: width of the MLPs.

    beta is learned, from 1. A pair's own ends are in none of its sets.
    """

    def __init__(self, dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(()))
        self.common = _mlp(dim, hidden)
        self.product = _mlp(dim, hidden)
        self.read = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x: Tensor, graph: Graph, left: Tensor, right: Tensor) -> Tensor:
        """The logits.

        Args:
            x: `[N, dim]`, representations of all nodes.
            graph: its edges; the links that are asked about may be among them.
            left, right: int64 `[P]`.

        Returns:
            `[P]`.

        Raises:
            ValueError: as `row_set_sum`.

        Gradient:
            To x and the parameters.

        Cost:
            `row_set_sum` of P pairs, and two MLPs of P rows.
        """
        shared = row_set_sum(x, *graph.csr, left, right, exclude_pair=True)
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

    def forward(self, x: Tensor, graph: Graph, left: Tensor, right: Tensor, *, seed: int = 0) -> Tensor:
        """The logits, of the graph as completed.

        Args:
            x, graph, left, right: as `NCN.forward`.
            seed: of the samples; in training another in every step.

        Returns:
            `[P]`.

        Raises:
            ValueError: as `row_set_sum`.

        Gradient:
            To x and the parameters, with p_u constant.

        Cost:
            That of NCN for 1 + 2 K rows a pair, K the least of the samples and the largest degree: rows that a set
            leaves empty are computed too, so that no size is looked up on the host.
        """
        shared = row_set_sum(x, *graph.csr, left, right, exclude_pair=True)
        capacity = min(self.train_samples if self.training else self.test_samples, graph.max_degree)
        sides: tuple[tuple[RowSetMode, Tensor], ...] = (("left_difference", right), ("right_difference", left))
        for mode, other in sides:
            ids, sizes = row_set(*graph.csr, left, right, mode, capacity, seed, exclude_pair=True)
            weights = self.completion(x, graph, ids, other)
            weights = weights * (sizes / sizes.clamp(1, max(1, capacity)))[:, None].to(weights.dtype)
            shared = shared + row_set_sum(x, *graph.csr, left, right, mode, True, weights, seed)
        return self.score(x, shared, left, right)

    @torch.no_grad()
    def completion(self, x: Tensor, graph: Graph, ids: Tensor, other: Tensor) -> Tensor:
        """p_u `[P, K]` that each node of ids `[P, K]` has an edge to the pair's other end; of ids of -1 any number."""
        ends = other[:, None].expand_as(ids)
        nodes = torch.where(ids < 0, ends, ids)
        offset = self.offset
        if offset is None:
            offset = math.log(max(1, graph.num_nodes**2) / max(1, len(graph.column_ids)))
        logits = super().forward(x, graph, nodes.flatten(), ends.flatten()).view_as(nodes)
        s = torch.sigmoid(self.scale * (logits - offset))
        return self.alpha * self.pt * s / (self.pt * s + 1 - s)


if __name__ == "__main__":
    from anabranch.papers.ncn_experiment import main

    raise SystemExit(main())
