"""Residual streams mixed by small matrices: hyper-connections with any manifold."""

from anabranch.mixers.connection import Connection, connect
from anabranch.mixers.gated_mean import gated_mean
from anabranch.mixers.matrices import (
    DoublyStochasticResidual,
    cayley,
    grassmann,
    mix_matrix,
    orthogonality_residual,
    permutation_mixture,
    projector_residual,
    sinkhorn,
    stochastic_residual,
    truncated_cayley,
)
from anabranch.mixers.mixer import (
    Cayley,
    Grassmann,
    Identity,
    Mixer,
    PermutationMixture,
    Sinkhorn,
    TruncatedCayley,
    Unconstrained,
    cyclic_permutations,
)
from anabranch.mixers.projection import LinearGates, Projection, SigmoidGates, SoftmaxGates

__all__ = [
    "Cayley",
    "Connection",
    "DoublyStochasticResidual",
    "Grassmann",
    "Identity",
    "LinearGates",
    "Mixer",
    "PermutationMixture",
    "Projection",
    "SigmoidGates",
    "Sinkhorn",
    "SoftmaxGates",
    "TruncatedCayley",
    "Unconstrained",
    "cayley",
    "connect",
    "cyclic_permutations",
    "gated_mean",
    "grassmann",
    "mix_matrix",
    "orthogonality_residual",
    "permutation_mixture",
    "projector_residual",
    "sinkhorn",
    "stochastic_residual",
    "truncated_cayley",
]
