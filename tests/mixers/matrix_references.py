"""Mixing matrices as compositions of torch's ops: what the mixers' values and gradients are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from anabranch.mixers import (
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


def sinkhorn(logits: Tensor, iters: int, eps: float = 0.0) -> Tensor:
    """Columns, then rows, `iters` times; by logarithms where eps allows it, so for logits of any size."""
    if eps == 0.0:
        for _ in range(iters):
            logits = logits.log_softmax(-2).log_softmax(-1)
        return logits.exp()
    m = logits.softmax(-2) + eps
    m = m / (m.sum(-1, keepdim=True) + eps)
    for _ in range(iters - 1):
        m = m / (m.sum(-2, keepdim=True) + eps)
        m = m / (m.sum(-1, keepdim=True) + eps)
    return m


def shipped(logits: Tensor, iters: int, eps: float) -> Tensor:
    """`comb` of TileKernels and transformers; the layers mix by its transpose."""
    comb = logits.softmax(-1) + eps
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(iters - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return comb


def implicit_gradient(p: Tensor, upstream: Tensor) -> Tensor:
    """Of P in diag(u) exp(logits) diag(v), the sums of P kept: one system in u and v together, by pseudo-inverse."""
    rows, columns = p.sum(-1), p.sum(-2)
    n = p.shape[-1]
    system = torch.zeros(*p.shape[:-2], 2 * n, 2 * n, dtype=p.dtype)
    system[..., :n, :n], system[..., n:, n:] = torch.diag_embed(rows), torch.diag_embed(columns)
    system[..., :n, n:], system[..., n:, :n] = p, p.mT
    right = torch.cat([(p * upstream).sum(-1), (p * upstream).sum(-2)], -1)
    u, v = (torch.linalg.pinv(system, hermitian=True) @ right.unsqueeze(-1)).squeeze(-1).split(n, -1)
    return p * (upstream - u.unsqueeze(-1) - v.unsqueeze(-2))


def permutation_mixture(logits: Tensor, rows: tuple[tuple[int, ...], ...]) -> Tensor:
    table = torch.eye(len(rows[0]), dtype=logits.dtype)[torch.tensor(rows)]
    return torch.einsum("...k,kij->...ij", logits.softmax(-1), table)


def _generator(logits: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return scale / 2 * (logits - logits.mT), torch.eye(logits.shape[-1], dtype=logits.dtype)


def cayley(logits: Tensor, scale: float) -> Tensor:
    b, one = _generator(logits, scale)
    return torch.linalg.solve(one - b, one + b)


def truncated_cayley(logits: Tensor, scale: float, iters: int) -> Tensor:
    b, one = _generator(logits, scale)
    y = one + 2 * b
    for _ in range(iters):
        y = one + b @ (one + y)
    return y


def grassmann(logits: Tensor) -> Tensor:
    u = torch.linalg.qr(logits).Q
    return u @ u.mT


class Case(NamedTuple):
    """A mixer, and its matrices `[B, n, n]` from logits `[B, num_logits]` by torch's ops."""

    mixer: Mixer
    reference: Callable[[Tensor, int], Tensor]
    streams: range = range(2, 9)


def _square(reference: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda logits, n: reference(logits.unflatten(-1, (n, n)))


def _identity(logits: Tensor, n: int) -> Tensor:
    return torch.eye(n, dtype=logits.dtype).expand(logits.shape[0], n, n)


def _all_permutations(logits: Tensor, n: int) -> Tensor:
    return permutation_mixture(logits, tuple(itertools.permutations(range(n))))


CASES = {
    "identity": Case(Identity(), _identity),
    "unconstrained": Case(Unconstrained(), _square(lambda g: g)),
    "unconstrained_transposed": Case(Unconstrained(transpose=True), _square(lambda g: g.mT)),
    "sinkhorn_1": Case(Sinkhorn(1), _square(lambda g: sinkhorn(g, 1))),
    "sinkhorn": Case(Sinkhorn(), _square(lambda g: sinkhorn(g, 20))),
    "sinkhorn_transposed": Case(Sinkhorn(5, transpose=True), _square(lambda g: sinkhorn(g, 5).mT)),
    "sinkhorn_eps": Case(Sinkhorn(20, eps=1e-6), _square(lambda g: sinkhorn(g, 20, 1e-6))),
    "sinkhorn_shipped": Case(Sinkhorn(20, eps=1e-6, order="rows_first"), _square(lambda g: shipped(g, 20, 1e-6))),
    "sinkhorn_shipped_applied": Case(
        Sinkhorn(20, eps=1e-6, order="rows_first", transpose=True), _square(lambda g: shipped(g, 20, 1e-6).mT)
    ),
    "permutations": Case(PermutationMixture(), _all_permutations, range(2, 6)),
    "permutations_transposed": Case(
        PermutationMixture(transpose=True), lambda g, n: _all_permutations(g, n).mT, range(3, 4)
    ),
    "cayley": Case(Cayley(), _square(lambda g: cayley(g, 0.1))),
    "cayley_scaled": Case(Cayley(0.5), _square(lambda g: cayley(g, 0.5))),
    "truncated_cayley": Case(TruncatedCayley(), _square(lambda g: truncated_cayley(g, 0.1, 2))),
    "grassmann": Case(Grassmann(), lambda g, n: grassmann(g.unflatten(-1, (n, n // 2)))),
}
for _n in (2, 6, 8):
    CASES[f"cyclic_permutations_{_n}"] = Case(
        PermutationMixture(cyclic_permutations(_n)),
        lambda g, n: permutation_mixture(g, cyclic_permutations(n)),
        range(_n, _n + 1),
    )


def draw(spread: str, count: int, n: int, logits: int, dtype: torch.dtype) -> Tensor:
    """Logits `[count, logits]`: of a standard deviation, or 0 on the diagonal and -8 elsewhere, with little noise."""
    noise = torch.randn(count, logits, dtype=torch.float64)
    if spread == "spiky":
        base = torch.full((logits,), -8.0, dtype=torch.float64)
        base[:: n + 1] = 0.0
        return (base + 0.01 * noise).to(dtype)
    return (float(spread) * noise).to(dtype)
