"""PRES: a node's next memory predicted from the moments of its past increments, and the measured one corrected."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from anabranch.temporal.running_sums import RunningSums
from anabranch.temporal.stream_state import check_no_nan, check_nodes


class RunningMoments(RunningSums):
    """Count, sum and sum of squares of the increments of every node (PRES, arXiv 2402.04284).

    Args:
        num_nodes, dim: of the memories.
        device, dtype: of the sums; float32 by default.

    State: `count` int64 `[num_nodes, 1]`; `sums` `[num_nodes, 2 * dim]`, the sum and then the sum of squares.

    This is the method as it is meant. The release adds 1 to an increment instead of counting it, scales increments to
    [-1, 1] by the batch's extremes instead of dividing by a count, and copies the whole table for every batch.
    """

    def __init__(
        self,
        num_nodes: int,
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_nodes, dim, 2 * dim, device=device, dtype=dtype)

    def update(self, nodes: Tensor, increments: Tensor) -> None:
        """Takes increments of nodes.

        Args:
            nodes: int64 `[n]`; a node may come more than once, and each time counts; a negative one is passed over.
            increments: `[n, dim]`, in the dtype of the sums. No gradient is kept.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit; on the CPU a NaN or a node of num_nodes or more,
                which a GPU passes over. Nothing has been written then.

        Cost:
            Reads and writes 2 * dim sums of each node in the batch, and of no other.
        """
        self.check_update(nodes, increments=increments)
        check_no_nan("update", increments=increments)
        self.add(nodes, torch.cat([increments, increments * increments], 1))

    def mean(self, nodes: Tensor) -> Tensor:
        """The mean increments of nodes.

        Args:
            nodes: int64 `[n]`.

        Returns:
            `[n, dim]`, a copy without gradient; 0 for a node without any.

        Raises:
            ValueError: another dtype, shape or device; nodes out of range (CPU).

        Cost:
            Reads n rows of sums and counts.
        """
        check_nodes("mean", self.num_nodes, self.sums, nodes=nodes)
        return self.sums[nodes, : self.dim] / self.count[nodes].clamp_min(1)

    def variance(self, nodes: Tensor) -> Tensor:
        """The variances of the increments of nodes, mean of squares less square of mean.

        Args, Raises, Cost: as `mean`.

        Returns:
            `[n, dim]`, a copy without gradient; not below 0, and 0 for a node without any.
        """
        check_nodes("variance", self.num_nodes, self.sums, nodes=nodes)
        mean, square = (self.sums.index_select(0, nodes) / self.count[nodes].clamp_min(1)).split(self.dim, 1)
        return (square - mean * mean).clamp_min(0)

    def predict(self, nodes: Tensor, previous: Tensor) -> Tensor:
        """`previous + sum / count`, and `previous` for nodes without increments.

        Args:
            nodes: int64 `[n]`.
            previous: `[n, dim]`, their memories.

        Returns:
            `[n, dim]`; the gradient goes to previous alone.
        """
        return previous + self.mean(nodes)


class MemoryCorrection(nn.Module):
    """`gamma * predicted + (1 - gamma) * measured` (PRES, arXiv 2402.04284).

    Args:
        gamma: in (0, 1). The paper starts at 0.9; from there memories hardly hear of events, and a TGN on UCI's
            messages has a lower AP than without a correction: 0.771, 0.742, 0.673 in batches of 200, 800, 3200 against
            0.802, 0.829, 0.799 without, and 0.797, 0.829, 0.828 from 0.1 (one seed, 2 epochs, gamma learned).
        learnable: whether gamma is learned, as the sigmoid of a parameter, or stays.

    The result is what a memory stores. In the release it goes to the embeddings alone and is never stored.
    """

    logit: Tensor

    def __init__(self, gamma: float = 0.1, *, learnable: bool = False) -> None:
        super().__init__()
        if not 0 < gamma < 1:
            raise ValueError(f"MemoryCorrection: gamma is {gamma}, must be in (0, 1); leave the correction out for 0")
        logit = torch.tensor(math.log(gamma / (1 - gamma)))
        if learnable:
            self.logit = nn.Parameter(logit)
        else:
            self.register_buffer("logit", logit)

    @property
    def gamma(self) -> Tensor:
        """The share of the prediction, `[]`."""
        return self.logit.sigmoid()

    def forward(self, predicted: Tensor, measured: Tensor) -> Tensor:
        """What the memory stores.

        Args:
            predicted: `[n, dim]`, of `RunningMoments.predict`.
            measured: `[n, dim]`, of the messages.

        Returns:
            `[n, dim]` in the dtype of measured.

        Gradient:
            To both, and to gamma if it is learned.
        """
        return torch.lerp(measured, predicted, self.gamma.to(measured.dtype))


def coherence_loss(memory: Tensor, previous: Tensor) -> Tensor:
    """`mean(1 - cos(memory, previous))`: how far an update turns the memories (PRES, with weight beta = 0.1).

    Args:
        memory, previous: `[n, dim]`; a row of zeros has cosine 0.

    Returns:
        `[]`, in [0, 2]; 0 for n = 0.

    Raises:
        RuntimeError: torch's, for shapes that do not fit.

    Gradient:
        To both, through the cosine. The release detaches it, so that there the term teaches nothing.

    Cost:
        Reads both once; a handful of torch's kernels.

    Source:
        PRES, arXiv 2402.04284.
    """
    distance = 1 - nn.functional.cosine_similarity(memory, previous, dim=-1)
    return distance.sum() / max(1, distance.numel())
