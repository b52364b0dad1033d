"""`PercentileThreshold`: the calibrated threshold of `route_percentile`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from anabranch.experts.scores import check_quantile, order_statistic, score_logits


class PercentileThreshold(nn.Module):
    """A running quantile of router logits over tokens: the calibrated threshold of `route_percentile`.

    In training each batch's q-quantile (order statistic `floor(q (T E - 1))` of all its logits) moves the
    buffer `running` by an exponential average; in eval `running` is frozen. The first batch sets it. What
    `forward` returns is the value *before* the batch at hand (but for the first), so the experts of a token
    do not depend on the tokens that share its batch. A batch without tokens, or whose quantile is infinite
    because most experts are masked, changes nothing. Before any training `running` is -inf: every expert that
    is not masked is above it.

    The buffer is float32 and part of the state dict; keep the module in float32, where small steps are not
    lost. Processes of a distributed run each average their own batches.

    Args:
        q: quantile, 0 to 1: about a share 1 - q of all (token, expert) pairs lies above the threshold.
        momentum: weight of the new batch, above 0 and at most 1, as in `torch.nn.BatchNorm1d`.

    Raises:
        ValueError: `q` or `momentum` out of range; in `forward`, what `route_percentile` raises for logits, or
            logits on another device than the module.

    Cost:
        Eval: nothing. Training: one sort of T*E logits, no host sync.
    """

    running: Tensor

    def __init__(self, q: float, momentum: float) -> None:
        super().__init__()
        check_quantile("PercentileThreshold", q)
        if not 0 < momentum <= 1:
            raise ValueError(
                f"PercentileThreshold: momentum is {momentum}, must be above 0 and at most 1; "
                "it is the weight of the new batch"
            )
        self.q = q
        self.momentum = momentum
        self.register_buffer("running", torch.tensor(-math.inf))

    def forward(self, logits: Tensor) -> Tensor:
        """Logits `[T, E]` to the threshold, a tensor without dimensions and without gradient."""
        scores = score_logits("PercentileThreshold", logits.detach())
        if scores.device != self.running.device:
            raise ValueError(
                f"PercentileThreshold: logits is on {scores.device}, must be on {self.running.device} like the module; "
                "move the module with .to(logits.device)"
            )
        if not self.training or scores.numel() == 0:
            return self.running.clone()
        # A sort, because kthvalue refuses to run under torch.use_deterministic_algorithms on a GPU.
        ranked = scores.flatten().sort().values
        quantile = ranked[order_statistic(self.q, scores.numel())].to(self.running.dtype)
        used = torch.where(self.running.isfinite(), self.running, quantile)
        # lerp is exact at equal ends, so that the first batch sets the buffer and a constant one keeps it.
        moved = torch.lerp(used, quantile, self.momentum)
        self.running.copy_(torch.where(quantile.isfinite(), moved, self.running))
        return used

    def extra_repr(self) -> str:
        return f"q={self.q}, momentum={self.momentum}"
