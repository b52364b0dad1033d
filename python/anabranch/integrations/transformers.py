"""transformers 5.x: `experts_implementation="anabranch"` in any of its mixture-of-experts models; `patch_mixers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anabranch import plan as plans
from anabranch.experts.expert_ffn import Activation, expert_ffn
from anabranch.experts.grouped_mm import routed_mm
from anabranch.experts.packed_cache import PackedCache
from anabranch.integrations.mixers import patch_mixers, restore_mixers

NAME = "anabranch"
"""The value of `experts_implementation`."""

_CACHE = "_anabranch_packed"  # attribute of an experts module


def register() -> None:
    """Makes "anabranch" an experts implementation of transformers; calling it again changes nothing.

    Then `AutoModel.from_pretrained(..., experts_implementation="anabranch")`, or on a model that exists
    `model.set_experts_implementation("anabranch")`.

    Raises:
        ImportError: transformers is missing or older than 5.

    Cost:
        Imports transformers where nobody has.
    """
    try:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    except ImportError as error:
        raise ImportError(
            "anabranch.integrations.transformers needs transformers 5.0 or later: pip install 'transformers>=5'"
        ) from error
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


def pack(model: nn.Module, weight_dtype: torch.dtype | None = None) -> int:
    """From now on the model's experts run on packed weights where no gradient is wanted and they lie on the CPU.

    Only the "anabranch" implementation reads them; the model's weights stay, and training and other implementations
    use those. Each module packs in its first such call, and again after its weights have changed, as
    `DynamicMoE.pack` has it. The packed copies are in neither the state dict, a pickle nor a deep copy.

    Experts with a gate or an activation of their own (gpt-oss), or a norm behind each expert, stay unpacked.

    Args:
        model: of transformers, or any module that holds such models.
        weight_dtype: as `pack_experts`: None keeps the weights' dtype, `torch.int8` rounds them.

    Returns:
        How many experts modules pack; 0 where the model has none that can.

    Raises:
        ValueError: later, in the call that packs, what `pack_experts` raises.

    Cost:
        Memory for a second copy of the experts' weights; time as `pack_experts`, in the first call.
    """
    unpack(model)
    modules = [
        module
        for module in model.modules()
        if _is_experts(module) and _activation(module) is not None and not _has_norm(module)
    ]
    for module in modules:
        setattr(module, _CACHE, PackedCache(weight_dtype))
    return len(modules)


def unpack(model: nn.Module) -> None:
    """Back to the weights themselves; frees the packed copies.

    Args:
        model: packed or not.

    Cost:
        A walk over the modules.
    """
    for module in model.modules():
        if hasattr(module, _CACHE):
            delattr(module, _CACHE)


def experts_forward(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The experts of one layer as transformers calls them.

    Args:
        experts: the layer's experts module, with its weights and `num_experts`.
        hidden_states: `[T, H]`.
        top_k_index: int64 `[T, K]`; an id of `num_experts` or more means "no expert".
        top_k_weights: `[T, K]`.

    Returns:
        `[T, H]` in the dtype of `hidden_states`.

    Raises:
        ValueError: a negative id (CPU), or what `expert_ffn` raises of shapes, dtypes and devices.

    Cost:
        As `expert_ffn`, packed weights as `PackedExperts`. Experts with a gate or an activation of their own, or a norm
        behind each expert, are composed of `gather`, two `grouped_mm` and `scatter_add`: the same products, and the
        rows between them are written and read.
    """
    num_experts = experts.num_experts
    plan = plans.from_top_k(top_k_index.clamp(max=num_experts), top_k_weights, num_groups=num_experts)
    activation = _activation(experts)
    if activation is None or _has_norm(experts):
        return _composed(experts, hidden_states, plan)
    gated, has_bias = getattr(experts, "has_gate", True), getattr(experts, "has_bias", False)
    gate_up_proj, down_proj = experts.gate_up_proj if gated else experts.up_proj, experts.down_proj
    gate_up_bias = (experts.gate_up_proj_bias if gated else experts.up_proj_bias) if has_bias else None
    down_bias = experts.down_proj_bias if has_bias else None
    transposed = getattr(experts, "is_transposed", False)
    cache: PackedCache | None = getattr(experts, _CACHE, None)
    if cache is not None and cache.applies(gate_up_proj):
        packed = cache.get_experts(gate_up_proj, down_proj, gate_up_bias, down_bias, gated=gated, transposed=transposed)
        return packed(hidden_states, plan, activation=activation)
    return expert_ffn(
        hidden_states,
        gate_up_proj,
        down_proj,
        plan,
        gate_up_bias=gate_up_bias,
        down_bias=down_bias,
        activation=activation,
        gated=gated,
        transposed=transposed,
    )


def _is_experts(module: nn.Module) -> bool:
    """Whether transformers calls `experts_forward` with this module: its decorator gives the class a gate."""
    return hasattr(module, "_apply_gate") and hasattr(module, "num_experts")


def _has_norm(experts: Any) -> bool:
    return bool(getattr(experts, "has_post_expert_norm", False))


def _activation(experts: Any) -> Activation | None:
    """Our name for the module's activation; None if its gate is its own or the activation is unknown.

    transformers' default gate takes the first half of the features as the gate whatever the layout is called; a model
    with interleaved weights brings a gate of its own.
    """
    from transformers.integrations.moe import _default_apply_gate

    if getattr(experts, "has_gate", True) and type(experts)._apply_gate is not _default_apply_gate:
        return None
    return activation_name(experts.act_fn)


def activation_name(function: object) -> Activation | None:
    """Our name for an activation of transformers or torch; None if the kernels have no such one."""
    from transformers import activations

    names: list[tuple[type, Activation]] = [
        (nn.SiLU, "silu"),
        (activations.SiLUActivation, "silu"),
        (nn.ReLU, "relu"),
        (activations.ReLUSquaredActivation, "relu2"),
        (activations.GELUTanh, "gelu_tanh"),
        (activations.NewGELUActivation, "gelu_tanh"),
        (activations.GELUActivation, "gelu"),
        (nn.Identity, "identity"),
    ]
    if isinstance(function, nn.GELU):
        return "gelu_tanh" if function.approximate == "tanh" else "gelu"
    return next((name for kind, name in names if isinstance(function, kind)), None)


def _composed(experts: Any, hidden_states: Tensor, plan: plans.Plan) -> Tensor:
    """Gather, grouped products and combine around whatever the module does between and after them."""
    gated, transposed = getattr(experts, "has_gate", True), getattr(experts, "is_transposed", False)
    has_bias = getattr(experts, "has_bias", False)
    up = experts.gate_up_proj if gated else experts.up_proj
    up_bias = (experts.gate_up_proj_bias if gated else experts.up_proj_bias) if has_bias else None
    down, down_bias = experts.down_proj, experts.down_proj_bias if has_bias else None
    rows = plans.gather(hidden_states.to(up.dtype), plan)
    hidden = routed_mm(rows, up if transposed else up.mT, plan, bias=up_bias)
    hidden = experts._apply_gate(hidden) if gated else experts.act_fn(hidden)
    out = routed_mm(hidden.to(down.dtype), down if transposed else down.mT, plan, bias=down_bias)
    if _has_norm(experts):
        out = experts.post_expert_norm(out)
    # Rows past the plan's end are not read by the combine, whatever a norm or a bias made of them.
    return plans.scatter_add(out, plan).to(hidden_states.dtype)


__all__ = ["NAME", "experts_forward", "pack", "patch_mixers", "register", "restore_mixers", "unpack"]
