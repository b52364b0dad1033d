"""What the ranks run in the tests of ExpertParallel that end in an error: lost ranks and bad input."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parallel_cases import CASES, HIDDEN, Case, forward_backward, world_mesh
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from anabranch.experts import DynamicMoE, ExpertParallel

RAISED = 7  # Exit code of a rank that saw the error it should see.


def loses_a_rank(rank: int, folder: Path, how: str, seconds: float) -> None:
    """Rank 1 dies in the third step's forward or backward, or stalls; the others must raise within the timeout."""
    group = dist.new_group(timeout=timedelta(seconds=seconds))
    mesh = DeviceMesh.from_group(group, "cpu")
    case = CASES["even"]
    layer = ExpertParallel(case.moe(), mesh)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    x, dy = (tensors[rank] for tensors in case.batch())

    def leave(_: Tensor) -> None:
        if how == "stall":
            while len(list(folder.glob("raised*"))) < dist.get_world_size() - 1:
                time.sleep(0.1)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    for step in range(100):
        if rank == 1 and step == 2:
            if how == "backward":
                layer.register_forward_hook(lambda module, inputs, y: y.register_hook(leave) and None)
            else:
                layer.router = leave
        began = time.monotonic()
        try:
            forward_backward(layer, x, dy)
        except RuntimeError as error:
            assert step == 2, f"step {step}: {error}"
            assert "ExpertParallel: an exchange among ranks [0, 1, 2, 3] failed" in str(error), error
            # Half again: the machine may be busy.
            assert time.monotonic() - began < 1.5 * seconds + 2
            (folder / f"raised{rank}").touch()
            os._exit(RAISED)
        optimizer.step()
        optimizer.zero_grad()


def refuses(rank: int) -> None:
    """Bad arguments are ValueErrors on every rank, before anything is communicated that could hang."""
    mesh, case = world_mesh(), Case(4, (3, 3))
    moe, layer = case.moe(), ExpertParallel(case.moe(), mesh)
    square = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data", "expert"))
    changed = DynamicMoE(HIDDEN + rank, 8, 4, case.router)
    other_count = DynamicMoE(HIDDEN, 8, 4 + rank, case.router)
    biased = DynamicMoE(HIDDEN, 8, 4, case.router, bias=rank == 1)
    wrong_plan = ExpertParallel(case.moe(), mesh)
    wrong_plan.router = lambda logits: case.router(logits[:, 1:])
    taken = case.moe()
    taken.gate_up_proj = torch.nn.Parameter(layer.experts.gate_up_proj)
    attempts: list[tuple[Callable[[], Any], str]] = [
        (lambda: ExpertParallel(torch.nn.Linear(3, 3), mesh), "moe is a Linear, must be a DynamicMoE"),
        (lambda: ExpertParallel(taken, mesh), "must not be distributed yet"),
        (lambda: ExpertParallel(moe, dist.group.WORLD), "mesh is a ProcessGroup, must be a DeviceMesh"),
        (lambda: ExpertParallel(moe, square), r"mesh has 2 dimensions, must have 1; pass one dim of it"),
        (lambda: ExpertParallel(moe, mesh, parameters="flat"), "parameters is 'flat', must be one of"),
        (lambda: ExpertParallel(moe, mesh, gradient_reduction="max"), "gradient_reduction is 'max', must be one of"),
        (lambda: ExpertParallel(changed, mesh), r"moe.down_proj is \(\(4, 13, 8\).* on rank 1 of the group, must be"),
        (lambda: ExpertParallel(other_count, mesh), r"moe.down_proj is \(\(5, 12, 8\)"),
        (lambda: ExpertParallel(biased, mesh), "moe.down_bias is .* on rank 1 of the group, must be None"),
        (lambda: layer(torch.randn(3, HIDDEN + 1)), r"x is torch.float32 of shape \(3, 13\), must be floating and"),
        (lambda: layer(torch.ones(3, HIDDEN, dtype=torch.int64)), "x is torch.int64"),
        (lambda: wrong_plan(torch.randn(3, HIDDEN)), "the router's plan has 3 items and 3 groups, must have 3 and 4"),
    ]
    for attempt, message in attempts:
        with pytest.raises(ValueError, match=f"^ExpertParallel: .*{message}"):
            attempt()
    for alike in (lambda: torch.set_grad_enabled(rank == 1), lambda: torch.autocast("cpu", enabled=rank == 1)):
        with alike(), pytest.raises(ValueError, match=r"the modes of the group's ranks are \[.*\], must be the same"):
            layer(torch.randn(3, HIDDEN))
    with pytest.raises(ValueError, match="the modes of"):
        layer(torch.randn(3, HIDDEN, requires_grad=rank == 1))
    alone = DeviceMesh("cpu", [0])
    if rank == 1:
        with pytest.raises(ValueError, match=r"mesh is \[0\], must hold this rank \(1\)"):
            ExpertParallel(moe, alone)
