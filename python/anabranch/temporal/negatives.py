"""`NegativeSampler`: events that did not happen, the same whatever the batch size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anabranch.core.arguments import check_same_device, dtype_name
from anabranch.temporal.edge_list import EdgeList
from anabranch.temporal.hashing import below, chained_hash
from anabranch.temporal.stream_state import check_nodes


class NegativeSampler(nn.Module):
    """Draws destinations for events: uniformly, or of those that their source had before.

    Draw number j of an event is a hash of (seed, epoch, event id, j), not the state of a generator: it does not depend
    on batches, order or device, and a run that is continued draws what an undisturbed one does.

    Args:
        dst_nodes: int64, nodes to draw from; twice the same node counts once.
        seed: of all draws.
        history: for `sample_historical`: the events whose destinations it draws, as a rule the training part.

    Raises:
        ValueError: dst_nodes of another dtype, or empty.

    Source: historical negatives are those of Poursafaei et al., "Towards Better Evaluation for Dynamic Link Prediction"
    (arXiv 2207.10128).
    """

    dst_nodes: Tensor
    history_offsets: Tensor
    history_dst: Tensor

    def __init__(self, dst_nodes: Tensor, seed: int = 0, *, history: EdgeList | None = None) -> None:
        super().__init__()
        if dst_nodes.dtype != torch.int64 or dst_nodes.numel() == 0:
            raise ValueError(
                f"NegativeSampler: dst_nodes is {dtype_name(dst_nodes.dtype)} of shape {tuple(dst_nodes.shape)}, must "
                "be int64 with a node or more; give edges.dst"
            )
        self.seed = seed
        self.register_buffer("dst_nodes", dst_nodes.unique())
        offsets = destinations = dst_nodes.new_empty(0)
        if history is not None:
            check_same_device("NegativeSampler", "dst_nodes", dst_nodes, history=history.src)
            pairs = torch.stack([history.src, history.dst], dim=1).unique(dim=0)
            ends = torch.bincount(pairs[:, 0], minlength=history.num_nodes).cumsum(0)
            offsets = torch.cat([ends.new_zeros(1), ends])
            destinations = pairs[:, 1].contiguous()
        self.register_buffer("history_offsets", offsets)
        self.register_buffer("history_dst", destinations)

    def forward(self, event_id: Tensor, k: int = 1, *, epoch: int = 0, exclude: Tensor | None = None) -> Tensor:
        """`sample`."""
        return self.sample(event_id, k, epoch=epoch, exclude=exclude)

    def sample(self, event_id: Tensor, k: int = 1, *, epoch: int = 0, exclude: Tensor | None = None) -> Tensor:
        """k destinations for each event, each uniform over all, with replacement.

        Args:
            event_id: int64 `[B]`.
            k: draws an event.
            epoch: another one, other draws.
            exclude: int64 `[B]`, a node never drawn for that event: the true destination. The others are as likely as
                each other. Where it is the only node to draw from, it is drawn.

        Returns:
            int64 `[B, k]`.

        Raises:
            ValueError: k below 1, shapes, dtypes or devices that do not fit.

        Cost:
            Elementwise, no host sync.
        """
        hashes = self._hashes("sample", event_id, k, epoch, exclude=exclude)
        nodes, count = self.dst_nodes, len(self.dst_nodes)
        if exclude is None or count == 1:
            return nodes[below(hashes, count)]
        place = torch.searchsorted(nodes, exclude).clamp(max=count - 1)
        member = (nodes[place] == exclude)[:, None]
        drawn = below(hashes, torch.where(member, count - 1, count))
        return nodes[drawn + (member & (drawn >= place[:, None]))]

    def sample_historical(
        self, event_id: Tensor, src: Tensor, k: int = 1, *, epoch: int = 0, exclude: Tensor | None = None
    ) -> Tensor:
        """k destinations for each event out of those that its source had in the history.

        Each is uniform over the source's distinct ones, with replacement; where it had none but the excluded one,
        uniform over all destinations, as `sample` draws it. Arguments, errors and cost as `sample`; src int64 `[B]`,
        nodes of the history (CPU; on a GPU others had none).
        """
        hashes = self._hashes("sample_historical", event_id, k, epoch, src=src, exclude=exclude)
        if len(self.history_offsets) == 0:
            raise ValueError("NegativeSampler.sample_historical: history is None, must be events; give history=")
        num_nodes = len(self.history_offsets) - 1
        check_nodes("NegativeSampler.sample_historical", num_nodes, self.dst_nodes, src=src)
        last = self.history_offsets.new_full((), num_nodes)
        first = torch.where((src < 0) | (src >= last), last, src)
        start, end = self.history_offsets[first], self.history_offsets[torch.minimum(first + 1, last)]
        if len(self.history_dst) == 0:
            return self.sample(event_id, k, epoch=epoch, exclude=exclude)
        count, place = end - start, end
        if exclude is not None:
            place = self._place_in_history(start, end, exclude)
            known = self.history_dst[place.clamp(max=len(self.history_dst) - 1)]
            member = (place < end) & (known == exclude)
            count, place = count - member.long(), torch.where(member, place, end)
        drawn = start[:, None] + below(hashes, count[:, None])
        drawn = drawn + (drawn >= place[:, None])
        chosen = self.history_dst[drawn.clamp(max=len(self.history_dst) - 1)]
        return torch.where(count[:, None] > 0, chosen, self.sample(event_id, k, epoch=epoch, exclude=exclude))

    def _place_in_history(self, start: Tensor, end: Tensor, node: Tensor) -> Tensor:
        """The first place in [start, end) of a node not below this one, by halving all ranges at once."""
        last = len(self.history_dst) - 1
        for _ in range(last.bit_length() + 1):
            middle = (start + end) // 2
            less = (start < end) & (self.history_dst[middle.clamp(max=last)] < node)
            start, end = torch.where(less, middle + 1, start), torch.where(less, end, middle)
        return start

    def _hashes(self, method: str, event_id: Tensor, k: int, epoch: int, **others: Tensor | None) -> Tensor:
        op = f"NegativeSampler.{method}"
        if k < 1:
            raise ValueError(f"{op}: k is {k}, must be at least 1; ask for a draw or more")
        check_same_device(op, "dst_nodes", self.dst_nodes, event_id=event_id, **others)
        for name, column in (("event_id", event_id), *others.items()):
            if column is not None and (
                column.dtype != torch.int64 or column.dim() != 1 or len(column) != len(event_id)
            ):
                raise ValueError(
                    f"{op}: {name} is {dtype_name(column.dtype)} of shape {tuple(column.shape)}, must be int64 of "
                    f"shape (B,) like event_id; give each event one"
                )
        chain = chained_hash(torch.full_like(event_id, self.seed), torch.full_like(event_id, epoch))
        number = torch.arange(k, device=event_id.device)
        return chained_hash(chained_hash(chain, event_id)[:, None], number)
