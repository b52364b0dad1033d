"""The stream step as a composition of torch's ops, and the projections that tests run it with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from matrix_references import cayley, grassmann, permutation_mixture, shipped, sinkhorn
from torch import Tensor

from anabranch.mixers import (
    Cayley,
    Grassmann,
    Identity,
    LinearGates,
    Mixer,
    PermutationMixture,
    Projection,
    SigmoidGates,
    Sinkhorn,
    SoftmaxGates,
    Unconstrained,
    connect,
    cyclic_permutations,
)


def mixing(mixer: Mixer, logits: Tensor, n: int) -> Tensor:
    if isinstance(mixer, Identity):
        return torch.eye(n, dtype=logits.dtype).expand(*logits.shape[:-1], n, n)
    if isinstance(mixer, PermutationMixture):
        return permutation_mixture(logits, mixer.table(n))
    if isinstance(mixer, Grassmann):
        return grassmann(logits.unflatten(-1, (n, n // 2)))
    square = logits.unflatten(-1, (n, n))
    if isinstance(mixer, Cayley):
        return cayley(square, mixer.scale)
    if isinstance(mixer, Sinkhorn) and mixer.order == "rows_first":
        return shipped(square, mixer.iters, mixer.eps).mT
    if isinstance(mixer, Sinkhorn):
        return sinkhorn(square, 100 if mixer.tol else mixer.iters or 20)
    return square


def coefficients(x: Tensor, given: Projection) -> tuple[Tensor, Tensor, Tensor]:
    """p, q and H, in the dtype of the sums."""
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    n, scale, bias = x.shape[-2], given.scale.to(sums), given.bias.to(sums)
    logits = bias.expand(*x.shape[:-2], len(bias))
    if given.weight is not None:
        read = x.to(sums) if given.per_stream else x.to(sums).flatten(-2).unsqueeze(-2)
        normed = (F.layer_norm if given.layer_norm else F.rms_norm)(read, read.shape[-1:], eps=given.norm_eps)
        product = (normed @ given.weight.to(sums).mT).flatten(-2)
        logits = scale * (product.tanh() if given.tanh else product) + bias
    count, gates = given.gates.num_logits(n), given.gates
    if given.per_stream:
        rows = logits.unflatten(-1, (n, -1))
        post, pre, rest = rows[..., 0], rows[..., 1], rows[..., 2:].flatten(-2)
    else:
        pre, post, rest = logits.split([count, count, logits.shape[-1] - 2 * count], -1)
    if isinstance(gates, SigmoidGates):
        pre = pre.sigmoid() + gates.pre_eps
        post = gates.post_scale * post.sigmoid() + gates.post_eps
    elif isinstance(gates, SoftmaxGates):
        pre = (pre.unflatten(-1, (n, n)) / gates.temperature).softmax(-1).mean(-2)
        post = (post.unflatten(-1, (n, n)) / gates.temperature).softmax(-2).sum(-1)
    return pre, post, mixing(given.mixer, rest, n)


def by_torch(
    x: Tensor, given: Sequence[Projection], layers: Sequence[Callable[[Tensor], Tensor]], lagged: bool = False
) -> Tensor:
    """Steps one after another, sums in the dtype of the coefficients, rounded once to that of the streams."""
    before = None
    for projection, layer in zip(given, layers, strict=True):
        p, q, h = coefficients(x, projection)
        reads = before if lagged and before is not None else p
        u = (reads.unsqueeze(-1) * x).sum(-2).to(x.dtype)
        y = layer(u).to(x.dtype)
        x, before = (h @ x.to(h.dtype) + q.unsqueeze(-1) * y.unsqueeze(-2)).to(x.dtype), p
    return x


def by_steps(
    x: Tensor, given: Sequence[Projection], layers: Sequence[Callable[[Tensor], Tensor]], lagged: bool = False
) -> Tensor:
    step = None
    for projection, layer in zip(given, layers, strict=True):
        step = connect(x, projection, lag=step if lagged else None)
        x = step.merge(layer(step.input))
    return x


def by_fused_steps(
    x: Tensor, given: Sequence[Projection], layers: Sequence[Callable[[Tensor], Tensor]], lagged: bool = False
) -> Tensor:
    step = connect(x, given[0])
    for projection, layer in zip(given[1:], layers, strict=False):
        step = step.merge_and_connect(layer(step.input), projection, lagged=lagged)
    return step.merge(layers[-1](step.input))


# Mixer, gates, Projection's other fields, whether there is a weight.
KINDS: dict[str, tuple[Mixer, Any, dict[str, Any], bool]] = {
    "mhc": (Sinkhorn(), SigmoidGates(), {}, True),
    "shipped": (Sinkhorn(20, eps=1e-6, order="rows_first", transpose=True), SigmoidGates(1e-6), {}, True),
    "exact": (Sinkhorn(tol=1e-10), SigmoidGates(), {"norm_eps": 1e-2}, True),
    "lite": (PermutationMixture(), SigmoidGates(), {}, True),
    "jpmhc": (Cayley(), SoftmaxGates(0.5), {"layer_norm": True}, True),
    "grassmann": (Grassmann(), SoftmaxGates(), {"layer_norm": True}, True),
    "hc": (Unconstrained(), LinearGates(), {"tanh": True, "per_stream": True}, True),
    "hc_normed": (Unconstrained(), LinearGates(), {"tanh": True, "per_stream": True, "layer_norm": True}, True),
    "static_hc": (Unconstrained(), LinearGates(), {}, False),
    "identity": (Identity(), SigmoidGates(0.1, 2.0, 0.1), {}, True),
}


def projection(kind: str, n: int, channels: int, dtype: torch.dtype = torch.float64) -> Projection:
    """Random parameters; logits of a standard deviation of about 1."""
    mixer, gates, fields, weighted = KINDS[kind]
    if isinstance(mixer, PermutationMixture) and n > 4:
        mixer = PermutationMixture(cyclic_permutations(n))
    logits = 2 * gates.num_logits(n) + mixer.num_logits(n)
    parts = n if fields.get("per_stream") else 1
    width = n * channels // parts

    def values(*shape: int, scale: float) -> Tensor:
        return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    weight = values(logits // parts, width, scale=width**-0.5) if weighted else None
    return Projection(weight, values(logits, scale=1.0), values(logits, scale=0.5), mixer, gates, **fields)


def mapped(given: Projection, change: Callable[[Tensor], Tensor]) -> Projection:
    """With other tensors."""
    weight = None if given.weight is None else change(given.weight)
    return dataclasses.replace(given, weight=weight, scale=change(given.scale), bias=change(given.bias))


def tensors(given: Sequence[Projection]) -> Iterator[Tensor]:
    """What learns; a scale without a weight to scale does not."""
    for one in given:
        yield from (one.bias,) if one.weight is None else (one.weight, one.scale, one.bias)
