"""Spreads the experts of a model over two processes, and compares with one process that has them all.

    torchrun --nproc-per-node 2 examples/expert_parallel.py

Each process has rows of its own, routes them to all experts and holds half of these. The losses of training are printed
beside those of one process on the rows of all; at last rank 0 saves the weights as an ordinary DynamicMoE has them.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from anabranch.experts import DynamicMoE, ExpertParallel, route_top_p

HIDDEN, INTERMEDIATE = 32, 64


def build(num_experts: int) -> nn.Sequential:
    """The same on every rank, for all start from one seed."""
    torch.manual_seed(0)
    moe = DynamicMoE(HIDDEN, INTERMEDIATE, num_experts, router=partial(route_top_p, p=0.5, k_max=3))
    return nn.Sequential(nn.Linear(HIDDEN, HIDDEN), moe, nn.Linear(HIDDEN, HIDDEN))


def rows(step: int, ranks: range, number: int) -> Tensor:
    """What these ranks see at a step."""
    return torch.cat(
        [torch.randn(number, HIDDEN, generator=torch.Generator().manual_seed(97 * step + r)) for r in ranks]
    )


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x.roll(1, dims=-1)).square().mean()


def train(model: nn.Module, ranks: range, options: argparse.Namespace, *, parallel: bool) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)  # foreach mixes no DTensors with others
    losses = []
    for step in range(options.steps):
        loss = loss_of(model, rows(step, ranks, options.rows))
        optimizer.zero_grad()
        loss.backward()
        if parallel:  # the experts' gradients are of all ranks' rows already; the others are this rank's
            for name, parameter in model.named_parameters():
                if ".experts." not in name:
                    dist.all_reduce(parameter.grad, dist.ReduceOp.SUM)
                    parameter.grad /= dist.get_world_size()
            loss = loss.detach().clone()
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=64, help="of each process, a step")
    parser.add_argument("--save", type=Path, help="file for the trained layer's weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()

    model = build(options.experts)
    layer = model[1] = ExpertParallel(model[1], init_device_mesh("cpu", (size,), mesh_dim_names=("expert",)))
    held = layer.experts.down_proj.to_local().shape[0]
    print(f"rank {rank} of {size} holds {held} of {options.experts} experts", flush=True)
    ours = train(model, range(rank, rank + 1), options, parallel=True)
    weights = layer.full_state_dict()  # a collective: every rank calls it
    if rank == 0:
        whole = build(options.experts)
        theirs = train(whole, range(size), options, parallel=False)
        print(f"loss {ours[0]:.4f} at first, {ours[-1]:.4f} after {options.steps} steps; one process: {theirs[-1]:.4f}")
        apart = max((weights[name] - tensor).abs().max().item() for name, tensor in whole[1].state_dict().items())
        print(f"largest difference of a weight: {apart:.1e}")
        if options.save is not None:
            torch.save(weights, options.save)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
