"""Training of the demo's small model in `bench mixers`: residual streams beside plain residuals."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anabranch import mixers
from anabranch.cli import peers_mixers as peers
from anabranch.cli.bench_rows import Contenders, Target, Workload
from anabranch.cli.mixers_model import (
    CONTEXT,
    STREAMS,
    WIDTH,
    Build,
    ByteModel,
    Residual,
    Streams,
    optimizer_of,
    train_step,
)
from anabranch.mixers import HyperConnection, SigmoidGates, expand_streams, reduce_streams

SHIPPED = mixers.Sinkhorn(20, order="rows_first", eps=peers.EPS, transpose=True)
"""As DeepSeek and transformers have it."""
OPTIONS: dict[str, Any] = {"kind": "mhc", "mixer": SHIPPED, "gates": SigmoidGates(pre_eps=peers.EPS)}
_LEAST_TOKENS = 1024  # that the target is about


class EagerStreams(nn.Module):
    """The parameters of hyper-connections in transformers' composition of torch's ops."""

    def __init__(self, sublayers: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            HyperConnection(one, WIDTH, STREAMS, layer_index=index, **OPTIONS) for index, one in enumerate(sublayers)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[:2]
        streams = expand_streams(x, STREAMS).flatten(0, 1)
        for block in self.blocks:
            assert isinstance(block, HyperConnection)
            given, sublayer = block.projection(), block.sublayer

            def on_rows(u: Tensor, sublayer: nn.Module = sublayer) -> Tensor:
                return sublayer(u.unflatten(0, batch)).flatten(0, 1)

            assert given.weight is not None
            streams = peers.mhc_step(streams, given.weight, given.scale, given.bias, on_rows)
        return reduce_streams(streams).unflatten(0, batch)


def model_workload(tokens: int, device: torch.device) -> Workload:
    """A training step with mHC-20 of 4 streams, optimizer included, on so many bytes; its limit is the arithmetic of
    the plain model's products."""
    rows = torch.randint(0, 256, (max(1, tokens // CONTEXT), min(tokens, CONTEXT) + 1), device=device)
    bodies: dict[str, Build] = {"step": partial(Streams, **OPTIONS), "plain": Residual, "eager": EagerStreams}
    contenders: Contenders = {}
    for name, body in bodies.items():
        torch.manual_seed(0)
        model = ByteModel(body).to(device)
        contenders[name] = partial(train_step, model, optimizer_of(model, 1e-3), rows)
        if name == "plain":
            weights = sum(one.weight.numel() for one in model.modules() if isinstance(one, nn.Linear))
    count = rows.shape[0] * (rows.shape[1] - 1)
    target = Target("plain", 1.25, 1.1) if count >= _LEAST_TOKENS else None
    return Workload("train model mhc n=4", count, count, contenders, 6 * weights * count, 0, target=target)
