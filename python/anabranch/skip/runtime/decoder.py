"""Which decoder layers are Llama's line: found by running a layer's own forward on stand-ins for its parts.

Names are not enough: Granite's layers have Llama's names and scale the residual, Gemma's norm adds one to its weight.
So each check calls the class's own `forward` on a shadow of the module whose children are simple maps, and looks at
the result. No weight is read, nothing of the model is changed, no random number is drawn.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anabranch.experts.expert_ffn import Activation

_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


@dataclasses.dataclass(frozen=True, eq=False)
class LayerShape:
    """What differs among layers of the one line.

    Attributes:
        norm_kind, norm_eps: of the FFN's norm.
        activation: of the FFN.
        activation_attribute: where the FFN keeps it.
        fused: whether gate and up are one `gate_up_proj`.
        intermediate_size: I.
        parameters: names of the layer's forward arguments, in order.
        dropped: those among them that it does not hand to its attention.
    """

    norm_kind: Literal["rms", "layer"]
    norm_eps: float
    activation: Activation
    fused: bool
    intermediate_size: int
    parameters: tuple[str, ...]
    dropped: frozenset[str]

    @property
    def cache_name(self) -> str:
        """The argument that holds the key-value cache: transformers 5.24 renamed it."""
        return "cache" if "cache" in self.parameters else "past_key_values"


class BoundForward:
    """Base of what `apply` binds as a layer's forward; `apply` may replace such a one."""

    layer: Any
    shape: Any
    shared: Any
    ffn: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """A stack of decoder layers that can skip.

    Attributes:
        module: owns `layers`.
        layers: in order; shapes: one of each.
        hidden_size: H.
    """

    module: nn.Module
    layers: list[Any]
    shapes: list[LayerShape]
    hidden_size: int


def recognise(model: nn.Module) -> Decoder:
    """The decoder in `model`.

    Raises:
        ValueError: there is none or more than one, or a layer is not Llama's line: it is named, and what is missing.
    """
    # A wrapper (torch.compile's) may pass its model's attributes on: the stack's owner has them registered.
    found = [module for module in model.modules() if _is_stack(module)]
    if len(found) != 1:
        raise ValueError(
            f"apply: model is a {type(model).__name__} with {len(found)} stacks of decoder layers with self_attn and "
            "mlp, must have exactly one; pass the part that has it"
        )
    layers = list(found[0].layers)  # type: ignore[arg-type]
    shapes = [_shape(index, layer) for index, layer in enumerate(layers)]
    if len(set(layers)) != len(layers):
        raise ValueError(
            f"apply: model is a {type(model).__name__} that runs one layer more than once, must have layers of their "
            "own; use a model without shared layers"
        )
    return Decoder(found[0], layers, shapes, int(layers[0].mlp.down_proj.weight.shape[0]))


def _is_stack(module: nn.Module) -> bool:
    layers = module._modules.get("layers")
    return (
        isinstance(layers, nn.ModuleList)
        and len(layers) > 0
        and all(hasattr(layer, "self_attn") and hasattr(layer, "mlp") for layer in layers)
    )


def _shape(index: int, layer: nn.Module) -> LayerShape:
    """The layer's shape, or ValueError that says what it is not."""
    name = f"layer {index} ({type(layer).__name__})"
    parameters, dropped = _check_residuals(index, layer, name)
    activation, fused, intermediate = _check_mlp(layer.mlp, name)  # type: ignore[arg-type]
    kind, eps = _check_norm(layer.post_attention_layernorm, name)  # type: ignore[arg-type]
    return LayerShape(kind, eps, activation, fused, intermediate, parameters, dropped)


def _refuse(name: str, got: str, wanted: str) -> ValueError:
    return ValueError(f"apply: {name} is {got}, must be {wanted}; use a decoder with Llama's layers")


class _Map(nn.Module):
    """Stands for a submodule: multiplies by a prime and keeps what it was called with."""

    def __init__(self, factor: int, *, pair: bool = False, offset: int = 0) -> None:
        super().__init__()
        self.factor, self.pair, self.offset = factor, pair, offset
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Any:
        self.arguments = arguments
        result = hidden_states * self.factor + self.offset
        return (result, None) if self.pair else result


