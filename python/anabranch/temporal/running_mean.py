"""SPLASH's parts: running means of what a node was joined to, degrees as waves, mean and sum of the last k events."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.core.arguments import check_floating, check_same_device, dtype_name
from anabranch.temporal.running_sums import RunningSums
from anabranch.temporal.stream_state import check_no_nan, check_nodes


class RunningMean(RunningSums):
    """The mean of all rows that a node ever got: features of nodes that no training has seen, from their neighbours'.

    Exact where a node comes several times in a batch; the release of SPLASH (arXiv 2504.00328) adds with `+=` under
    equal indices and loses all but one.

    Args:
        num_nodes, dim: of the means.
        device, dtype: of the sums; float32 by default.

    State: `count` int64 `[num_nodes, 1]`, which is also a node's degree if it gets a row for every event; `sums`
    `[num_nodes, dim]`.
    """

    def __init__(
        self,
        num_nodes: int,
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_nodes, dim, dim, device=device, dtype=dtype)

    def update(self, nodes: Tensor, values: Tensor) -> None:
        """Gives each node a row.

        Args:
            nodes: int64 `[n]`; a negative one is passed over.
            values: `[n, dim]`, in the dtype of the sums. No gradient is kept.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit; a node of num_nodes or more (CPU; passed over on a
                GPU); NaN in values (CPU). Nothing has been written then.

        Cost:
            Reads and writes the sums of the nodes in the batch, and of no other.
        """
        self.check_update(nodes, values=values)
        check_no_nan("update", values=values)
        self.add(nodes, values)

    def forward(self, nodes: Tensor) -> Tensor:
        """The means of nodes.

        Args:
            nodes: int64 `[n]`.

        Returns:
            `[n, dim]`, a copy without gradient; 0 for a node that got nothing.

        Raises:
            ValueError: another dtype, shape or device; nodes out of range (CPU).

        Cost:
            Reads n rows of sums and counts.
        """
        check_nodes("forward", self.num_nodes, self.sums, nodes=nodes)
        return self.sums[nodes] / self.count[nodes].clamp_min(1)


def degree_encoding(degrees: Tensor, dim: int, *, base: float = 10000.0) -> Tensor:
    """Degrees as sines and cosines: `sin(degree / base^(2i / dim))` and the cosine, one behind the other.

    Args:
        degrees: int64 `[...]`, such as `RecentNeighbors.degrees()[nodes]`.
        dim: even.
        base: the longest wave is 2 pi times this.

    Returns:
        float32 `[..., dim]`.

    Raises:
        ValueError: dim is odd or not positive.

    Cost:
        Writes dim numbers a degree, a sine or a cosine each.
    """
    if dim <= 0 or dim % 2:
        raise ValueError(f"degree_encoding: dim is {dim}, must be even and positive; a wave takes two")
    steps = torch.arange(0, dim, 2, device=degrees.device, dtype=torch.float64) / dim
    angles = degrees[..., None].double() * base**-steps
    return torch.cat([angles.sin(), angles.cos()], -1).float()


def masked_mean_sum(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum over the valid ones of k rows, as SPLASH's SLIM takes them of a node's last k events.

    Args:
        values: `[B, k, d]`, floating; rows that are not valid must still be finite.
        valid: bool `[B, k]`, such as `neighbors >= 0`.

    Returns:
        (mean, sum), `[B, d]` each; 0 where no row is valid.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.

    Gradient:
        To values.

    Cost:
        Reads values once: the sum is a product with the mask, the mean is the sum divided.
    """
    op = "masked_mean_sum"
    check_floating(op, values=values)
    check_same_device(op, "values", values, valid=valid)
    if values.dim() != 3 or valid.shape != values.shape[:2] or valid.dtype != torch.bool:
        raise ValueError(
            f"{op}: valid is {dtype_name(valid.dtype)} of shape {tuple(valid.shape)} for values of shape "
            f"{tuple(values.shape)}, must be bool [B, k] for [B, k, d]; give each row a flag"
        )
    total = torch.bmm(valid[:, None].to(values.dtype), values).squeeze(1)
    return total / valid.sum(1, keepdim=True).clamp_min(1).to(values.dtype), total
