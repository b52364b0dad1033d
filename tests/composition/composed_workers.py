"""What the ranks run in the tests of the composed model."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from dynamic_model import HIDDEN, STREAMS, DynamicModel, build, loss_of, tokens
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from anabranch.mixers import HyperConnectionSequence, expand_streams
from anabranch.skip import State


def all_of_them(rank: int) -> None:
    """In one pair of processes, for starting them takes longest."""
    for kind in ("ddp", "fsdp"):
        trains_as_one_process(rank, kind)
    trains_in_bfloat16(rank)
    sequence_is_sharded_whole(rank)


def sharded(model: DynamicModel, policy: MixedPrecisionPolicy) -> nn.Module:
    """Each block by itself, the rest, the skip policy with it, with the model."""
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def trains_as_one_process(rank: int, kind: str) -> None:
    """Each rank on half of a batch, one process on all of it: losses, inference on packed experts, weights."""
    ids, world = tokens(4), dist.get_world_size()
    mine = ids.chunk(world)[rank]
    whole, model = build(), build(checkpointed="no" if kind == "ddp" else "other")
    parallel = DistributedDataParallel(model) if kind == "ddp" else sharded(model, MixedPrecisionPolicy())
    for block in model.blocks[1::2]:
        block.sublayer.moe.pack()
    runs = [
        (each, torch.optim.SGD(each.parameters(), lr=0.3, momentum=0.9), rows)
        for each, rows in ((parallel, mine), (whole, ids))
    ]
    first = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    for _ in range(3):
        losses = []
        for each, optimizer, rows in runs:
            optimizer.zero_grad()
            losses.append(loss_of(each, rows))
            losses[-1].backward()
            optimizer.step()
        mean = losses[0].detach() / world
        dist.all_reduce(mean)
        torch.testing.assert_close(mean, losses[1].detach(), rtol=1e-5, atol=1e-5)
        with torch.no_grad():  # weights packed in the step before would show
            torch.testing.assert_close(parallel(mine), whole(mine), rtol=1e-4, atol=1e-4)
    if kind != "ddp":
        parallel.reshard()  # type: ignore[operator]
    for (name, expected), tensor in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert isinstance(tensor, DTensor) == (kind != "ddp") and not torch.equal(expected, first[name]), name
        torch.testing.assert_close(full, expected, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def trains_in_bfloat16(rank: int) -> None:
    """FSDP2's mixed precision: bfloat16 weights in the kernels, float32 ones in the optimizer."""
    mine = tokens(4).chunk(dist.get_world_size())[rank]
    model = build()
    loss = loss_of(sharded(model, MixedPrecisionPolicy(torch.bfloat16, torch.float32)), mine)
    loss.backward()

    torch.testing.assert_close(loss, loss_of(build(), mine), rtol=0.02, atol=0)
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.full_tensor().isfinite().all(), name


def sequence_is_sharded_whole(rank: int) -> None:
    """A sequence calls its sub-layers, not its blocks: one that was sharded by itself would never be gathered."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    x = expand_streams(torch.ones(2, 5, HIDDEN), STREAMS)
    for whole in (True, False):
        model = build()
        sequence = HyperConnectionSequence(model.blocks)
        fully_shard(sequence if whole else sequence.blocks[1], mesh=mesh)
        try:
            y = sequence(x, model.policy, State(2))
        except ValueError as error:
            assert not whole and "blocks[1] is sharded by itself" in str(error), error
        else:
            assert whole
            torch.testing.assert_close(y, HyperConnectionSequence(build().blocks)(x, model.policy, State(2)))
