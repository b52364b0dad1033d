"""`NCache`: hashed slots of every node's neighbours, one or two hops around, with a small state each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anabranch.core.arguments import check_same_device
from anabranch.core.library import ops
from anabranch.temporal.ncache_read import GruWeights, NCacheRows, ncache_read
from anabranch.temporal.ncache_settings import check_settings, problem_of_settings
from anabranch.temporal.whole_state import WholeState, largest_id

_TABLES = ("keys", "event_ids", "times", "states")


class NCache(WholeState):
    """The neighbourhood cache of NAT: per node 1 + M1 (+ M2) slots, of the node itself, of hop 1 and of hop 2.

    Args:
        num_nodes: nodes are numbers in `[0, num_nodes)`; see `grow`.
        slots: `(M1, M2)`, or `(M1,)` for one hop.
        state_size: F, numbers of state in each slot.
        replace_probability: chance of a write to take a slot that another neighbour holds.
        seed: of the hashes that choose slots and draw replacements, any int64; every slot is reachable for every seed.
        dtype: of the states: float32, bfloat16, float16 or float64.
        device: of the buffers.

    A neighbour has one slot in a hop, given by a hash, so neighbours compete for it; nothing else is random. What an
    update does is specified to the bit: the same on every device, for any number of threads, and the writes of a batch
    are as if applied one by one.

    Buffers: `keys`, `event_ids`, `times` int64 `[N, S]`, -1 where empty, and `states` `[N, S, F]`. With them the seed,
    the probability and the slots are in `state_dict`. A state of another number of nodes, of other slots or of another
    dtype is refused, and nothing of it is loaded.

    Source:
        Luo and Li, "Neighborhood-aware Scalable Temporal Network Representation Learning", arXiv 2209.01084. Different
        are the hash (all slots reachable), ids and times as integers, and who wins a slot within a batch.
    """

    keys: Tensor
    event_ids: Tensor
    times: Tensor
    states: Tensor

    def __init__(
        self,
        num_nodes: int,
        slots: Sequence[int] = (32, 16),
        state_size: int = 4,
        *,
        replace_probability: float = 0.9,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_settings(num_nodes, slots, state_size, replace_probability, seed, dtype)
        self.slots = tuple(slots)
        self.replace_probability = float(replace_probability)
        self.seed = seed
        shape = (num_nodes, 1 + sum(slots))
        for name in _TABLES[:3]:
            self.register_buffer(name, torch.full(shape, -1, dtype=torch.int64, device=device))
        self.register_buffer("states", torch.zeros(*shape, state_size, dtype=dtype, device=device))

    @property
    def num_nodes(self) -> int:
        return self.keys.shape[0]

    @property
    def state_size(self) -> int:
        return self.states.shape[2]

    def hops(self) -> list[slice]:
        """Where the slots of hop 0, 1 (and 2) are among a node's."""
        found, first = [slice(0, 1)], 1
        for length in self.slots:
            found.append(slice(first, first + length))
            first += length
        return found

    def read(self, nodes: Tensor) -> NCacheRows:
        """The slots of nodes int64 `[B]` as they are stored; no gradient.

        Raises:
            ValueError: as `ncache_read`. On a GPU a node out of range has empty slots and no key.
        """
        check_same_device("ncache_gather", "keys", self.keys, nodes=nodes)
        return NCacheRows(*ops.ncache_gather(self.keys, self.event_ids, self.times, self.states, nodes))

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
        """The slots of nodes, states brought up to date by a GRU: `ncache_read` of this cache.

        Args:
            nodes: int64 `[B]`.
            node_features: `[num_nodes, D]`, by neighbour.
            edge_features: `[events, De]` by event id, or None.
            frequency, phase: `[Dt]`, of the cosines of time.
            gru: the weights that every slot's GRU shares, of `gru_weights`.
            time_origin, time_scale: an event's time t enters as `(t - time_origin) * time_scale`.

        Returns:
            `NCacheRows` of `[B, S]` slots; occupied ones have their new states, empty ones zeros. Nothing is stored.

        Raises, Gradient, Cost: as `ncache_read`.
        """
        return ncache_read(
            self.keys,
            self.event_ids,
            self.times,
            self.states,
            nodes,
            node_features,
            edge_features,
            frequency,
            phase,
            gru,
            time_origin=time_origin,
            time_scale=time_scale,
        )

    def update(self, src: Tensor, dst: Tensor, time: Tensor, event_id: Tensor, rows: NCacheRows) -> Tensor:
        """Writes a batch of events to the cache, as if its writes were applied one by one.

        For an event (u, v, e, t), of u: hop 2 is offered every occupied hop-1 slot of v's row, hop 1 is offered v with
        (e, t) and the state that u's row has for v (0 where it has none), and hop 0 becomes u with (e, t) and the state
        that its row has; then the same of v. An offer goes in if its slot is empty or holds the same key, and else with
        the probability of replacing, drawn by a hash of the seed, event, node, hop and key.

        Args:
            src, dst, time, event_id: int64 `[E]`, in the order of (time, event id), event ids at least 0. On a GPU the
                order is not checked: writes come in the order of the batch, and an event with a node out of range or a
                negative id is passed over.
            rows: what was read for the sources, then for the destinations, before the batch; what follows is not
                looked at, so rows of `cat([src, dst, negatives])` may be passed as they are. Only values are taken:
                states get no gradient.

        Returns:
            int64 `[3, 3]`: for hop 0, 1, 2 the writes offered, those whose slot held another key, and those of them
            that replaced it.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit; on the CPU also nodes out of range, negative event
                ids and events out of order. Nothing has been written then.

        Cost:
            About 2 us an event of one core for 32 + 16 slots of 4 numbers. One launch on a GPU for each 8192 events,
            no synchronisation.
        """
        check_same_device("ncache_update", "keys", self.keys, src=src, dst=dst, time=time, event_id=event_id)
        check_same_device("ncache_update", "keys", self.keys, **{f"rows.{k}": v for k, v in rows._asdict().items()})
        used = 2 * src.shape[0] if src.dim() > 0 else 0
        stats: Tensor = ops.ncache_update(
            self.keys,
            self.event_ids,
            self.times,
            self.states,
            src,
            dst,
            time,
            event_id,
            *(one.detach()[:used] for one in rows),
            self.slots,
            self.replace_probability,
            self.seed,
        )
        return stats

    def occupancy(self) -> Tensor:
        """float32 `[hops]`: which part of the slots of hop 0, 1 (and 2) is occupied."""
        return torch.stack([(self.keys[:, hop] >= 0).float().mean() for hop in self.hops()])

    def grow(self, num_nodes: int) -> None:
        """Makes room for more nodes, with empty slots, by copying the cache. Nobody may be using it.

        Raises:
            ValueError: num_nodes is less than there are; the cache is in shared memory, where other processes would
                keep the old one.
        """
        if num_nodes < self.num_nodes:
            raise ValueError(
                f"grow: num_nodes is {num_nodes}, must be at least {self.num_nodes}; reset() forgets nodes"
            )
        if self.keys.device.type == "cpu" and self.keys.is_shared():
            raise ValueError("grow: the cache is in shared memory, must be private; grow before share_memory()")
        more = num_nodes - self.num_nodes
        tables = [getattr(self, name) for name in _TABLES]
        larger = [
            torch.cat([table, table.new_full((more, *table.shape[1:]), 0 if name == "states" else -1)])
            for name, table in zip(_TABLES, tables, strict=True)
        ]
        for name, table in zip(_TABLES, larger, strict=True):  # once there is memory for all of them
            setattr(self, name, table)

    @torch.no_grad()
    def reset(self) -> None:
        """Empties every slot."""
        for name in _TABLES[:3]:
            getattr(self, name).fill_(-1)
        self.states.zero_()

    def extra_repr(self) -> str:
        return (
            f"num_nodes={self.num_nodes}, slots={self.slots}, state_size={self.state_size}, "
            f"replace_probability={self.replace_probability}, seed={self.seed}"
        )

    def get_extra_state(self) -> dict[str, Any]:
        return {"slots": list(self.slots), "replace_probability": self.replace_probability, "seed": self.seed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.replace_probability, self.seed = float(state["replace_probability"]), int(state["seed"])

    def state_problems(self, given: Mapping[str, Any]) -> Iterator[str]:
        extra = given["_extra_state"]
        if problem := problem_of_settings(extra):
            yield f"_extra_state {problem}"
        elif tuple(extra["slots"]) != self.slots:
            yield f"slots is {tuple(extra['slots'])}, must be {self.slots}; make the cache with those of the saved one"
        yield from super().state_problems(given)
        if (node := largest_id(given, "keys")) >= self.num_nodes:
            yield f"keys holds node {node}, must be below {self.num_nodes}; the state is damaged"


@torch.library.register_fake("anabranch::ncache_update")
def _(keys: Tensor, *rest: Any) -> Tensor:
    return keys.new_empty(3, 3)


@torch.library.register_fake("anabranch::ncache_gather")
def _(keys: Tensor, event_ids: Tensor, times: Tensor, states: Tensor, nodes: Tensor) -> tuple[Tensor, ...]:
    rows, slots = nodes.shape[0], keys.shape[1]
    return (*(keys.new_empty(rows, slots) for _ in range(3)), states.new_empty(rows, slots, states.shape[2]))
