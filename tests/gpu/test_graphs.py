"""Whole steps captured in a CUDA graph, replayed with other inputs: no size may have been read by the host."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from anabranch import plan
from anabranch.experts import DynamicMoE, expert_ffn, route_percentile, route_top_k, route_top_p, route_tsallis
from anabranch.skip import Norm, SmallFfn, gated_ffn

pytestmark = pytest.mark.gpu

ROUTERS = {
    "top_k": partial(route_top_k, k=2),
    "top_p": partial(route_top_p, p=0.4, k_max=4),
    "tsallis": partial(route_tsallis, k_max=4),
    "percentile": partial(route_percentile, q=0.7, k_max=4),
}


def capture(step, warm_ups: int = 3) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_ups):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("router", ROUTERS)
def test_a_training_step_of_dynamic_moe(router: str, dtype: torch.dtype) -> None:
    moe = DynamicMoE(128, 192, 8, ROUTERS[router], dtype=dtype)
    x = torch.randn(64, 128, dtype=dtype, requires_grad=True)
    kept: dict[str, torch.Tensor] = {}

    def step() -> None:
        y = moe(x)
        kept["y"] = y
        kept["grads"] = torch.autograd.grad(y.float().square().sum(), [x, *moe.parameters()])

    graph = capture(step)
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        y, grads = kept["y"].clone(), [g.clone() for g in kept["grads"]]
        fresh = moe(x)
        wanted = torch.autograd.grad(fresh.float().square().sum(), [x, *moe.parameters()])
        assert torch.equal(y, fresh)
        assert all(torch.equal(a, b) for a, b in zip(grads, wanted, strict=True))


def test_replays_follow_the_routing() -> None:
    """From every pair routed to none, in one captured graph."""
    x, gate_up, down = torch.randn(32, 64), torch.randn(5, 96, 64), torch.randn(5, 64, 48)
    indices, weights = torch.randint(0, 5, (32, 3)), torch.rand(32, 3)
    kept: dict[str, torch.Tensor] = {}

    def step() -> None:
        kept["y"] = expert_ffn(x, gate_up, down, plan.from_top_k(indices, weights, num_groups=5))

    with torch.no_grad():
        graph = capture(step)
        for fill in (0, 4, 5):  # all to one expert, all to the last, none
            indices.fill_(fill)
            graph.replay()
            replayed = kept["y"].clone()
            assert torch.equal(replayed, expert_ffn(x, gate_up, down, plan.from_top_k(indices, weights, num_groups=5)))
        assert (replayed == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_replays_follow_the_rows_that_skip(dtype: torch.dtype) -> None:
    """Forward and backward, from no row kept to all, in one captured graph."""
    x = torch.randn(96, 64, dtype=dtype, requires_grad=True)
    gate_up = (torch.randn(192, 64, dtype=dtype) / 8).requires_grad_()
    down = (torch.randn(64, 96, dtype=dtype) / 10).requires_grad_()
    keep, gate = torch.zeros(96, dtype=torch.bool), torch.rand(96, requires_grad=True)
    norm, small = Norm(torch.rand(64, dtype=dtype)), SmallFfn(gate_up[:16], down[:, :8])
    kept: list[torch.Tensor] = []

    def results() -> list[torch.Tensor]:
        y, cosine = gated_ffn(x, keep, gate_up, down, gate=gate, norm=norm, otherwise=small, return_cosine=True)
        return [y, cosine, *torch.autograd.grad(y.float().square().sum(), [x, gate_up, down, gate])]

    def step() -> None:
        kept[:] = results()

    graph = capture(step)
    for share in (0.0, 0.3, 1.0):
        keep.copy_(torch.rand(96) < share)
        graph.replay()
        replayed = [tensor.clone() for tensor in kept]
        assert all(torch.equal(a, b) for a, b in zip(replayed, results(), strict=True))


def test_compiled_with_inductor() -> None:
    moe = DynamicMoE(64, 96, 6, ROUTERS["top_p"])
    x = torch.randn(40, 64, requires_grad=True)
    compiled = torch.compile(moe, fullgraph=True)
    torch.testing.assert_close(compiled(x), moe(x), rtol=1e-4, atol=1e-4)
    compiled(x).square().sum().backward()
    assert x.grad is not None
