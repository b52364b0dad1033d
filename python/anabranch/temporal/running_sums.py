"""What RunningMean and RunningMoments are: for every node a count of rows, and sums of what is in them."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.temporal.scatter import ordered_scatter_add_
from anabranch.temporal.stream_state import check_nodes, check_rows
from anabranch.temporal.whole_state import WholeState


class RunningSums(WholeState):
    """Count and sums of every node's rows, exact where a node comes several times in a batch.

    Args:
        num_nodes, dim: of the rows.
        columns: sums of a node.
        device, dtype: of the sums.

    State: `count` int64 `[num_nodes, 1]`, `sums` `[num_nodes, columns]`.
    """

    count: Tensor
    sums: Tensor

    def __init__(
        self, num_nodes: int, dim: int, columns: int, *, device: torch.device | str | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.num_nodes, self.dim = num_nodes, dim
        self.register_buffer("count", torch.zeros(num_nodes, 1, dtype=torch.int64, device=device))
        self.register_buffer("sums", torch.zeros(num_nodes, columns, dtype=dtype, device=device))

    def check_update(self, nodes: Tensor, **rows: Tensor) -> None:
        """int64 `[n]`, in range or negative for none, and rows `[n, dim]` in the dtype of the sums."""
        check_nodes("update", self.num_nodes, self.sums, negative=True, nodes=nodes)
        check_rows("update", self.sums, nodes.shape[0], self.dim, **rows)

    @torch.no_grad()
    def add(self, nodes: Tensor, rows: Tensor) -> None:
        """Adds rows `[n, columns]` of checked nodes to their sums."""
        ordered_scatter_add_(self.sums, nodes, rows)
        ordered_scatter_add_(self.count, nodes, torch.ones_like(nodes)[:, None])

    def reset(self) -> None:
        """Forgets all rows."""
        self.count.zero_()
        self.sums.zero_()

    def extra_repr(self) -> str:
        return f"num_nodes={self.num_nodes}, dim={self.dim}"
