"""NAT's step of training for `bench temporal`, beside the same model composed of torch's ops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from anabranch.cli.bench_index_rows import Rate, timed
from anabranch.cli.bench_rows import Workload
from anabranch.cli.peers_nat import ComposedNAT
from anabranch.papers.link_prediction import train_epoch
from anabranch.papers.nat import NAT
from anabranch.temporal import EdgeList, NegativeSampler, pair_join

LEARNING_RATE = 3e-4
_SEEN_BATCH = 500


class NatSteps:
    """Models that have seen the beginning of a stream, and the events after it.

    Args:
        name: of the stream.
        seen, events: how many of its events are taken in first, and then trained on.
        features: numbers of the edge features of the second model, all 0: the release of NAT needs some where a stream
            has none, and its speed was measured with 100 of them.
    """

    def __init__(self, name: str, edges: EdgeList, seen: int, events: int, features: int) -> None:
        self.name, self.edges, self.features = name, edges, features
        self.seen, self.next = edges[:seen], edges[seen : seen + events]
        self.sampler = NegativeSampler(edges.dst, 0)
        self._models: dict[int, NAT] = {}

    def model(self, features: int) -> NAT:
        """A NAT that has seen the beginning, with so many edge features."""
        if features not in self._models:
            model = NAT(self.edges.num_nodes, **self._options(features)).to(self.edges.src.device)
            with torch.no_grad():
                for batch in self.seen.batches(_SEEN_BATCH):
                    rows = model.read(torch.cat([batch.src, batch.dst]))
                    model.insert(batch, rows)
            self._models[features] = model
        return self._models[features]

    def workloads(self, batch: int) -> Iterator[Workload]:
        """Without edge features, and with those that the release has."""
        for features in (0, self.features):
            model = self.model(features)
            composed = ComposedNAT(self.edges.num_nodes, **self._options(features)).to(self.edges.src.device)
            composed.load_state_dict(model.state_dict())
            name = f"NAT {self.name}" + (f", {features} zeros" if features else "")
            events = self.next[: max(len(self.next) // batch, 1) * batch]
            contenders: dict[str, Callable[[], object]] = {
                "temporal": _training(copy.deepcopy(model), events, self.sampler, batch),
                "torch": _training(composed, events, self.sampler, batch),
            }
            yield Workload(name, batch, batch, contenders, self._flops(model), 0)

    def _options(self, features: int) -> dict[str, Any]:
        edges = self.edges
        zeros = torch.zeros(len(edges), features, device=edges.src.device) if features else None
        return {"edge_features": zeros, "time_origin": int(edges.time[0])}

    def _flops(self, model: NAT) -> int:
        """Of an event's step: products of its three nodes' rows and two pairs, forward and twice as much backward.

        The self GRU, the slot GRU of occupied slots, the features of distinct keys, and the readout, as the cache has
        them when the measurement begins. A node that comes twice in a batch has its rows twice.
        """
        events = self.next[:_SEEN_BATCH]
        nodes = torch.cat([events.src, events.dst, self.sampler.sample(events.event_id)[:, 0]])
        rows = model.cache.read(nodes)
        first = torch.arange(len(events), device=nodes.device)
        right = torch.arange(len(events), len(nodes), device=nodes.device)
        keys = float(pair_join(rows.keys, rows.z, model.slot_codes, first.repeat(2), right)[3].float().mean())
        slots = float((rows.event_ids >= 0).sum(1).float().mean())
        size, self_size, inputs = model.cache.state_size, model.self_states.shape[1], model.slot_map.in_features
        hidden = model.key_map.out_features
        width = hidden + 2 * self_size
        self_gru = self_size * (inputs + 6 * self_size)
        slot_gru = 3 * size * (inputs + size)
        return round(6 * (3 * (self_gru + slots * slot_gru) + 2 * (keys * hidden * size + width * width + width)))


def _training(model: NAT, events: EdgeList, sampler: NegativeSampler, batch: int) -> Callable[[], Rate]:
    """Trains on the events from the same state in every call; only the training is timed."""
    state: dict[str, Tensor] = copy.deepcopy(model.state_dict())

    def call() -> Rate:
        model.load_state_dict(state)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
        return timed(
            lambda: train_epoch(model, optimizer, events, sampler, batch_size=batch), len(events), events.src.device
        )

    return call
