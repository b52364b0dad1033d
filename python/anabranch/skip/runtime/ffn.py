"""The FFN of one decoder layer as `gated_ffn` and `prefix_ffn` take it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anabranch.core.arguments import autocast_dtype
from anabranch.experts.packed_cache import WeightCache
from anabranch.skip.gated_ffn import gated_ffn, prefix_ffn
from anabranch.skip.norm import Norm
from anabranch.skip.packed import pack_ffn
from anabranch.skip.policy import Keep, Width
from anabranch.skip.runtime.decoder import LayerShape, is_linear


def _is_inference(device: torch.device) -> bool:
    """Whether a copy of the weights may stand for them: no gradient, no cast, no trace."""
    return not (torch.is_grad_enabled() or autocast_dtype(device) or torch.compiler.is_compiling())


class LayerFfn:
    """`x + FFN(norm(x))` of one layer, for all tokens by the model's own modules or for some by the ops.

    Attributes:
        layer: the decoder layer; its weights are read in each call.
        cache: of packed weights (CPU) or the two concatenated (GPU), for calls without gradient; None without.
    """

    def __init__(self, layer: Any, shape: LayerShape, packs: bool) -> None:
        self.layer = layer
        self.shape = shape
        self.cache = WeightCache() if packs else None

    def dense(self, x: Tensor) -> Tensor:
        """As the layer's own forward has it, bit for bit; x `[B, S, H]`."""
        return x + self.layer.mlp(self.layer.post_attention_layernorm(x))

    def masked(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """FFN(norm(x)) by the model's modules, its first n hidden features times mask `[B, 1, n]`, the others 0."""
        mlp = self.layer.mlp
        normed = self.layer.post_attention_layernorm(x)
        if mask is None:
            return mlp(normed)
        factors = F.pad(mask, (0, self.shape.intermediate_size - mask.shape[-1]))
        hook = mlp.down_proj.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factors, *inputs[1:]))
        try:
            return mlp(normed)
        finally:
            hook.remove()

    def __call__(self, x: Tensor, decision: Keep | Width, *, cosine: bool = False) -> tuple[Tensor, Tensor | None]:
        """Runs what the decision says; also cos(x, y) `[B, S]` float32 if asked for."""
        norm = self.layer.post_attention_layernorm
        options: dict[str, Any] = {
            "gate": decision.gate,
            "norm": Norm(norm.weight, getattr(norm, "bias", None), self.shape.norm_eps, self.shape.norm_kind),
            "activation": self.shape.activation,
            "otherwise": decision.otherwise,
            "return_cosine": cosine,
        }
        gate_up, down, gate_up_bias, down_bias = self._weights()
        biases: dict[str, Any] = {"gate_up_bias": gate_up_bias, "down_bias": down_bias}
        parts = gate_up if isinstance(gate_up, tuple) else (gate_up,)
        if self.cache is not None and down.device.type == "cpu" and _is_inference(down.device):
            sources = (*parts, down, *self._biases())
            packed = self.cache.get(sources, lambda: pack_ffn(gate_up, down, **biases))
            if isinstance(decision, Width):
                result = packed.prefix(x, decision.index, decision.widths, **options)
            else:
                result = packed(x, decision.mask, **options)
            return result if cosine else (result, None)
        if self.cache is not None and len(parts) == 2 and down.device.type != "cpu" and _is_inference(down.device):
            gate_up = self.cache.get(parts, lambda: torch.cat([part.detach() for part in parts]))
        options.update(biases)
        if isinstance(decision, Width):
            result = prefix_ffn(x, decision.index, gate_up, down, decision.widths, **options)
        else:
            result = gated_ffn(x, decision.mask, gate_up, down, capacity=decision.capacity, **options)
        return result if cosine else (result, None)

    def drop(self) -> None:
        """Frees the copies: a call with gradients may be one that trains the weights."""
        if self.cache is not None:
            self.cache.drop()

    def bytes(self) -> int:
        """Bytes of the three weights."""
        mlp = self.layer.mlp
        names = ("gate_up_proj", "down_proj") if self.shape.fused else ("gate_proj", "up_proj", "down_proj")
        return sum(getattr(mlp, name).weight.nbytes for name in names)

    def _weights(self) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor, Tensor | None, Tensor | None]:
        mlp = self.layer.mlp
        names = ("gate_up_proj", "down_proj") if self.shape.fused else ("gate_proj", "up_proj", "down_proj")
        linear = [getattr(mlp, name) for name in names]
        for name, module in zip(names, linear, strict=True):
            if not is_linear(module):
                raise ValueError(
                    f"forward: mlp.{name} has become a {type(module).__name__}, must be the linear layer that apply "
                    "saw; merge adapters, or remove and apply again"
                )
        if self.shape.fused:
            return linear[0].weight, linear[1].weight, linear[0].bias, linear[1].bias
        bias = None if linear[0].bias is None else torch.cat((linear[0].bias, linear[1].bias))
        return (linear[0].weight, linear[1].weight), linear[2].weight, bias, linear[2].bias

    def _biases(self) -> tuple[Tensor | None, ...]:
        """The model's own, whose identity tells a change; the concatenated one is new in each call."""
        return tuple(module.bias for module in self.layer.mlp.children() if isinstance(module, nn.Linear))
