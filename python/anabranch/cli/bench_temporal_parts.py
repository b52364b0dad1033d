"""What NAT and TGN are made of, for `bench temporal`: joined pairs of nodes, writes to the cache, memories,
common neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from anabranch.cli import peers_temporal as peers
from anabranch.cli.bench_index_rows import Rate, timed
from anabranch.cli.bench_rows import Contenders, Stopwatch, Workload
from anabranch.cli.bench_temporal_nat import NatSteps
from anabranch.cli.peers_nat import ComposedCache, encode, join
from anabranch.temporal import EdgeList, MemoryTable, NCache, csr_from_edges, pair_encode, pair_join, row_set_sum

_HOPS = (32, 16)
_STATE, _HIDDEN = 4, 100
_CHOICES = 8  # keys that share a slot of one hop
_RAW, _MEMORY = 172, 100  # as Wikipedia's messages are, and as PyG's example has memories
_UPDATES, _MEMORY_BATCHES = 8, 10  # batches of a measurement


class Parts:
    """Contenders of single parts.

    Args:
        steps: whose stream and cache are used.
        stopwatch: of the pairs, which are measured from a cold cache.
    """

    def __init__(self, steps: NatSteps, stopwatch: Stopwatch) -> None:
        self.steps, self.stopwatch, self.device = steps, stopwatch, steps.edges.src.device

    def pairs(self, pairs: int) -> Iterator[Workload]:
        """Two full sets of slots each, of rows that are in one pair alone: joined, encoded, encoded and back."""
        keys, z, codes = self._slots(2 * pairs)
        left = torch.arange(pairs, device=self.device)
        right = left + pairs
        sets = keys, z, codes, left, right
        slots = keys.shape[1]
        num_keys = int(keys.max()) + 1
        weight, table = (torch.randn(*shape, device=self.device) for shape in ((_HIDDEN, _STATE), (64, _HIDDEN)))
        contenders: Contenders = {
            "temporal": lambda: pair_join(*sets),
            "torch": lambda: join(*sets, num_keys),
            "dim=0": lambda: join(*sets),
        }
        read, written = 2 * slots * (8 + 4 * _STATE), 2 * slots * (8 + 4 + 4 * _STATE) + 4
        yield self._cold("pair_join", pairs, contenders, 0, read + written)

        distinct = float(pair_join(*sets)[3].float().mean())
        flops = round(distinct * _HIDDEN * (2 * _STATE + 2))

        def composed(z: Tensor, weight: Tensor, table: Tensor) -> Tensor:
            return encode(join(keys, z, codes, left, right, num_keys), pairs, weight, table, "relu")

        def ours(z: Tensor, weight: Tensor, table: Tensor) -> Tensor:
            return pair_encode(keys, z, codes, left, right, weight, table, "relu")

        forward: Contenders = {"temporal": lambda: ours(z, weight, table), "torch": lambda: composed(z, weight, table)}
        yield self._cold("pair_encode", pairs, forward, flops, read + 4 * _HIDDEN)
        learned = [one.clone().requires_grad_() for one in (z, weight, table)]
        above = torch.randn(pairs, _HIDDEN, device=self.device)
        both: Contenders = {
            "temporal": lambda: torch.autograd.grad(ours(*learned), learned, above),
            "torch": lambda: torch.autograd.grad(composed(*learned), learned, above),
        }
        # Backward: the products of both sides, and the features again where relu is; the gradient of z is written.
        yield self._cold("pair_encode +backward", pairs, both, 3 * flops, 2 * read + 2 * slots * 4 * _STATE)

    def row_sets(self, pairs: int) -> Workload:
        """NCN's sum over the common neighbours of the ends of the stream's events, in the graph of all of them."""
        events = self.steps.edges
        row_offsets, column_ids = csr_from_edges(events.src, events.dst, events.num_nodes)
        rows = torch.repeat_interleave(row_offsets.diff())
        edges = rows * events.num_nodes + column_ids
        x = torch.randn(events.num_nodes, _HIDDEN, device=self.device)
        chosen = torch.arange(pairs, device=self.device) * 7 % len(events)
        left, right = events.src[chosen], events.dst[chosen]
        contenders: Contenders = {
            "temporal": lambda: row_set_sum(x, row_offsets, column_ids, left, right),
            "torch": lambda: peers.common_neighbor_sum(x, row_offsets, column_ids, edges, left, right),
        }
        read = row_offsets.nbytes + column_ids.nbytes + x.nbytes  # all pairs together, each byte once
        return self._cold("row_set_sum", pairs, contenders, 0, round(read / pairs) + 4 * _HIDDEN)

    def cache_update(self, batch: int) -> Workload:
        """NCache.update with the rows of the stream's next events; they are read before."""
        cache = self.steps.model(0).cache
        events = self.steps.next[: max(min(len(self.steps.next), _UPDATES * batch) // batch, 1) * batch]
        work = [(part, cache.read(torch.cat([part.src, part.dst]))) for part in events.batches(batch)]

        def contender(target: NCache) -> Callable[[], Rate]:
            target.load_state_dict(cache.state_dict())

            def update() -> None:
                for part, rows in work:
                    target.update(part.src, part.dst, part.time, part.event_id, rows)

            return lambda: timed(update, len(events), self.device)

        options = {"replace_probability": cache.replace_probability, "seed": cache.seed, "device": self.device}
        kinds = {"temporal": NCache, "torch": ComposedCache}
        contenders: Contenders = {
            name: contender(kind(cache.num_nodes, cache.slots, cache.state_size, **options))
            for name, kind in kinds.items()
        }
        slot = 24 + 4 * cache.state_size
        pushed = sum(float((rows.keys[:, cache.hops()[1]] >= 0).sum(1).float().mean()) for _, rows in work) / len(work)
        # Of both ends: the key in every slot that is offered something, and the slots read and, mostly, written.
        nbytes = 2 * (pushed * (8 + slot * (1 + cache.replace_probability)) + 4 * slot)
        return Workload("NCache.update", batch, batch, contenders, 0, round(nbytes))

    def memory(self, batch: int) -> Workload:
        """TGN's step without its graph attention: memories of a batch's nodes and back, then the batch is taken in."""
        edges = self.steps.edges
        sizes = edges.num_nodes, _MEMORY, _RAW
        made: dict[str, nn.Module] = {"temporal": MemoryTable(*sizes, time_dim=_MEMORY)}
        if peers.has_pyg():
            made["PyG"] = peers.pyg_memory(edges.num_nodes, _RAW, _MEMORY, _MEMORY)
        raw = torch.randn(batch, _RAW, device=self.device)
        parts = list(edges[: 2 * _MEMORY_BATCHES * batch].batches(batch))
        negatives = self.steps.sampler.sample(edges.event_id)[:, 0]
        nodes = [torch.cat([part.src, part.dst, negatives[part.event_id]]).unique() for part in parts]
        half = len(parts) // 2
        timed_events = sum(len(part) for part in parts[half:])

        def contender(memory: nn.Module) -> Callable[[], Rate]:
            memory.to(self.device).train()

            def steps(numbers: range) -> None:
                for number in numbers:
                    _memory_step(memory, parts[number], nodes[number], raw[: len(parts[number])])

            def call() -> Rate:
                memory.reset_state()  # type: ignore[operator]
                steps(range(half))
                return timed(lambda: steps(range(half, len(parts))), timed_events, self.device)

            return call

        width = 2 * _MEMORY + _RAW + _MEMORY
        rows = sum(len(one) for one in nodes[half:]) / timed_events
        flops = round(3 * rows * 2 * 3 * _MEMORY * (width + _MEMORY))
        return Workload("memory step", batch, batch, {n: contender(m) for n, m in made.items()}, flops, 0)

    def _slots(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Full sets: a slot has one of a few keys, which are distinct within a hop and come in both hops."""
        draw = torch.Generator().manual_seed(rows)
        keys = [torch.arange(1) + torch.randint(_CHOICES * _HOPS[0], (rows, 1), generator=draw)]
        for length in _HOPS:
            keys.append(torch.arange(length) + length * torch.randint(_CHOICES, (rows, length), generator=draw))
        z = torch.randn(rows, 1 + sum(_HOPS), _STATE, generator=draw)
        codes = torch.tensor([1, *[2] * _HOPS[0], *[4] * _HOPS[1]], dtype=torch.int32)
        return torch.cat(keys, 1).to(self.device), z.to(self.device), codes.to(self.device)

    def _cold(self, name: str, pairs: int, calls: Contenders, flops: int, nbytes: int) -> Workload:
        def contender(call: Callable[[], object]) -> Callable[[], Rate]:
            return lambda: Rate(1e3 * pairs / self.stopwatch.milliseconds(call))

        return Workload(name, pairs, pairs, {n: contender(call) for n, call in calls.items()}, flops, nbytes)


def _memory_step(memory: nn.Module, events: EdgeList, nodes: Tensor, raw: Tensor) -> None:
    memory.zero_grad(set_to_none=True)
    found, _ = memory(nodes)
    found.square().mean().backward()
    memory.update_state(events.src, events.dst, events.time, raw)  # type: ignore[operator]
    memory.detach()  # type: ignore[operator]
