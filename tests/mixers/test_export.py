"""`torch.export` of the modules with any number of tokens, and functions traced with sizes that are symbols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from anabranch import mixers

C, N = 8, 4


def block(kind: mixers.Kind) -> mixers.HyperConnection:
    return mixers.HyperConnection(nn.Linear(C, C), C, N, kind=kind)


@pytest.mark.parametrize(
    "make",
    [
        lambda: block("mhc_lite"),
        lambda: mixers.HyperConnectionSequence([block("mhc"), block("jpmhc")]),
        lambda: mixers.ChannelGatedConnection(nn.Linear(C, C), C, N, rank=3),
    ],
)
def test_export_for_any_number_of_tokens(make: Callable[[], nn.Module]) -> None:
    module = make()
    tokens = torch.export.Dim("tokens")
    program = torch.export.export(module, (torch.randn(3, N, C),), dynamic_shapes=({0: tokens},))
    streams = torch.randn(7, N, C)
    assert torch.equal(program.module()(streams), module(streams))


@pytest.mark.parametrize("function", [mixers.sinkhorn, mixers.grassmann])
def test_symbolic_sizes(function: Callable[..., Any]) -> None:
    def call(logits: Tensor) -> Tensor:
        made: Tensor = function(logits)
        return made

    logits = torch.randn(5, N, N)
    traced = make_fx(call, tracing_mode="symbolic")(torch.randn(3, N, N))
    assert torch.equal(traced(logits), call(logits))
