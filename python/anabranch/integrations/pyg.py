"""Drop-ins for PyTorch Geometric's temporal classes: same calls, same returns, no torch_geometric needed.

    from anabranch.integrations.pyg import LastNeighborLoader, TGNMemory

in place of `torch_geometric.nn.models.tgn`. Message and aggregator modules of PyG work in TGNMemory, and its own are
here too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anabranch.temporal.memory_table import MemoryTable
from anabranch.temporal.messages import IdentityMessage, LastAggregator, MeanAggregator, TimeEncoder
from anabranch.temporal.recent_neighbors import RecentNeighbors
from anabranch.temporal.stream_state import check_nodes

__all__ = ["IdentityMessage", "LastAggregator", "LastNeighborLoader", "MeanAggregator", "TGNMemory", "TimeEncoder"]


class LastNeighborLoader:
    """The last `size` events of nodes, by event id, as a graph; PyG's class of this name, made exact.

    PyG's keeps a node's events as source before those as target where a batch has more than `size` of them, and sorts
    unstably, so that 14 to 92 % of its lists on real streams are wrong. This one's are the same whatever the batches.
    A self-loop is one neighbour of its node; PyG lists it twice, which takes another's place.

    Args:
        num_nodes: nodes are 0 to num_nodes - 1.
        size: events to keep for a node.
        device: of the state.

    `recent`, a RecentNeighbors, holds the lists, `cur_e_id` the number of the next event; save both.
    """

    def __init__(self, num_nodes: int, size: int, device: torch.device | str | None = None) -> None:
        self.size = size
        self.recent = RecentNeighbors(num_nodes, size, device=device)
        self._assoc = torch.empty(num_nodes, dtype=torch.int64, device=device)
        self.cur_e_id = 0

    def __call__(self, n_id: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The neighbours of nodes.

        Args:
            n_id: int64 `[n]`.

        Returns:
            n_id int64: these nodes and their neighbours, ascending, each once. edge_index int64 `[2, E]`, in places of
            that: the neighbour, then the node that was asked for. e_id int64 `[E]`: the number of the event.

        Raises:
            ValueError: n_id is no int64 vector on the device of the state, or is out of range (CPU).

        Cost:
            A lookup of each node, and a sort of all ids; sizes depend on values, so a GPU is waited for.
        """
        check_nodes("LastNeighborLoader", self.recent.num_nodes, self.recent.rows, n_id=n_id)
        found = self.recent.lookup(n_id)
        known = found.neighbors >= 0
        neighbors, e_id = found.neighbors[known], found.event_ids[known]
        nodes = n_id[:, None].expand(-1, self.size)[known]
        n_id = torch.cat([n_id, neighbors]).unique()
        self._assoc[n_id] = torch.arange(n_id.shape[0], device=n_id.device)
        return n_id, self._assoc[torch.stack([neighbors, nodes])], e_id

    def insert(self, src: Tensor, dst: Tensor) -> None:
        """Takes events, int64 `[E]` each, in both directions; they get the next event ids.

        Raises:
            ValueError: src and dst are no int64 vectors of one size on the device of the state, or are out of range
                (CPU). Nothing has been written then.
        """
        check_nodes("insert", self.recent.num_nodes, self.recent.rows, src=src, dst=dst)
        time = torch.arange(self.cur_e_id, self.cur_e_id + src.shape[0], device=src.device)
        self.recent.insert(src, dst, time, time)
        self.cur_e_id += src.shape[0]

    def reset_state(self) -> None:
        """Forgets all events; numbers begin with 0 again."""
        self.cur_e_id = 0
        self.recent.reset()


class TGNMemory(MemoryTable):
    """PyG's TGNMemory with its two dicts of messages in flat tensors; see MemoryTable for what it computes.

    Args:
        num_nodes, raw_msg_dim, memory_dim, time_dim: sizes.
        message_module: called with (z_src, z_dst, raw_msg, t_enc), has `out_channels`; targets get a copy.
        aggregator_module: called with (msg, index, t, dim_size). The LastAggregator of this module runs in fixed
            shapes; others, PyG's too, get the messages in the order in which PyG has them.
        untouched: "update", PyG's way with nodes for which nothing waits, or "keep".

    Values are PyG's: parameters, `memory` and `last_update` have its names. Where they differ PyG is not defined or
    wrong: equal times go to the later position in the batch, source before target, and no node gets another's message
    (PyG's own LastAggregator still gives it one). With the LastAggregator of this module a node's newest event is that
    of its latest batch, which is the same where time goes forward. Memories are stored without a gradient, so `detach`
    has nothing to do.
    """

    def __init__(
        self,
        num_nodes: int,
        raw_msg_dim: int,
        memory_dim: int,
        time_dim: int,
        message_module: nn.Module,
        aggregator_module: nn.Module,
        **options: Any,
    ) -> None:
        options.setdefault("untouched", "update")
        super().__init__(
            num_nodes,
            memory_dim,
            raw_msg_dim,
            time_dim=time_dim,
            aggregator=aggregator_module,
            message=message_module,
            **options,
        )
        self.reset_parameters()

    @property
    def device(self) -> torch.device:
        """Where the state is."""
        return self.memory.device

    def reset_parameters(self) -> None:
        """Draws all layers again and forgets all events."""
        super().reset_parameters()
        self.reset_state()
