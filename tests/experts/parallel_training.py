"""What the ranks run in the tests of ExpertParallel beside data parallelism, and of its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from parallel_cases import HIDDEN, Case, close, world_mesh
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from anabranch.experts import DynamicMoE, ExpertParallel


class Model(torch.nn.Module):
    """A layer of experts between two linear ones."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.moe: torch.nn.Module = case.moe()
        self.before, self.after = torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.moe(self.before(x)))


def train(model: torch.nn.Module, batches: list[Tensor]) -> None:
    """Three steps along the mean of the batches' losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack([(model(x) - x.flip(1)).square().mean() for x in batches]).mean().backward()
        optimizer.step()


def with_ddp(layer: ExpertParallel, model: Model, mesh: DeviceMesh) -> torch.nn.Module:
    """Experts averaged over the data axis, everything else over all ranks."""
    layer.experts = DistributedDataParallel(layer.experts, process_group=mesh.get_group("data"))
    names = [f"moe.experts.{name}" for name, _ in layer.experts.named_parameters()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    return DistributedDataParallel(model)


def with_fsdp(layer: ExpertParallel, model: Model, mesh: DeviceMesh) -> torch.nn.Module:
    """Experts sharded once more over the data axis, everything else over all ranks."""
    fully_shard(layer.experts, mesh=mesh["data"])
    return fully_shard(model, mesh=world_mesh("all"))


def trains_as_one_process(rank: int, kind: str, num_experts: int) -> None:
    """A 2 x 2 mesh, data by expert, against one process on the rows of all four ranks."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "expert"))
    case = Case(num_experts, (5, 9, 6, 7), options=(("bias", True),))
    batches, _ = case.batch()
    torch.manual_seed(8)
    whole = Model(case)
    torch.manual_seed(8)
    model = Model(case)
    layer = ExpertParallel(model.moe, mesh["expert"], parameters="local" if kind == "ddp" else "dtensor")
    model.moe = layer
    parallel = (with_ddp if kind == "ddp" else with_fsdp)(layer, model, mesh)
    before = {name: tensor.clone() for name, tensor in whole.moe.state_dict().items()}
    train(whole, batches)
    train(parallel, [batches[rank]])
    full = layer.full_state_dict()
    assert full.keys() == before.keys()
    for name, expected in whole.moe.state_dict().items():
        # A single expert has weight 1, whatever the gate says.
        learns = name != "gate.weight" or num_experts > 1
        assert torch.equal(expected, before[name]) != learns, name
        close(name, full[name], expected)


def saves(rank: int, folder: Path) -> None:
    """The first rank's values count; full_state_dict and a distributed checkpoint hold them."""
    case = Case(6, (1,) * 4, options=(("bias", True),))
    moe = case.moe()
    if rank > 0:
        moe.reset_parameters()
    layer = ExpertParallel(moe, world_mesh())
    full, expected = layer.full_state_dict(), case.moe().state_dict()
    assert full.keys() == expected.keys()
    for name, tensor in full.items():
        assert torch.equal(tensor, expected[name]), name
    local = ExpertParallel(case.moe(), world_mesh(), parameters="local")
    share = layer.experts.bounds[rank + 1] - layer.experts.bounds[rank]
    assert local.experts.down_proj.shape[0] == share
    assert all(map(torch.equal, local.full_state_dict().values(), full.values()))
    dcp.save(layer.state_dict(), checkpoint_id=folder / "checkpoint")


def loads(rank: int, folder: Path) -> None:
    """Another number of ranks reads that checkpoint into a layer that was made without memory."""
    case = Case(6, (1,) * 4, options=(("bias", True),))
    with torch.device("meta"):
        moe = case.moe()
    layer = ExpertParallel(moe, world_mesh()).to_empty(device="cpu")
    state = layer.state_dict()
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    layer.load_state_dict(state)
    for name, tensor in layer.full_state_dict().items():
        assert torch.equal(tensor, case.moe().state_dict()[name]), name


def runs_documentation(rank: int, blocks: list[str]) -> None:
    """The examples of docs/expert_parallel.md: FSDP2 and training, clipping after it, DDP."""
    training, ddp, clipping = blocks
    names: dict[str, Any] = {"DTensor": DTensor, "DistributedDataParallel": DistributedDataParallel}
    exec(training, names)
    x = torch.randn(32, 64)
    (1e6 * names["model"](x).square().mean()).backward()
    exec(clipping, names)
    clipped = [p.grad.full_tensor().norm() for p in names["model"].parameters()]
    torch.testing.assert_close(torch.stack(clipped).norm(), torch.tensor(1.0), rtol=1e-3, atol=0)

    names["moe"] = DynamicMoE(64, 128, num_experts=6, router=names["moe"].router)
    exec(ddp, names)
    names["model"](x).square().mean().backward()
    gate = names["layer"].gate.weight.grad.clone()
    dist.broadcast(gate, 0)
    assert torch.equal(gate, names["layer"].gate.weight.grad)
