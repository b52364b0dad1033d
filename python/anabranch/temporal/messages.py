"""What a memory's messages are made of and how a node's messages become one; the same interfaces as PyG's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anabranch.plan import from_pairs, gather, segment_reduce
from anabranch.temporal.scatter import latest_of_node


class TimeEncoder(nn.Module):
    """`cos(w t + b)`, learned: float `[...]` to `[n, out_channels]`."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.lin = nn.Linear(1, out_channels)

    def reset_parameters(self) -> None:
        """Draws the waves again."""
        self.lin.reset_parameters()

    def forward(self, t: Tensor) -> Tensor:
        """The waves at times t `[...]`: `[n, out_channels]` for n times; differentiable in t and the parameters."""
        return self.lin(t.reshape(-1, 1)).cos()


class IdentityMessage(nn.Module):
    """`[z_src; z_dst; raw_msg; t_enc]`, as it is."""

    def __init__(self, raw_msg_dim: int, memory_dim: int, time_dim: int) -> None:
        super().__init__()
        self.out_channels = raw_msg_dim + 2 * memory_dim + time_dim

    def forward(self, z_src: Tensor, z_dst: Tensor, raw_msg: Tensor, t_enc: Tensor) -> Tensor:
        """Messages of m events.

        Args:
            z_src, z_dst: `[m, memory_dim]`, the memories of the node that the message is for and of the other end.
            raw_msg: `[m, raw_msg_dim]`, the events' features.
            t_enc: `[m, time_dim]`, the encoded time since the node's last update.

        Returns:
            `[m, out_channels]`; differentiable in all four.
        """
        return torch.cat([z_src, z_dst, raw_msg, t_enc], -1)


class LastAggregator(nn.Module):
    """The newest message of each node; of equal times the last in the batch; a row of zeros for a node without one.

    PyG's, without torch_scatter, gives a node without a message somebody else's where there are more messages than
    nodes, and leaves equal times undecided.
    """

    def forward(self, msg: Tensor, index: Tensor, t: Tensor, dim_size: int) -> Tensor:
        """`msg [m, C]`, `index` int64 `[m]` below dim_size, `t` int64 `[m]`; `[dim_size, C]`, differentiable in msg."""
        # Messages that are not the newest go to a row behind the result.
        to = torch.where(latest_of_node(index, t), index, dim_size)
        return msg.new_zeros(dim_size + 1, msg.shape[-1]).index_copy(0, to, msg)[:dim_size]


class MeanAggregator(nn.Module):
    """The mean of each node's messages, summed in their order; a row of zeros for a node without any."""

    def forward(self, msg: Tensor, index: Tensor, t: Tensor, dim_size: int) -> Tensor:
        """`msg [m, C]`, `index` int64 `[m]` below dim_size; `[dim_size, C]`, differentiable in msg."""
        m = msg.shape[0]
        plan = from_pairs(torch.arange(m, device=msg.device), index, num_items=m, num_groups=dim_size)
        return segment_reduce(gather(msg, plan), plan, "mean")
