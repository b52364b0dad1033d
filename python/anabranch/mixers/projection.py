"""What turns streams into coefficients: gates, and `Projection`, the parameters of one stream step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from anabranch.core.arguments import check_floating, check_same_device
from anabranch.mixers.mixer import Mixer, check_mixer, check_num_streams


@dataclass(frozen=True)
class SigmoidGates:
    """`p = sigmoid + pre_eps`, `q = post_scale * sigmoid + post_eps`, n logits each: mHC, mHC-lite, transformers."""

    pre_eps: float = 0.0
    post_scale: float = 2.0
    post_eps: float = 0.0

    def num_logits(self, n: int) -> int:
        """Logits of p; q has as many."""
        return n


@dataclass(frozen=True)
class SoftmaxGates:
    """n^2 logits each: p is the mean of the rows' softmaxes, q the sums of the columns': JPmHC.

    Args:
        temperature: what the logits are divided by.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"SoftmaxGates: temperature is {self.temperature}, must be positive; 1 is usual")

    def num_logits(self, n: int) -> int:
        """Logits of p; q has as many."""
        return n * n


@dataclass(frozen=True)
class LinearGates:
    """p and q are the logits: Hyper-Connections."""

    def num_logits(self, n: int) -> int:
        """Logits of p; q has as many."""
        return n


Gates: TypeAlias = SigmoidGates | SoftmaxGates | LinearGates
_GATE_KINDS = {SigmoidGates: 0, SoftmaxGates: 1, LinearGates: 2}


def check_gates(op: str, gates: Gates) -> None:
    """Raises ValueError for what is none of the gates above."""
    if type(gates) not in _GATE_KINDS:
        raise ValueError(
            f"{op}: gates is {gates!r}, must be SigmoidGates, SoftmaxGates or LinearGates; pass one of these"
        )


@dataclass(frozen=True, eq=False)
class Projection:
    """The parameters of one stream step: `logits = scale * (weight @ norm(x)) + bias`, coefficients from the logits.

    Logits in order: those of p, of q, of the mixer. With `per_stream` every stream j has its own norm and product, and
    its logits are `q_j, p_j, the mixer's row j`.

    Args:
        weight: `[num_logits, n * C]`, or `[num_logits / n, C]` with per_stream; None: the logits are the bias, the same
            for every token (static hyper-connections).
        scale: `[num_logits]`; bias: `[num_logits]`.
        mixer: how H comes from its logits; gates: how p and q do. Name the gates where a Projection is made inside
            torch.compile, which cannot make the default.
        norm_eps: under the root of the RMSNorm that is folded behind the product.
        layer_norm: LayerNorm in its place.
        tanh: `logits = scale * tanh(product) + bias`.
        per_stream: see above.

    Everything is computed in float32, or in float64 for float64 streams, whatever the parameters' dtype.
    """

    weight: Tensor | None
    scale: Tensor
    bias: Tensor
    mixer: Mixer
    gates: Gates = SigmoidGates()
    norm_eps: float = 1e-6
    layer_norm: bool = False
    tanh: bool = False
    per_stream: bool = False

    def num_logits(self, n: int) -> int:
        """For n streams."""
        return 2 * self.gates.num_logits(n) + self.mixer.num_logits(n)

    def check(self, op: str, x: Tensor) -> None:
        """Raises ValueError where the parameters do not fit streams `[..., n, C]`."""
        check_mixer(op, self.mixer)
        check_gates(op, self.gates)
        check_floating(op, x=x, weight=self.weight, scale=self.scale, bias=self.bias)
        if x.dim() < 2 or x.shape[-1] == 0:
            raise ValueError(f"{op}: x has shape {tuple(x.shape)}, must be (..., streams, channels); expand_streams()")
        check_same_device(op, "x", x, weight=self.weight, scale=self.scale, bias=self.bias)
        n, channels = x.shape[-2:]
        check_num_streams(op, n)
        logits = self.num_logits(n)
        for name, tensor in (("scale", self.scale), ("bias", self.bias)):
            if tensor.shape != (logits,):
                raise ValueError(
                    f"{op}: {name} has shape {tuple(tensor.shape)}, must be ({logits},) for {n} streams; "
                    "give one number per logit"
                )
        parts = n if self.per_stream else 1
        if self.per_stream and (isinstance(self.gates, SoftmaxGates) or logits % n):
            raise ValueError(
                f"{op}: per_stream is True, must be False for {type(self.mixer).__name__} with "
                f"{type(self.gates).__name__}; use a mixer with logits for each stream"
            )
        shape = (logits // parts, n * channels // parts)
        if self.weight is not None and self.weight.shape != shape:
            raise ValueError(
                f"{op}: weight has shape {tuple(self.weight.shape)}, must be {shape} for {n} streams of {channels} "
                "channels; give one row per logit"
            )

    def tensors(self, x: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """weight, scale and bias as the kernels take them: in the dtype of the sums, a LayerNorm's weight centred."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        weight = None if self.weight is None else self.weight.to(dtype)
        if weight is not None and self.layer_norm:
            weight = weight - weight.mean(-1, keepdim=True)
        return weight, self.scale.to(dtype), self.bias.to(dtype)

    def options(self, x: Tensor) -> tuple[Any, ...]:
        """What the kernels' schemas ask for after the tensors, in their order."""
        gates = self.gates
        sigmoid = gates if isinstance(gates, SigmoidGates) else SigmoidGates()
        temperature = gates.temperature if isinstance(gates, SoftmaxGates) else 1.0
        n = x.shape[-2]
        return (
            n if self.per_stream else 1,
            self.norm_eps,
            self.layer_norm,
            self.tanh,
            _GATE_KINDS[type(gates)],
            sigmoid.pre_eps,
            sigmoid.post_scale,
            sigmoid.post_eps,
            temperature,
            self.per_stream,
            *self.mixer.arguments(n, x.device),
        )


def check_projection(op: str, projection: Projection) -> None:
    """Raises ValueError for what is no `Projection`."""
    if not isinstance(projection, Projection):
        raise ValueError(
            f"{op}: projection is a {type(projection).__name__}, must be a Projection; a HyperConnection's is "
            "its .projection()"
        )
