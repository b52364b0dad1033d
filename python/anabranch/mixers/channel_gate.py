"""`ChannelGatedConnection`: streams read through a low-rank gate per channel and not mixed (qwen4_exp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu

from anabranch.core.arguments import check_floating, check_same_device
from anabranch.mixers.connection import Connection
from anabranch.mixers.gated_mean import gated_mean
from anabranch.mixers.mixer import check_num_streams
from anabranch.mixers.recording import record
from anabranch.mixers.sublayer import call_sublayer

_OP = "ChannelGatedConnection"


def channel_gate(
    x: Tensor, norm_weight: Tensor, down_weight: Tensor, up_weight: Tensor, *, norm_eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """`u = mean_j sigmoid(W_up silu(W_down xhat / n))_j * xhat_j`, a gate for every channel of every stream.

    xhat is each stream's own RMSNorm times `1 + norm_weight`; its n * C numbers are one vector to the products.

    Args:
        x: `[..., n, C]`.
        norm_weight: `[n * C]`.
        down_weight: `[rank, n * C]`; up_weight: `[n * C, rank]`.

    Returns:
        u `[..., C]` and xhat `[..., n * C]`, in the dtype of x; the norm is computed in float32, the products in the
        dtype of x or of autocast.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.

    Gradient:
        To all tensors. Not differentiable twice.

    Cost:
        4 * rank * n * C FLOPs a token, the passes of torch's norm, and `gated_mean`.
    """
    _check("channel_gate", x, norm_weight=norm_weight, down_weight=down_weight, up_weight=up_weight)
    n, channels = x.shape[-2:]
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale = (1 + norm_weight.to(sums)).view(n, channels)
    normed = (rms_norm(x.to(sums), (channels,), eps=norm_eps) * scale).to(x.dtype)
    flat = normed.flatten(-2)
    hidden = silu(linear(flat, down_weight.to(x.dtype)) / n)
    logits = linear(hidden, up_weight.to(hidden.dtype)).view(x.shape)
    return gated_mean(normed, logits), flat


def channel_connect(
    x: Tensor,
    norm_weight: Tensor,
    down_weight: Tensor,
    up_weight: Tensor,
    post_weight: Tensor,
    *,
    norm_eps: float = 1e-6,
) -> Connection:
    """`connect` with `channel_gate` for p, `q = 2 sigmoid(W xhat / n)` and `H = I`.

    Args:
        x: `[..., n, C]`, n from 2 to 8.
        norm_weight, down_weight, up_weight, norm_eps: as `channel_gate`.
        post_weight: W `[n, n * C]`.

    Returns:
        A `Connection`, whose `merge` adds `q_j y` to every stream. Its `pre` is 0: no scalar reads the streams.

    Raises:
        ValueError: as `channel_gate`, or n out of 2 to 8.

    Gradient:
        To all tensors. Not differentiable twice.

    Cost:
        As `channel_gate`, and 2 n^2 C FLOPs a token for q.
    """
    op = "channel_connect"
    check_num_streams(op, x.shape[-2] if x.dim() > 1 else 0)
    _check(op, x, norm_weight=norm_weight, down_weight=down_weight, up_weight=up_weight, post_weight=post_weight)
    n = x.shape[-2]
    u, normed = channel_gate(x, norm_weight, down_weight, up_weight, norm_eps=norm_eps)
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    post = 2 * torch.sigmoid(linear(normed, post_weight.to(x.dtype)).to(sums) / n)
    mixing = torch.eye(n, dtype=sums, device=x.device).flatten().expand(*post.shape[:-1], n * n)
    step = Connection(x, u, torch.cat([torch.zeros_like(post), post, mixing], -1), None)
    record(step)
    return step


def _check(op: str, x: Tensor, **weights: Tensor) -> None:
    check_floating(op, x=x, **weights)
    check_same_device(op, "x", x, **weights)
    if x.dim() < 2:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, must be (..., streams, channels); expand_streams()")
    n, channels = x.shape[-2:]
    rank = weights["down_weight"].shape[0] if weights["down_weight"].dim() else 0
    shapes = {
        "norm_weight": (n * channels,),
        "down_weight": (rank, n * channels),
        "up_weight": (n * channels, rank),
        "post_weight": (n, n * channels),
    }
    for name, weight in weights.items():
        if weight.shape != shapes[name]:
            raise ValueError(
                f"{op}: {name} has shape {tuple(weight.shape)}, must be {shapes[name]} for {n} streams of {channels} "
                f"channels and rank {rank}; give weights of one size"
            )


class ChannelGatedConnection(nn.Module):
    """A sub-layer on n streams read through `channel_gate` and written as `x_j + q_j * sublayer(u)`.

    What qwen4_exp of transformers does, with parameters of the same shapes. u comes normed: the sub-layer needs no
    norm of its own.

    Args:
        sublayer: from `[..., C]` to `[..., C]`, or to a tuple whose first element that is.
        hidden_size: C; num_streams: n, 2 to 8.
        rank: of the gate.
        norm_eps: under the root of the norm.

    Parameters: `norm_weight [n * C]` (0 at first: the norm is multiplied by 1 + it), `down_weight [rank, n * C]`,
    `up_weight [n * C, rank]`, `post_weight [n, n * C]`, normal of deviation 0.02 at first.

    Raises:
        ValueError: sizes below 1; in `forward`, streams of another shape, a sub-layer that returns neither a tensor
            nor a tuple that begins with one, and what `channel_connect` raises.

    Cost:
        (4 * rank + 2 * n) * n * C FLOPs a token, and what `merge` moves.
    """

    def __init__(
        self,
        sublayer: nn.Module,
        hidden_size: int,
        num_streams: int = 4,
        *,
        rank: int = 320,
        norm_eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = _OP
        check_num_streams(op, num_streams)
        for name, value in (("hidden_size", hidden_size), ("rank", rank)):
            if value < 1:
                raise ValueError(f"{op}: {name} is {value}, must be at least 1; give a positive size")
        self.sublayer, self.norm_eps = sublayer, norm_eps
        self.hidden_size, self.num_streams, self.rank = hidden_size, num_streams, rank
        width = num_streams * hidden_size
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm_weight = nn.Parameter(torch.empty(width, **factory))
        self.down_weight = nn.Parameter(torch.empty(rank, width, **factory))
        self.up_weight = nn.Parameter(torch.empty(width, rank, **factory))
        self.post_weight = nn.Parameter(torch.empty(num_streams, width, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The first values, as the class says; the sub-layer is left as it is."""
        nn.init.zeros_(self.norm_weight)
        for weight in (self.down_weight, self.up_weight, self.post_weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, streams: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`[..., n, C]` to `[..., n, C]`; arguments and results as `HyperConnection.forward`."""
        sizes = (self.num_streams, self.hidden_size)
        if streams.dim() < 2 or streams.shape[-2:] != sizes:
            raise ValueError(
                f"{_OP}: streams has shape {tuple(streams.shape)}, must be (..., {sizes[0]}, {sizes[1]}); "
                "expand_streams() makes them"
            )
        weights = (self.norm_weight, self.down_weight, self.up_weight, self.post_weight)
        step = channel_connect(streams, *weights, norm_eps=self.norm_eps)
        y, rest = call_sublayer(_OP, self.sublayer, step.input, args, kwargs)
        merged = step.merge(y)
        return merged if rest is None else (merged, *rest)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_streams={self.num_streams}, rank={self.rank}"
