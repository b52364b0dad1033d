"""Residual streams mixed by small matrices: hyper-connections with any manifold."""

from anabranch.mixers.channel_gate import ChannelGatedConnection, channel_connect, channel_gate
from anabranch.mixers.connection import Connection, connect
from anabranch.mixers.gated_mean import gated_mean
from anabranch.mixers.matrices import (
    cayley,
    grassmann,
    mix_matrix,
    permutation_mixture,
    sinkhorn,
    truncated_cayley,
)
from anabranch.mixers.mixer import (
    Cayley,
    Grassmann,
    Identity,
    Mixer,
    Sinkhorn,
    TruncatedCayley,
    Unconstrained,
)
from anabranch.mixers.modules import HyperConnection
from anabranch.mixers.permutations import PermutationMixture, cyclic_permutations
from anabranch.mixers.presets import Kind
from anabranch.mixers.projection import LinearGates, Projection, SigmoidGates, SoftmaxGates
from anabranch.mixers.residuals import (
    DoublyStochasticResidual,
    orthogonality_residual,
    projector_residual,
    stochastic_residual,
)
from anabranch.mixers.sequence import HyperConnectionSequence
from anabranch.mixers.spectrum import Spectrum, spectrum
from anabranch.mixers.streams import expand_streams, reduce_streams

__all__ = [
    "Cayley",
    "ChannelGatedConnection",
    "Connection",
    "DoublyStochasticResidual",
    "Grassmann",
    "HyperConnection",
    "HyperConnectionSequence",
    "Identity",
    "Kind",
    "LinearGates",
    "Mixer",
    "PermutationMixture",
    "Projection",
    "SigmoidGates",
    "Sinkhorn",
    "SoftmaxGates",
    "Spectrum",
    "TruncatedCayley",
    "Unconstrained",
    "cayley",
    "channel_connect",
    "channel_gate",
    "connect",
    "cyclic_permutations",
    "expand_streams",
    "gated_mean",
    "grassmann",
    "mix_matrix",
    "orthogonality_residual",
    "permutation_mixture",
    "projector_residual",
    "reduce_streams",
    "sinkhorn",
    "spectrum",
    "stochastic_residual",
    "truncated_cayley",
]
