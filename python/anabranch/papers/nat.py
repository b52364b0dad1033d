"""NAT: link prediction from hashed caches of every node's neighbourhood (arXiv 2209.01084).

For a pair (u, v) at time t:
    z'      = GRU(W [self(q); edge features; cos(w tau + b)], z)      every slot (q, z) of u's and v's caches, when read
    h       = sum over distinct q of act(W_z sum z' + E[code(q)])     code: in which hops of u and of v q sits, 6 bits
    self'   = GRU(W' [self(partner); edge features; cos(w tau + b)], self), from the node's last event
    logit   = MLP [h; self'(u); self'(v)]
Then the event is written: u's caches take v and what v has in hop 1, v's those of u (`temporal.NCache.update`), and
self' becomes self.

What the release does otherwise: ids and times in float32, a hash that reaches a quarter of the slots for even seeds,
batches shuffled, of two writes to one slot either may stay. It has no activation between the map of a key and the sum
(`activation="none"` here), so that the join of the two neighbourhoods matters for the codes alone; its dropout lies in
front of the sum, here behind it. Softmax attention is in the paper and not in the release, nor here.

Gradients: from the loss to all weights and to the frequencies of time, through what the batch reads. What is stored has
none: there is no gradient from one batch to another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from anabranch.temporal import (
    EdgeList,
    NCache,
    NCacheRows,
    WholeState,
    gru_weights,
    latest_of_node,
    ordered_scatter_,
    pair_encode,
)
from anabranch.temporal.stream_state import check_no_nan, host_may_look
from anabranch.temporal.whole_state import largest_id


class NATRows(NamedTuple):
    """What a batch read: caches and updated self states of its nodes, sources first, then destinations, then others."""

    nodes: Tensor
    cache: NCacheRows
    self_states: Tensor


class NAT(WholeState):
    """Neighborhood-aware temporal network, on `anabranch.temporal`.

    Args:
        num_nodes: nodes are numbers in [0, num_nodes).
        edge_features: float `[events, De]` by event id, or None.
        slots: M1 and M2, slots a node has for its first and second hop.
        state_size: F, numbers kept in a slot.
        self_size: numbers of a node's own state.
        position_size: of the embedding of the 64 codes.
        hidden_size: of the pair's feature h.
        time_size: number of cosines of time.
        time_origin, time_scale: tau = (time - time_origin) * time_scale; give the stream's first time and, where times
            are not seconds, the length of their unit in seconds.
        activation: of a key's feature, "relu" or, as in the release, "none".
        replace_probability, seed: of `NCache`.
        dropout: on h.

    State besides the parameters: the cache, self states and last partners, all in `state_dict`, so that a run that is
    saved, loaded and continued is the one that never stopped; dropout wants torch's generator saved too.

    Raises:
        ValueError: edge_features has a NaN (CPU).
    """

    edge_features: Tensor | None
    slot_codes: Tensor
    self_states: Tensor
    partner: Tensor
    partner_event: Tensor
    partner_time: Tensor

    def __init__(
        self,
        num_nodes: int,
        edge_features: Tensor | None = None,
        *,
        slots: tuple[int, int] = (32, 16),
        state_size: int = 4,
        self_size: int = 72,
        position_size: int = 16,
        hidden_size: int = 100,
        time_size: int = 1,
        time_origin: int = 0,
        time_scale: float = 1.0,
        activation: Literal["none", "relu"] = "relu",
        replace_probability: float = 0.7,
        seed: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_no_nan("NAT", edge_features=edge_features)
        edge_size = 0 if edge_features is None else edge_features.shape[1]
        inputs = self_size + edge_size + time_size
        self.activation: Literal["none", "relu"] = activation
        self.time_origin, self.time_scale = time_origin, time_scale
        self.cache = NCache(num_nodes, slots, state_size, replace_probability=replace_probability, seed=seed)
        self.frequency = nn.Parameter(torch.logspace(0, -9, time_size) if time_size > 1 else torch.ones(time_size))
        self.phase = nn.Parameter(torch.zeros(time_size))
        self.slot_map = nn.Linear(inputs, state_size, bias=False)
        self.slot_gru = nn.GRUCell(state_size, state_size)
        self.self_map = nn.Linear(inputs, self_size, bias=False)
        self.self_gru = nn.GRUCell(self_size, self_size)
        self.code_embedding = nn.Embedding(64, position_size)
        self.key_map = nn.Linear(state_size + position_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        width = hidden_size + 2 * self_size
        self.readout = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        nn.init.xavier_uniform_(self.key_map.weight)
        nn.init.zeros_(self.key_map.bias)
        for layer in self.readout:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
        codes = [1, *[2] * slots[0], *[4] * slots[1]]
        self.register_buffer("edge_features", edge_features, persistent=False)
        self.register_buffer("slot_codes", torch.tensor(codes, dtype=torch.int32), persistent=False)
        self.register_buffer("self_states", torch.zeros(num_nodes, self_size))
        for name in ("partner", "partner_event", "partner_time"):
            self.register_buffer(name, torch.full((num_nodes,), -1))

    def state_problems(self, given: Mapping[str, Any]) -> Iterator[str]:
        yield from super().state_problems(given)
        if (node := largest_id(given, "partner")) >= self.cache.num_nodes:
            yield f"partner holds node {node}, must be below {self.cache.num_nodes}; the state is damaged"

    def reset_state(self) -> None:
        """Forgets every event; the parameters stay."""
        self.cache.reset()
        self.self_states.zero_()
        for table in (self.partner, self.partner_event, self.partner_time):
            table.fill_(-1)

    def read(self, nodes: Tensor) -> NATRows:
        """Caches and self states of nodes int64 `[B]`, brought up to date."""
        cache = self.cache.read_updated(
            nodes,
            self.self_states,
            self.edge_features,
            self.frequency,
            self.phase,
            gru_weights(self.slot_map.weight, self.slot_gru),
            time_origin=self.time_origin,
            time_scale=self.time_scale,
        )
        return NATRows(nodes, cache, self._self_states(nodes))

    def _self_states(self, nodes: Tensor) -> Tensor:
        partner, before = self.partner[nodes], self.self_states[nodes]
        parts = [self.self_states[partner.clamp(min=0)]]
        if self.edge_features is not None:
            parts.append(self.edge_features[self.partner_event[nodes].clamp(min=0)])
        tau = (self.partner_time[nodes] - self.time_origin).double() * self.time_scale
        angle = tau[:, None] * self.frequency.double() + self.phase.double()
        parts.append(torch.cos(angle).to(before.dtype))
        after = self.self_gru(self.self_map(torch.cat(parts, 1)), before)
        return torch.where((partner >= 0)[:, None], after, before)  # nodes that never met anyone stay at 0

    def score(self, rows: NATRows, left: Tensor, right: Tensor) -> Tensor:
        """Logits `[P]` of the pairs of rows (left[p], right[p])."""
        split = self.cache.state_size
        table = self.code_embedding.weight @ self.key_map.weight[:, split:].T + self.key_map.bias
        pair = pair_encode(
            rows.cache.keys,
            rows.cache.z,
            self.slot_codes,
            left,
            right,
            self.key_map.weight[:, :split],
            table,
            self.activation,
        )
        features = [self.dropout(pair), rows.self_states[left], rows.self_states[right]]
        logits: Tensor = self.readout(torch.cat(features, 1))
        return logits[:, 0]

    def forward(self, src: Tensor, dst: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, NATRows]:
        """Logits of events and of others that did not happen.

        Args:
            src, dst: int64 `[B]`.
            negatives: int64 `[B, K]`, for each event other destinations.

        Returns:
            Logits `[B]` and `[B, K]`, and what was read, for `insert`.
        """
        events, others = negatives.shape
        rows = self.read(torch.cat([src, dst, negatives.flatten()]))
        first = torch.arange(events, device=src.device)
        left = torch.cat([first, first.repeat_interleave(others)])
        logits = self.score(rows, left, torch.arange(events, len(rows.nodes), device=src.device))
        return logits[:events], logits[events:].view(events, others), rows

    @torch.no_grad()
    def insert(self, events: EdgeList, rows: NATRows) -> Tensor:
        """Writes a batch; `rows` is what forward read for it. After the backward: it changes what that reads.

        Returns:
            The counts of `NCache.update`: writes offered, collisions and replacements in each hop.

        Raises:
            ValueError: as `NCache.update`; on the CPU also an event without a row of edge_features, which no later read
                could find. Nothing has been written then.
        """
        src, dst = events.src, events.dst
        if self.edge_features is not None and host_may_look(events.event_id):
            known, newest_event = len(self.edge_features), int(events.event_id.max())
            if newest_event >= known:
                raise ValueError(
                    f"insert: event_id has {newest_event}, must be below {known} as edge_features has {known} rows; "
                    "make the model with the features of all events"
                )
        stats = self.cache.update(src, dst, events.time, events.event_id, rows.cache)
        ends = torch.cat([src, dst])
        ordered_scatter_(self.self_states, ends, rows.self_states[: len(ends)])
        newest = torch.where(latest_of_node(ends, events.time.repeat(2), events.event_id.repeat(2)), ends, -1)
        for table, values in (
            (self.partner, torch.cat([dst, src])),
            (self.partner_event, events.event_id.repeat(2)),
            (self.partner_time, events.time.repeat(2)),
        ):
            ordered_scatter_(table[:, None], newest, values[:, None])
        return stats
