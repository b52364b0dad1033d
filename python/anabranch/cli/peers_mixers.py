"""What stream steps and mixers are compared with: compositions of torch's ops as the models and releases write them,
eager or compiled by torch.compile."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
Function = Callable[..., Tensor]


def sinkhorn(logits: Tensor, iters: int = 20) -> Tensor:
    """The shipped order of transformers' deepseek_v4, whose H is the transpose of what it iterates on.

    Args:
        logits: `[..., n, n]`, float32.
    """
    comb = torch.softmax(logits, -1) + EPS
    comb = comb / (comb.sum(-2, keepdim=True) + EPS)
    for _ in range(iters - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + EPS)
        comb = comb / (comb.sum(-2, keepdim=True) + EPS)
    return comb.transpose(-1, -2)


def permutation_mixture(logits: Tensor, n: int = 4) -> Tensor:
    """A softmax times the matrices of all permutations, as in FFTYYY/mhc-lite."""
    mixture = torch.softmax(logits, -1) @ _permutation_matrices(n, logits.device)
    return mixture.unflatten(-1, (n, n))


@functools.cache
def _permutation_matrices(n: int, device: torch.device) -> Tensor:
    eye = torch.eye(n, device=device)
    return torch.stack([eye[list(order)].flatten() for order in itertools.permutations(range(n))])


def cayley(logits: Tensor, scale: float = 0.1) -> Tensor:
    """The exact map, by a batched solve."""
    skew = scale / 2 * (logits - logits.transpose(-1, -2))
    eye = torch.eye(skew.shape[-1], device=skew.device)
    return torch.linalg.solve(eye - skew, eye + skew)


def identity(u: Tensor) -> Tensor:
    """The sub-layer that returns its input."""
    return u


def mhc_step(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, sublayer: Function = identity) -> Tensor:
    """transformers' hyper-connection module and decoder layer around a sub-layer.

    Args:
        x: `[T, n, C]`; weight: `[n * (n + 2), n * C]`; scale, bias: `[n * (n + 2)]`, float32.
    """
    n = x.shape[1]
    logits = _logits(x, weight, scale, bias)
    return _mixed(x, *_sigmoid_gates(logits, n), sinkhorn(logits[:, 2 * n :].unflatten(-1, (n, n))), sublayer)


def lite_step(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """mHC-lite in the same composition; weight `[n! + 2 * n, n * C]`."""
    n = x.shape[1]
    logits = _logits(x, weight, scale, bias)
    return _mixed(x, *_sigmoid_gates(logits, n), permutation_mixture(logits[:, 2 * n :], n))


def jpmhc_step(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """JPmHC with the exact map: LayerNorm, softmax gates; weight `[3 * n * n, n * C]`."""
    n = x.shape[1]
    flat = F.layer_norm(x.flatten(1).float(), (n * x.shape[2],), eps=EPS)
    pre, post, mixing = (F.linear(flat, weight) * scale + bias).view(-1, 3, n, n).unbind(1)
    return _mixed(x, torch.softmax(pre, -1).mean(-2), torch.softmax(post, -2).sum(-1), cayley(mixing))


def hc_step(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Dynamic hyper-connections: a norm and a product for each stream; weight `[n + 2, C]`, scale and bias
    `[n * (n + 2)]`, of each stream its part of q, p and its row of A_r."""
    n = x.shape[1]
    normed = F.rms_norm(x.float(), (x.shape[2],), eps=EPS)
    logits = torch.tanh(F.linear(normed, weight)) * scale.view(n, -1) + bias.view(n, -1)
    return _mixed(x, logits[..., 1], logits[..., 0], logits[..., 2:].transpose(-1, -2))


STEPS: dict[str, Function] = {"mhc": mhc_step, "lite": lite_step, "cayley": jpmhc_step, "hc": hc_step}
MATRICES: dict[str, Function] = {"sinkhorn-20": sinkhorn, "lite": permutation_mixture, "cayley": cayley}


@functools.cache
def compiled(function: Function) -> Function | None:
    """The composition under torch.compile, which takes half a minute and more at its first call for each shape, dtype,
    number of threads and with gradients; None where there is no C++ compiler to do it."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return None
    import torch._dynamo.config

    torch._dynamo.config.recompile_limit = 64  # shapes, dtypes, threads and gradient modes are all compiled anew
    return torch.compile(function, dynamic=False)


def _logits(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    flat = x.flatten(1).float()
    return F.linear(F.rms_norm(flat, flat.shape[-1:], eps=EPS), weight) * scale + bias


def _sigmoid_gates(logits: Tensor, n: int) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(logits[:, :n]) + EPS, 2 * torch.sigmoid(logits[:, n : 2 * n])


def _mixed(x: Tensor, pre: Tensor, post: Tensor, mixing: Tensor, sublayer: Function = identity) -> Tensor:
    """The coefficients meet the streams in the streams' dtype, as in transformers."""
    y = sublayer((pre.unsqueeze(-1) * x).sum(1).to(x.dtype))
    return post.to(x.dtype).unsqueeze(-1) * y.unsqueeze(-2) + mixing.to(x.dtype) @ x
