"""`DynamicMoE`: an FFN of experts in which the router decides how many each item gets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor, nn

from anabranch.core.arguments import without_autocast
from anabranch.experts.expert_ffn import ACTIVATIONS, Activation, expert_ffn
from anabranch.experts.packed import PackedExperts
from anabranch.experts.packed_cache import PackedCache
from anabranch.plan import Plan


@dataclasses.dataclass(frozen=True, eq=False)
class Routing:
    """What a router decided in one forward, for losses and for looking at.

    Attributes:
        logits: `[T, num_experts + zero_experts + identity_experts]`, the router's scores before its rule.
        plan: the plan that ran; its weights carry the gradient.
    """

    logits: Tensor
    plan: Plan


def gate_logits(hidden: Tensor, gate: nn.Linear) -> Tensor:
    """Scores `[T, groups]` of rows `[T, H]`: float64 for a float64 gate, else float32, under autocast too."""
    dtype = torch.float64 if gate.weight.dtype == torch.float64 else torch.float32
    with without_autocast(hidden.device):
        return nn.functional.linear(hidden.to(dtype), gate.weight.to(dtype))


class DynamicMoE(nn.Module):
    """Mixture of gated FFN experts with any router, at the price of the pairs it routes.

    `y = sum of w_e * down_e(act(gate_e x) * up_e x)` over the experts that `router` gives each row.

    Args:
        hidden_size: H, features in and out.
        intermediate_size: I, features inside one expert.
        num_experts: E.
        router: from logits `[T, groups]` to a plan of T items, for example
            `functools.partial(route_top_p, p=0.4, k_max=4)`; any function of `anabranch.experts` or your own.
        activation, gated: as `expert_ffn`.
        bias: whether the experts have biases.
        zero_experts, identity_experts: extra groups that cost no product (the router scores them as well).

    The router's linear layer has no bias and its logits are computed in float32 (float64 in a float64 module), because
    a choice made in bfloat16 flips with rounding. Its gradient comes through the weights of the pairs that ran and
    nothing else; add a loss of `anabranch.experts` on the returned `Routing` to balance the experts.

    `pack()` makes inference on the CPU use packed weights (`pack_experts`), at the price of a second copy of them.

    Weights: `gate_up_proj [E, 2I, H]` (`[E, I, H]` if not gated), `down_proj [E, H, I]`, as in transformers.

    Raises:
        ValueError: a size below 1, a negative number of null experts, an unknown activation; in `forward`, what it says
            there.

    Cost:
        The router's product, 2*T*H FLOPs per group for T rows, the rule of the router, and `expert_ffn` of the pairs.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        router: Callable[[Tensor], Plan],
        *,
        activation: Activation = "silu",
        gated: bool = True,
        bias: bool = False,
        zero_experts: int = 0,
        identity_experts: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("hidden_size", hidden_size),
            ("intermediate_size", intermediate_size),
            ("num_experts", num_experts),
        ):
            if value < 1:
                raise ValueError(f"DynamicMoE: {name} is {value}, must be at least 1; give a positive size")
        if min(zero_experts, identity_experts) < 0:
            raise ValueError(
                f"DynamicMoE: zero_experts, identity_experts are {zero_experts}, {identity_experts}, "
                "must not be negative; pass 0 for none"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"DynamicMoE: activation is {activation!r}, must be one of {ACTIVATIONS}; pass one of these"
            )
        self.router = router
        self.activation: Activation = activation
        self.gated = gated
        self.zero_experts, self.identity_experts = zero_experts, identity_experts
        rows = (2 if gated else 1) * intermediate_size
        groups = num_experts + zero_experts + identity_experts
        self.gate = nn.Linear(hidden_size, groups, bias=False, device=device, dtype=dtype)
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, rows, hidden_size, device=device, dtype=dtype))
        self.down_proj = nn.Parameter(
            torch.empty(num_experts, hidden_size, intermediate_size, device=device, dtype=dtype)
        )
        self.gate_up_bias = nn.Parameter(torch.empty(num_experts, rows, device=device, dtype=dtype)) if bias else None
        self.down_bias = (
            nn.Parameter(torch.empty(num_experts, hidden_size, device=device, dtype=dtype)) if bias else None
        )
        self._cache: PackedCache | None = None
        self.reset_parameters()

    def pack(self, weight_dtype: torch.dtype | None = None) -> None:
        """From now on calls that need no gradient run on packed weights where these lie on the CPU.

        Packing happens in the first such call, and again after the weights have changed: assigned, moved, written in
        place as `load_state_dict` does, stepped by any `torch.optim` optimizer (fused too), or after any call with
        gradients. A write through `.data` or numpy, or to weights that were made under `torch.inference_mode()`, is
        seen where it changes one of 16 elements spread over the tensor, so one that changes the whole tensor is; after
        one that changes a part call `pack()` again. `weight_dtype` is that of `pack_experts`. The packed copy is in
        neither the state dict, a pickle nor a deep copy: what is loaded or copied packs for itself.

        Raises:
            ValueError: in that call, what `pack_experts` raises.
        """
        self._cache = PackedCache(weight_dtype)

    def unpack(self) -> None:
        """Back to the weights themselves; frees the packed copy."""
        self._cache = None

    @property
    def packed(self) -> PackedExperts | None:
        """The packed copy, once a call has made it."""
        return None if self._cache is None else self._cache.packed

    def reset_parameters(self) -> None:
        """Uniform in ±1/sqrt(features in), as `nn.Linear`, for every expert and bias."""
        self.gate.reset_parameters()
        for weight, bias in ((self.gate_up_proj, self.gate_up_bias), (self.down_proj, self.down_bias)):
            bound = 1 / math.sqrt(weight.shape[2])
            nn.init.uniform_(weight, -bound, bound)
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound)

    @overload
    def forward(self, x: Tensor, return_routing: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, return_routing: Literal[True]) -> tuple[Tensor, Routing]: ...
    def forward(self, x: Tensor, return_routing: bool = False) -> Tensor | tuple[Tensor, Routing]:
        """`[..., H]` to `[..., H]`; with `return_routing` also what was decided.

        Raises:
            ValueError: an `x` of another width or no floating dtype; what the router and `expert_ffn` raise.
        """
        hidden_size = self.gate_up_proj.shape[2]
        if x.dim() == 0 or x.shape[-1] != hidden_size:
            raise ValueError(
                f"DynamicMoE: x has shape {tuple(x.shape)}, must be (..., hidden_size={hidden_size}); "
                "give it that many features"
            )
        if not x.is_floating_point():
            raise ValueError(f"DynamicMoE: x is {x.dtype}, must be a floating dtype; convert it with .float()")
        hidden = x.reshape(-1, hidden_size)
        logits = gate_logits(hidden, self.gate)
        plan = self.router(logits)
        if self._cache is not None and self._cache.applies(self.gate_up_proj):
            packed = self._cache.get_experts(
                self.gate_up_proj, self.down_proj, self.gate_up_bias, self.down_bias, gated=self.gated
            )
            y = packed(
                hidden,
                plan,
                activation=self.activation,
                zero_experts=self.zero_experts,
                identity_experts=self.identity_experts,
            )
        else:
            y = expert_ffn(
                hidden,
                self.gate_up_proj,
                self.down_proj,
                plan,
                gate_up_bias=self.gate_up_bias,
                down_bias=self.down_bias,
                activation=self.activation,
                gated=self.gated,
                zero_experts=self.zero_experts,
                identity_experts=self.identity_experts,
            )
        y = y.reshape(x.shape)
        return (y, Routing(logits, plan)) if return_routing else y

    def extra_repr(self) -> str:
        num_experts, _, hidden = self.gate_up_proj.shape
        return f"hidden_size={hidden}, intermediate_size={self.down_proj.shape[2]}, num_experts={num_experts}"