class _FusedMap(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.cat((2 * hidden_states, 3 * hidden_states), -1)


def shadow(module: nn.Module, **changed: nn.Module) -> nn.Module:
    """The same object but for some children; shares everything else with `module`."""
    other: nn.Module = object.__new__(type(module))
    other.__dict__.update(module.__dict__)
    other.__dict__["_modules"] = {**module._modules, **changed}
    return other


def _stand_in() -> Tensor:
    return torch.tensor([[[1.0, 10.0]]], dtype=torch.float64, device="cpu")


def _check_residuals(index: int, layer: nn.Module, name: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """x + attention(norm x), then h + mlp(norm h), and every argument of the layer goes to the attention."""
    idle = {key for key, child in layer.named_children() if isinstance(child, nn.Identity)}
    idle |= {key for key, child in layer.named_children() if isinstance(child, nn.Dropout) and child.p == 0}
    children = {key for key, _ in layer.named_children()} - idle
    if children != _PARTS:
        raise _refuse(name, f"made of {', '.join(sorted(children))}", f"made of {', '.join(sorted(_PARTS))} alone")
    if not isinstance(layer.__dict__.get("forward", BoundForward()), BoundForward):
        raise ValueError(
            f"apply: {name} has a forward of its own, must have its class's; remove what replaced it (accelerate's "
            "hooks, another patch) first"
        )
    if getattr(layer.self_attn, "layer_idx", None) != index:
        raise _refuse(name, "without its number in self_attn.layer_idx", f"numbered {index} there")
    signature = inspect.signature(type(layer).forward).parameters.values()
    parameters = tuple(each.name for each in signature if each.kind is each.POSITIONAL_OR_KEYWORD)[1:]
    attention = _Map(3, pair=True)
    twin = shadow(layer, self_attn=attention, mlp=_Map(7), input_layernorm=_Map(2), post_attention_layernorm=_Map(5))
    twin.training = False
    arguments = {key: object() for key in parameters[1:]}
    x = _stand_in()
    try:
        y = type(layer).forward(twin, x, **arguments)
        same = isinstance(y, Tensor) and torch.equal(y, x * (1 + 2 * 3) * (1 + 5 * 7))
    except Exception:  # another line may fail in any way on stand-ins
        same = False
    taken = attention.arguments
    if not same or any(taken[key] is not arguments.get(key) for key in taken):
        raise _refuse(name, "another computation", "h = x + attention(norm(x)), h + mlp(norm(h))")
    return parameters, frozenset(arguments) - frozenset(taken)


def _check_mlp(mlp: nn.Module, name: str) -> tuple[Activation, bool, int]:
    """down(act(gate(x)) * up(x)), of plain linear layers."""
    from anabranch.integrations.transformers import activation_name

    fused = "gate_up_proj" in mlp._modules
    linear = ["gate_up_proj", "down_proj"] if fused else ["gate_proj", "up_proj", "down_proj"]
    act = "act_fn" if hasattr(mlp, "act_fn") else "activation_fn"
    wanted = "down_proj(act_fn(gate_proj(x)) * up_proj(x)) of linear layers and a known activation"
    activation = activation_name(getattr(mlp, act, None))
    others = {key for key, _ in mlp.named_children()} - {*linear, act}
    if others or activation is None or not all(is_linear(getattr(mlp, key, None)) for key in linear):
        raise _refuse(name, f"with {type(mlp).__name__} as FFN", wanted)
    factors = {"gate_proj": _Map(2), "up_proj": _Map(3), "down_proj": _Map(5)}
    maps: dict[str, nn.Module] = {"gate_up_proj": _FusedMap(), "down_proj": _Map(5)} if fused else dict(factors)
    twin = shadow(mlp, **maps, **{act: _Map(1, offset=1)})
    x = _stand_in()
    try:
        same = torch.equal(type(mlp).forward(twin, x), 5 * (2 * x + 1) * 3 * x)
    except Exception:  # as above
        same = False
    if not same:
        raise _refuse(name, f"with {type(mlp).__name__} as FFN", wanted)
    return activation, fused, int(mlp.down_proj.weight.shape[1])  # type: ignore[union-attr,index]


def is_linear(module: object) -> bool:
    """Whether it is y = x W^T + b with floating weights: no adapter around it, no quantized ones."""
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and module.weight.is_floating_point()
    )


def _check_norm(norm: nn.Module, name: str) -> tuple[Literal["rms", "layer"], float]:
    """RMSNorm or LayerNorm with its weight as it is."""
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    weight = norm._parameters.get("weight")
    wanted = "RMSNorm or LayerNorm with weights"
    if eps is None or weight is None or weight.ndim != 1:
        raise _refuse(name, f"with {type(norm).__name__} before the FFN", wanted)
    size = int(weight.shape[0])
    fresh = {"weight": nn.Parameter(torch.linspace(0.5, 1.5, size, device="cpu"), requires_grad=False)}
    if norm._parameters.get("bias") is not None:
        fresh["bias"] = nn.Parameter(torch.linspace(-0.3, 0.4, size, device="cpu"), requires_grad=False)
    twin = shadow(norm)
    twin.__dict__["_parameters"] = {**norm._parameters, **fresh}
    x = torch.linspace(-1e-3, 2e-3, size, device="cpu")[None, None]  # so small that eps shows
    centred = x - x.mean()
    rms = x * (x.square().mean() + eps).rsqrt() * fresh["weight"]
    layer = centred * (centred.square().mean() + eps).rsqrt() * fresh["weight"] + fresh.get("bias", 0.0)
    try:
        y = type(norm).forward(twin, x)
    except Exception:  # as above
        y = x
    if "bias" not in fresh and torch.allclose(y, rms, rtol=1e-4, atol=1e-5):
        return "rms", float(eps)
    if torch.allclose(y, layer, rtol=1e-4, atol=1e-5):
        return "layer", float(eps)
    raise _refuse(name, f"with {type(norm).__name__} before the FFN", wanted)
