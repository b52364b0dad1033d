"""NAT composed of torch's own ops: the join of two sets of slots, the N-cache, and the model on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anabranch.papers.nat import NAT, NATRows
from anabranch.temporal import GruWeights, NCache, NCacheRows
from anabranch.temporal.hashing import below, chained_hash


class Joined(NamedTuple):
    """Distinct keys of pairs, by pair and key: pairs, keys and codes int64 `[n]`, z `[n, F]`."""

    pairs: Tensor
    keys: Tensor
    codes: Tensor
    z: Tensor


def join(
    keys: Tensor, z: Tensor, slot_codes: Tensor, left: Tensor, right: Tensor, num_keys: int | None = None
) -> Joined:
    """What `pair_join` finds, by one `unique` over all pairs; arguments as there.

    Args:
        num_keys: keys are below it: (pair, key) is then one number, and otherwise a row of two (`unique(dim=0)`).
    """
    both = torch.cat([keys[left], keys[right]], 1)
    there = both >= 0
    pair = torch.arange(len(left), device=keys.device)[:, None].expand_as(both)[there]
    if num_keys is None:
        found, place = torch.stack([pair, both[there]], 1).unique(dim=0, return_inverse=True)
        pairs, distinct = found.unbind(1)
    else:
        packed, place = (pair * num_keys + both[there]).unique(return_inverse=True)
        pairs, distinct = packed // num_keys, packed % num_keys
    codes = torch.cat([slot_codes, 8 * slot_codes]).long().expand_as(both)[there]
    states = torch.cat([z[left], z[right]], 1)[there]
    return Joined(
        pairs,
        distinct,
        codes.new_zeros(len(pairs)).index_add_(0, place, codes),
        states.new_zeros(len(pairs), z.shape[2]).index_add(0, place, states),
    )


def encode(joined: Joined, num_pairs: int, weight: Tensor, code_table: Tensor, activation: str) -> Tensor:
    """What `pair_encode` makes of the join."""
    features = joined.z @ weight.T + code_table[joined.codes]
    if activation == "relu":
        features = features.relu()
    return features.new_zeros(num_pairs, len(weight)).index_add(0, joined.pairs, features)


class ComposedCache(NCache):
    """An NCache that is read and written by torch's ops.

    Of the writes to one slot that go in, the last stays, as in NCache. But whether one goes in is decided by what was
    in the slot before the batch, and by `torch.rand`; so states differ from NCache's unless the probability is 1.
    """

    slots_of_hop1: Tensor
    slots_of_hop2: Tensor

    def __init__(self, num_nodes: int, slots: Sequence[int], state_size: int, **options: Any) -> None:
        super().__init__(num_nodes, slots, state_size, **options)
        nodes = torch.arange(num_nodes, device=self.keys.device)
        seed = torch.full_like(nodes[:1], self.seed)
        for hop, (length, first) in enumerate(zip(slots, (1, 1 + slots[0]), strict=True), start=1):
            chain = chained_hash(seed, torch.full_like(seed, hop))
            slots_of_hop = first + below(chained_hash(chain, nodes), length)
            self.register_buffer(f"slots_of_hop{hop}", slots_of_hop, persistent=False)

    def read_updated(
        self,
        nodes: Tensor,
        node_features: Tensor,
        edge_features: Tensor | None,
        frequency: Tensor,
        phase: Tensor,
        gru: GruWeights,
        *,
        time_origin: int = 0,
        time_scale: float = 1.0,
    ) -> NCacheRows:
        keys, event_ids, times = self.keys[nodes], self.event_ids[nodes], self.times[nodes]
        there = keys >= 0
        parts = [node_features[keys[there]]]
        if edge_features is not None:
            parts.append(edge_features[event_ids[there]])
        tau = (times[there] - time_origin).double() * time_scale
        parts.append(torch.cos(tau[:, None] * frequency.double() + phase.double()).float())
        before = self.states[nodes]
        after = torch.gru_cell(torch.cat(parts, 1), before[there], gru.weight, gru.weight_hh, gru.bias, gru.bias_hh)
        keys[:, 0] = nodes
        return NCacheRows(keys, event_ids, times, torch.zeros_like(before).masked_scatter(there[..., None], after))

    @torch.no_grad()
    def update(self, src: Tensor, dst: Tensor, time: Tensor, event_id: Tensor, rows: NCacheRows) -> Tensor:
        """As NCache's; the counts stay 0."""
        writes = self._writes(src, dst, time, event_id, NCacheRows(*(one.detach()[: 2 * len(src)] for one in rows)))
        places, keys, events, times, states, order = (torch.cat(column) for column in zip(*writes, strict=True))
        held = self.keys.view(-1)[places]
        goes_in = (held < 0) | (held == keys)
        goes_in |= torch.rand(len(keys), device=keys.device) < self.replace_probability
        # The last write of each place: its number in the order of writes is the greatest.
        distinct, group = places[goes_in].unique(return_inverse=True)
        last = order.new_full((len(distinct),), -1).scatter_reduce_(0, group, order[goes_in], "amax")
        stays = goes_in.clone()
        stays[goes_in] = last[group] == order[goes_in]
        places = places[stays]
        for table, values in ((self.keys, keys), (self.event_ids, events), (self.times, times)):
            table.view(-1)[places] = values[stays]
        self.states.view(-1, self.state_size)[places] = states[stays]
        return self.keys.new_zeros(3, 3)

    def _writes(
        self, src: Tensor, dst: Tensor, time: Tensor, event_id: Tensor, rows: NCacheRows
    ) -> list[tuple[Tensor, ...]]:
        """(place, key, event, time, state, number in the order of writes) of what hops 2, 1 and 0 are offered."""
        owner, other = torch.cat([src, dst]), torch.cat([dst, src])
        event, when = event_id.repeat(2), time.repeat(2)
        events, slots, length = len(src), self.keys.shape[1], self.slots[0]
        order = torch.arange(events, device=src.device) * 2
        order = torch.cat([order, order + 1])
        first = owner * slots
        hop = self.hops()[1]
        pushed = [table.roll(events, 0)[:, hop] for table in rows]
        there = pushed[0] >= 0
        place = first[:, None] + self.slots_of_hop2[pushed[0].clamp(min=0)]
        number = order[:, None] * length + torch.arange(length, device=src.device)
        hop2 = (place[there], *(table[there] for table in pushed), number[there])
        slot = self.slots_of_hop1[other]
        row = torch.arange(2 * events, device=src.device)
        held = (rows.keys[row, slot] == other)[:, None]
        hop1 = (first + slot, other, event, when, torch.where(held, rows.z[row, slot], 0), order)
        return [hop2, hop1, (first, owner, event, when, rows.z[:, 0], order)]


class ComposedNAT(NAT):
    """NAT with every kernel of the temporal room replaced by torch's ops; parameters and buffers as NAT's."""

    def __init__(self, num_nodes: int, edge_features: Tensor | None = None, **options: Any) -> None:
        super().__init__(num_nodes, edge_features, **options)
        cache = self.cache
        self.cache = ComposedCache(
            num_nodes,
            cache.slots,
            cache.state_size,
            replace_probability=cache.replace_probability,
            seed=cache.seed,
        )

    def score(self, rows: NATRows, left: Tensor, right: Tensor) -> Tensor:
        split = self.cache.state_size
        table = self.code_embedding.weight @ self.key_map.weight[:, split:].T + self.key_map.bias
        keys, z = rows.cache.keys, rows.cache.z
        joined = join(keys, z, self.slot_codes, left, right, self.cache.num_nodes)
        pair = encode(joined, len(left), self.key_map.weight[:, :split], table, self.activation)
        features = [self.dropout(pair), rows.self_states[left], rows.self_states[right]]
        logits: Tensor = self.readout(torch.cat(features, 1))
        return logits[:, 0]
