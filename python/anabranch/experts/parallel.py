"""`ExpertParallel`: a `DynamicMoE` whose experts are spread over the ranks of a process group."""

from __future__ import annotations

from typing import Any, Literal, get_args, overload

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from anabranch.experts.expert_shard import ExpertShard, Parameters, Reduction
from anabranch.experts.modules import DynamicMoE, Routing, gate_logits


class ExpertParallel(nn.Module):
    """`DynamicMoE` over several processes: each rank holds some experts and routes its own rows to all of them.

    Every rank computes the router on its rows, sends each row to the ranks of its experts and adds up what comes
    back. Rank r of P holds experts `[r * ceil(E / P), (r + 1) * ceil(E / P))`, cut off at E; a rank may hold none.

    Args:
        moe: the same on every rank in shapes, dtypes and options. It is used up: its gate and router become this
            module's. Values are taken from the group's first rank; data-parallel replicas have to start equal. On the
            meta device nothing is communicated: load a checkpoint after `to_empty`.
        mesh: 1-D, or a dim of a larger one (`mesh["expert"]`).
        parameters: "dtensor" makes the experts' parameters DTensors, `Shard(0)` on `mesh`, as FSDP2, distributed
            checkpoints and resharding need them; "local" plain tensors that hold this rank's share, as DDP needs them
            (in torch 2.13 DDP refuses uneven DTensors, and with `device_mesh=` loses them in the first forward).
        gradient_reduction: gradients of the experts come from the rows of the whole group. "mean" divides their sum
            by P, as DDP and FSDP do: it is the gradient of the mean of the ranks' losses. "sum" saves the division,
            which is one pass over the gradients.

    Submodules:
        gate, router: replicated. Like every replicated parameter of the model, the gate has to be averaged over all
            ranks, this group's and the data axis'.
        experts: holds the shard; averaged over the data axis only. It is a module of its own so that
            `fully_shard(moe.experts, mesh=...)` and `DistributedDataParallel(moe.experts, ...)` can do that.

    Raises:
        ValueError: a mesh that is not 1-D or does not hold this rank, a `moe` that differs between ranks, lies on
            another device than the mesh or is already distributed, an unknown option.

    The ranks must run forward and backward equally often and in the same order; the number of rows is each rank's own,
    and may be 0. A rank that dies, raises or stays away makes the others raise within the group's timeout. Routers
    with statistics of their own, and balance losses, see this rank's rows.
    """

    def __init__(
        self,
        moe: DynamicMoE,
        mesh: DeviceMesh,
        *,
        parameters: Parameters = "dtensor",
        gradient_reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check_arguments(moe, mesh, parameters, gradient_reduction)
        self.gate, self.router = moe.gate, moe.router
        if not self.gate.weight.is_meta:
            dist.broadcast(self.gate.weight.detach(), group=mesh.get_group(), group_src=0)
        self.experts = ExpertShard(moe, mesh, parameters, gradient_reduction)

    @overload
    def forward(self, x: Tensor, return_routing: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, return_routing: Literal[True]) -> tuple[Tensor, Routing]: ...
    def forward(self, x: Tensor, return_routing: bool = False) -> Tensor | tuple[Tensor, Routing]:
        """`[..., H]` to `[..., H]`; with `return_routing` also what was decided for this rank's rows.

        Raises:
            ValueError: `x` or the router's plan does not fit: the other ranks then wait until the timeout. Or, on all
                ranks, that they differ in whether `x` requires a gradient, in grad mode or in autocast.
            RuntimeError: a rank of the group died or is later than the group's timeout.

        Cost:
            For each row and each other rank that holds some of its experts, one row each way, and the same again in
            the backward; for each pair of these 8 bytes, and 4 in the backward. One host read (`split_plan`). The
            transfers to the experts, and in the backward those from them, run beside the FFN of this rank's own rows.
            The price of that overlap: the shard's weights are read, and their gradients written, once for own and
            once for received rows. Saved for the backward beyond `expert_ffn`'s own: the rows that come back.
        """
        hidden_size = self.gate.in_features
        if x.dim() < 1 or x.shape[-1] != hidden_size or not x.is_floating_point():
            raise ValueError(
                f"ExpertParallel: x is {x.dtype} of shape {tuple(x.shape)}, must be floating and (..., {hidden_size}); "
                "give it that many features"
            )
        hidden = x.reshape(-1, hidden_size)
        logits = gate_logits(hidden, self.gate)
        plan = self.router(logits)
        if (plan.num_items, plan.num_groups) != logits.shape:
            raise ValueError(
                f"ExpertParallel: the router's plan has {plan.num_items} items and {plan.num_groups} groups, must have "
                f"{logits.shape[0]} and {logits.shape[1]} like the logits; make it of all of them"
            )
        y = self.experts(x, plan)
        return (y, Routing(logits, plan)) if return_routing else y

    def full_state_dict(self) -> dict[str, Tensor]:
        """The `state_dict` of the `DynamicMoE` with these weights, whole on every rank. All ranks must call it.

        Works with either kind of `parameters` and under `fully_shard` or DDP. For checkpoints that no rank holds
        whole, give `state_dict()` with DTensors to `torch.distributed.checkpoint`.
        """
        shard = self.experts.module if isinstance(self.experts, nn.parallel.DistributedDataParallel) else self.experts
        full = {}
        for name, tensor in self.state_dict().items():
            inner = name.removeprefix("experts.").removeprefix("module.")
            if name.startswith("experts.") and not isinstance(tensor, DTensor):
                tensor = shard.as_dtensor(inner, tensor)
            full[inner] = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return full


def _check_arguments(moe: Any, mesh: Any, parameters: str, reduction: str) -> None:
    op = "ExpertParallel"
    if not isinstance(moe, DynamicMoE):
        raise ValueError(
            f"{op}: moe is a {type(moe).__name__}, must be a DynamicMoE; build one of the whole model's size first"
        )
    if isinstance(moe.gate_up_proj, DTensor):
        raise ValueError(f"{op}: moe has DTensor parameters, must not be distributed yet; shard it afterwards")
    if not isinstance(mesh, DeviceMesh):
        raise ValueError(f"{op}: mesh is a {type(mesh).__name__}, must be a DeviceMesh; make one with init_device_mesh")
    if mesh.ndim != 1:
        raise ValueError(f"{op}: mesh has {mesh.ndim} dimensions, must have 1; pass one dim of it, mesh[name]")
    if mesh.get_coordinate() is None:
        raise ValueError(
            f"{op}: mesh is {mesh.mesh.tolist()}, must hold this rank ({dist.get_rank()}); "
            "make it of all ranks that call this"
        )
    device = moe.gate_up_proj.device.type
    if device not in (mesh.device_type, "meta"):
        raise ValueError(
            f"{op}: moe is on {device}, must be on the mesh's device ({mesh.device_type}); "
            "move it there or make a mesh of its device"
        )
    for name, value, options in (
        ("parameters", parameters, get_args(Parameters)),
        ("gradient_reduction", reduction, get_args(Reduction)),
    ):
        if value not in options:
            raise ValueError(f"{op}: {name} is {value!r}, must be one of {options}; pass one of these")
    _check_agreement(moe, mesh, reduction)


def _check_agreement(moe: DynamicMoE, mesh: DeviceMesh, reduction: str) -> None:
    """Ranks that differ would hang or exchange rows of the wrong width later; all of them raise here."""
    ours: dict[str, Any] = {name: (tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in moe.named_parameters()}
    ours["options"] = moe.activation, moe.gated, moe.zero_experts, moe.identity_experts, reduction
    everyones: list[Any] = [None] * mesh.size()
    dist.all_gather_object(everyones, ours, group=mesh.get_group())
    for rank, theirs in enumerate(everyones):
        for name in sorted(everyones[0].keys() | theirs.keys()):
            if theirs.get(name) != everyones[0].get(name):
                raise ValueError(
                    f"ExpertParallel: moe.{name} is {theirs.get(name)} on rank {rank} of the group, must be "
                    f"{everyones[0].get(name)} as on rank 0; build the same module on every rank"
                )
