"""The hyper-connections of the papers: mixer, gates and first parameters by name, for `HyperConnection`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from anabranch.mixers.mixer import (
    Cayley,
    Grassmann,
    Identity,
    Mixer,
    Sinkhorn,
    TruncatedCayley,
    Unconstrained,
)
from anabranch.mixers.permutations import PermutationMixture, cyclic_permutations
from anabranch.mixers.projection import Gates, LinearGates, SigmoidGates, SoftmaxGates

Kind: TypeAlias = Literal["hc", "hc_static", "mhc", "mhc_exact", "mhc_lite", "jpmhc", "grassmann", "identity"]
"""What `HyperConnection(kind=...)` takes; docs/mixers.md has the papers."""

# exp(-8) beside 1: H starts near the identity, and its gradient does not vanish.
_OFF = -8.0


@dataclass(frozen=True)
class Preset:
    """What a paper fixes. See `Projection` for the fields of the same names.

    Attributes:
        dynamic: coefficients depend on the streams.
        scale: first value of every scale.
        weight_std: of the normal distribution that the weight starts from; 0: it starts at zero, which is only for
            biases that tell the streams apart: equal streams with equal coefficients would stay equal for ever.
    """

    mixer: Mixer
    gates: Gates
    dynamic: bool = True
    layer_norm: bool = False
    tanh: bool = False
    per_stream: bool = False
    scale: float = 1.0
    weight_std: float = 0.0


def preset(kind: Kind, n: int) -> Preset:
    """The preset of that name for n streams.

    Raises:
        ValueError: an unknown name.
    """
    hc = {"mixer": Unconstrained(transpose=True), "gates": LinearGates(), "per_stream": True}
    permutations = cyclic_permutations(n) if n > 5 else None
    presets = {
        "hc": Preset(**hc, layer_norm=True, tanh=True, scale=0.01),  # type: ignore[arg-type]
        "hc_static": Preset(**hc, dynamic=False),  # type: ignore[arg-type]
        "mhc": Preset(Sinkhorn(20), SigmoidGates(), scale=0.01, weight_std=0.02),
        "mhc_exact": Preset(Sinkhorn(tol=1e-6), SigmoidGates(), scale=0.01, weight_std=0.02),
        "mhc_lite": Preset(PermutationMixture(permutations), SigmoidGates(), scale=0.01),
        "jpmhc": Preset(Cayley(), SoftmaxGates(), layer_norm=True, weight_std=0.02),
        "grassmann": Preset(Grassmann(), SoftmaxGates(), layer_norm=True, weight_std=0.02),
        "identity": Preset(Identity(), SigmoidGates(), weight_std=0.02),
    }
    if kind not in presets:
        raise ValueError(f"HyperConnection: kind is {kind!r}, must be one of {tuple(presets)}; pass one of these")
    return presets[kind]


def initial_bias(mixer: Mixer, gates: Gates, n: int, *, layer_index: int, per_stream: bool) -> Tensor:
    """Logits `[num_logits]` at the start, float32 on torch's default device, in the order that `Projection` has them.

    Linear gates read stream `layer_index mod n` and write all with weight 1; sigmoid gates lean to that stream by ±1,
    or with `Identity` read the mean; softmax gates read the mean and write with 1. Mixing starts at or near the
    identity, `Grassmann` at the projector on the `rank` smoothest cosines, the mean of the streams first.
    """
    mixing = _initial_mixing(mixer, n)
    own = torch.arange(n) == layer_index % n
    if isinstance(gates, LinearGates):
        pre, post = own.float(), torch.ones(n)
    elif isinstance(gates, SoftmaxGates):
        pre = post = torch.zeros(n * n)
    elif isinstance(mixer, Identity):
        pre, post = torch.full((n,), -math.log(n - 1)), torch.zeros(n)
    else:
        pre = post = own.float() * 2 - 1
    if per_stream:
        return torch.cat([post[:, None], pre[:, None], mixing.view(n, -1)], 1).flatten()
    return torch.cat([pre, post, mixing])


def _initial_mixing(mixer: Mixer, n: int) -> Tensor:
    logits = torch.zeros(mixer.num_logits(n))
    if isinstance(mixer, Unconstrained):
        return torch.eye(n).flatten()
    if isinstance(mixer, Sinkhorn):
        return (1 - torch.eye(n)).mul(_OFF).flatten()
    if isinstance(mixer, PermutationMixture):
        identity = tuple(range(n))
        if identity in mixer.table(n):
            logits.fill_(_OFF)[mixer.table(n).index(identity)] = 0
        return logits
    if isinstance(mixer, Grassmann):
        places, frequencies = torch.arange(n)[:, None] + 0.5, torch.arange(mixer.rank_of(n))
        return torch.cos(math.pi / n * places * frequencies).flatten()
    if not isinstance(mixer, (Identity, Cayley, TruncatedCayley)):
        raise ValueError(f"HyperConnection: mixer is {mixer!r}, must be one of anabranch.mixers; pass one of these")
    return logits
