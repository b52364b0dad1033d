"""For the tests of ExpertParallel: a launcher of Gloo processes, and the layers and rows they share."""

from __future__ import annotations

import dataclasses
import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from anabranch.experts import DynamicMoE, ExpertParallel, route_top_k, route_top_p

HIDDEN, INTERMEDIATE = 12, 20


def launch(
    worker: Callable[..., None], num_ranks: int, folder: Path, *arguments: Any, timeout: float = 60
) -> list[int]:
    """Runs `worker(rank, *arguments)` on every rank of a Gloo group; returns the exit codes, 0 where nothing raised.

    Prints what the ranks raised. A rank that does not end within twice the group's timeout is killed: code -9.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["anabranch.experts.parallel", "torch.distributed.fsdp"])
    folder.mkdir(exist_ok=True)
    processes = [
        context.Process(target=_run, args=(worker, rank, num_ranks, folder, timeout, arguments))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 2 * timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    for log in sorted(folder.glob("error*")):
        print(log.name, log.read_text())
    return [process.exitcode or 0 for process in processes]


def _run(
    worker: Callable[..., None], rank: int, num_ranks: int, folder: Path, timeout: float, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=timeout),
        )
        worker(rank, *arguments)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error{rank}").write_text(traceback.format_exc())
        os._exit(1)  # The group is in pieces: its orderly end would wait for the others.


VARIABLE = partial(route_top_p, p=0.5, k_max=3)


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer and the rows of each rank."""

    num_experts: int
    rows: tuple[int, ...]
    router: Callable[[Tensor], Any] = VARIABLE
    options: tuple[tuple[str, Any], ...] = ()
    dtype: torch.dtype = torch.float32

    def moe(self) -> DynamicMoE:
        torch.manual_seed(3)
        return DynamicMoE(HIDDEN, INTERMEDIATE, self.num_experts, self.router, dtype=self.dtype, **dict(self.options))

    def batch(self) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs, and gradients of the outputs, of all ranks."""
        generator = torch.Generator().manual_seed(4)
        x, dy = (
            [torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64).to(self.dtype) for rows in self.rows]
            for _ in range(2)
        )
        return x, dy


def to_last_group(logits: Tensor) -> Any:
    """Every row to the last expert alone: all other ranks receive nothing."""
    order = torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype)
    return route_top_k(logits * 0 + order, 1)


CASES = {
    "even": Case(8, (5, 9, 6, 7)),
    "uneven shards": Case(6, (5, 9, 6, 7), partial(route_top_k, k=2)),
    "empty shard": Case(3, (5, 9, 6, 7), options=(("bias", True),)),
    "one expert": Case(1, (4, 3, 2, 1), partial(route_top_k, k=1)),
    "ranks without rows": Case(8, (0, 13, 0, 1), options=(("bias", True),)),
    "no rows at all": Case(8, (0, 0, 0, 0)),
    "one rank gets all": Case(5, (5, 9, 6, 7), to_last_group),
    "null experts": Case(
        4, (6, 7, 8, 9), partial(route_top_k, k=4), (("zero_experts", 2), ("identity_experts", 1), ("bias", True))
    ),
    "not gated": Case(5, (3, 9, 4, 1), options=(("gated", False), ("activation", "relu2"))),
    "float64": Case(7, (5, 9, 6, 7), dtype=torch.float64),
    "bfloat16": Case(7, (40, 9, 30, 7), dtype=torch.bfloat16),
}


def forward_backward(module: Any, x: Tensor, dy: Tensor, *, x_needs_grad: bool = True) -> tuple[Tensor, Tensor | None]:
    x = x.clone().requires_grad_(x_needs_grad)
    y = module(x)
    (y * dy).sum().backward()
    return y.detach(), x.grad


def full_gradients(layer: ExpertParallel) -> dict[str, Tensor]:
    """Gradients by the names of DynamicMoE: the experts' gathered, the gate's averaged over the group."""
    gradients = {name: p.grad.full_tensor() for name, p in layer.experts.named_parameters()}
    gate = layer.gate.weight.grad.clone()
    dist.all_reduce(gate)
    return gradients | {"gate.weight": gate / dist.get_world_size()}


def close(name: str, actual: Tensor, expected: Tensor) -> None:
    """Equal up to rounding, measured against the largest expected value."""
    # The gate's product is in float32 in every layer.
    dtype = torch.float32 if actual.dtype == torch.float64 and "gate.weight" in name else actual.dtype
    tolerance = {torch.float64: 1e-14, torch.float32: 3e-6, torch.bfloat16: 1e-2}[dtype]
    assert actual.shape == expected.shape, name
    if actual.numel() > 0:
        error, scale = (actual - expected).abs().max().item(), expected.abs().max().item()
        assert error <= tolerance * scale, f"{name}: error {error:.2g} beside {scale:.2g}"


def world_mesh(name: str = "expert") -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=(name,))
