"""TGN's embedding: a node's memory, and attention over those of its last neighbours. SEMBA and PRES stand on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from anabranch.temporal import EdgeList, RecentNeighbors


class TemporalAttention(nn.Module):
    """`z = MLP[m; attention(m over its last k events)]`, with keys and values from `[m_j; e_j; cos(age_j w)]`.

    Source: TGN (arXiv 2006.10637, section 3.2), one layer. The frequencies w are fixed, from 1 to 1e-9 in equal ratios
    as SPLASH has them, because ages in seconds span all of these; TGN learns them.

    Args:
        edges: the whole stream, for the number of nodes and the features by event id.
        memory_dim: width of the memories; out_dim: of z; k: events; heads: of the attention, which divide out_dim.

    The ring of last events is state, given by `observe`. Gradients reach the layers and, through `memories`, what made
    the memories of the nodes and of their neighbours.
    """

    features: Tensor | None
    frequencies: Tensor

    def __init__(
        self, edges: EdgeList, memory_dim: int, out_dim: int, *, k: int = 10, heads: int = 2, time_dim: int = 16
    ) -> None:
        super().__init__()
        if out_dim % heads:
            raise ValueError(
                f"TemporalAttention: out_dim is {out_dim}, must be a multiple of {heads} heads; choose another width"
            )
        self.heads = heads
        self.register_buffer("features", edges.features, persistent=False)  # the stream's, not the model's
        self.recent = RecentNeighbors(edges.num_nodes, k, device=edges.src.device)
        self.register_buffer("frequencies", torch.logspace(0, -9, time_dim))
        edge_dim = 0 if edges.features is None else edges.features.shape[1]
        self.query = nn.Linear(memory_dim, out_dim)
        self.key_value = nn.Linear(memory_dim + edge_dim + time_dim, 2 * out_dim)
        self.out = nn.Sequential(nn.Linear(memory_dim + out_dim, out_dim), nn.ReLU(), nn.Linear(out_dim, out_dim))

    def forward(self, memories: Callable[[Tensor], Tensor], nodes: Tensor, time: Tensor) -> Tensor:
        """`[B, out_dim]` of nodes int64 `[B]` at times int64 `[B]`.

        `memories` gives `[n, memory_dim]` for distinct nodes int64 `[n]`; it is called once.
        """
        neighbors, times, event_ids = self.recent.lookup(nodes)
        valid = neighbors >= 0
        ids, place = torch.cat([nodes, neighbors.clamp_min(0).reshape(-1)]).unique(return_inverse=True)
        memory = memories(ids)
        own, theirs = memory[place[: len(nodes)]], memory[place[len(nodes) :]].view(*neighbors.shape, -1)
        age = torch.where(valid, time[:, None] - times, 0).to(memory.dtype)
        parts = [theirs, (age[..., None] * self.frequencies).cos()]
        if self.features is not None:
            parts.append(self.features[event_ids.clamp_min(0)])
        batch, k = neighbors.shape
        query = self.query(own).view(batch, self.heads, 1, -1)
        key, value = self.key_value(torch.cat(parts, -1)).view(batch, k, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (query * key).sum(-1) * query.shape[-1] ** -0.5
        # A node without events attends to nothing: its weights are all 0, not NaN.
        weights = scores.masked_fill(~valid[:, None], -1e30).softmax(-1) * valid[:, None]
        attended = (weights[..., None] * value).sum(2).reshape(batch, -1)
        z: Tensor = self.out(torch.cat([own, attended], -1))
        return z

    def observe(self, edges: EdgeList) -> None:
        """Takes a batch of events."""
        self.recent.insert(edges.src, edges.dst, edges.time, edges.event_id)
