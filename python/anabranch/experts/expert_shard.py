"""`ExpertShard`: one rank's experts, and the exchange of rows around them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from anabranch.experts.exchange import Exchange, shard_bounds, split_plan
from anabranch.experts.expert_ffn import compute_dtype, expert_ffn
from anabranch.experts.modules import DynamicMoE
from anabranch.plan import Plan, gather, scatter_add

Parameters = Literal["dtensor", "local"]
Reduction = Literal["mean", "sum"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NAMES = ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias")


class ExpertShard(nn.Module):
    """This rank's experts of an `ExpertParallel`, with the exchange around them; made by it.

    Weights: as `DynamicMoE`, DTensors of its shapes or local tensors with this rank's share of the first dimension.
    """

    def __init__(self, moe: DynamicMoE, mesh: DeviceMesh, parameters: Parameters, reduction: Reduction) -> None:
        super().__init__()
        self.mesh = mesh
        self.activation, self.gated = moe.activation, moe.gated
        self.zero_experts, self.identity_experts = moe.zero_experts, moe.identity_experts
        self.bounds = shard_bounds(moe.gate_up_proj.shape[0], mesh.size())
        self._scale = 1 / mesh.size() if reduction == "mean" else 1.0
        self._shapes: dict[str, torch.Size] = {}
        for name in _NAMES:
            full = getattr(moe, name)
            if full is None:
                self.register_parameter(name, None)
                continue
            self._shapes[name] = full.shape
            shard = distribute_tensor(full.detach(), mesh, [Shard(0)])
            self.register_parameter(
                name, nn.Parameter(shard if parameters == "dtensor" else shard.to_local(), full.requires_grad)
            )

    # Sizes reach the host here and transfers outlive the calls that start them: neither belongs in a graph.
    @torch.compiler.disable
    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        """`[..., H]` through the group's experts as `plan` says for its rows, to the same shape and dtype."""
        hidden = x.reshape(-1, x.shape[-1])
        gate_up_proj, down_proj, gate_up_bias, down_bias = (self._local(name) for name in _NAMES)
        assert gate_up_proj is not None and down_proj is not None
        options: dict[str, Any] = {
            "gate_up_bias": gate_up_bias,
            "down_bias": down_bias,
            "activation": self.activation,
            "gated": self.gated,
        }
        group = self.mesh.get_group()
        dtype = compute_dtype(hidden, gate_up_proj)
        flags = (torch.is_grad_enabled(), hidden.requires_grad, plan.weights is not None and plan.weights.requires_grad)
        mode = _DTYPES.index(dtype) * 8 + sum(flag << bit for bit, flag in enumerate(flags))
        split = split_plan(plan, self.bounds, group, mode)
        pairs = Exchange(group, split.send_pairs, split.recv_pairs)
        pair_rows = Exchange(group, split.send_pairs, split.recv_pairs)
        there = Exchange(group, split.send_rows, split.recv_rows)
        back = Exchange(group, split.recv_rows, split.send_rows)

        pair_rows.start(split.pair_rows)
        weights_token = pairs.send(split.pair_weights)
        # Rows travel in the dtype that the experts work in.
        token = there.send(gather(hidden.to(dtype), split.rows))
        own = expert_ffn(
            hidden,
            gate_up_proj,
            down_proj,
            split.own,
            zero_experts=self.zero_experts,
            identity_experts=self.identity_experts,
            **options,
        )
        received_plan = split.received(pair_rows.wait(), pairs.receive(weights_token))
        received = expert_ffn(there.receive(token), gate_up_proj, down_proj, received_plan, **options)
        returned = back.receive(back.send(received))
        others = scatter_add(returned, split.rows).to(own.dtype)
        # Reshaped before the sum: FSDP2 hooks on a module's output, and an in-place op on a view would lose the hook.
        return own.reshape(x.shape) + others.reshape(x.shape)

    def as_dtensor(self, name: str, local: Tensor) -> DTensor:
        """A local share, as the DTensor that all ranks' shares make up."""
        shape = self._shapes[name]
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    def _local(self, name: str) -> Tensor | None:
        parameter = getattr(self, name)
        if parameter is None:
            return None
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        return local if self._scale == 1 else _ScaleGradient.apply(local, self._scale)

    def extra_repr(self) -> str:
        rank = self.mesh.get_local_rank()
        return f"experts {self.bounds[rank]} to {self.bounds[rank + 1]} of {self.bounds[-1]}"


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None
