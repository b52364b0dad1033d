"""Mixers: what an `n x n` mixing matrix is made of. A mixer is a value that kernels, functions and modules take."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

Backward: TypeAlias = Literal["unrolled", "implicit"]
Order: TypeAlias = Literal["columns_first", "rows_first"]
MixerArguments: TypeAlias = tuple[Tensor | None, int, int, int, int, float, float, float, bool, bool, bool]

MIN_STREAMS, MAX_STREAMS = 2, 8
_ALL_PERMUTATIONS_UP_TO = 5


def check_num_streams(op: str, n: int) -> None:
    """Raises ValueError unless there are 2 to 8 streams."""
    if not MIN_STREAMS <= n <= MAX_STREAMS:
        raise ValueError(f"{op}: there are {n} streams, must be {MIN_STREAMS} to {MAX_STREAMS}; use another number")


@dataclass(frozen=True)
class Mixer:
    """Base of all mixers. `H[i, j]` weighs stream j in stream i of the result; logits are row by row."""

    _kind: ClassVar[int]

    def num_logits(self, n: int) -> int:
        """How many logits make one matrix for n streams."""
        return n * n

    def arguments(self, n: int, device: torch.device) -> MixerArguments:
        """What the kernels' schemas ask for, in their order."""
        return self._arguments(n)

    def _arguments(
        self,
        n: int,
        *,
        permutations: Tensor | None = None,
        iterations: int = 0,
        rank: int = 0,
        eps: float = 0.0,
        tolerance: float = 0.0,
        scale: float = 1.0,
        implicit_gradient: bool = False,
        transposed_logits: bool = False,
        transposed_matrix: bool = False,
    ) -> MixerArguments:
        flags = (implicit_gradient, transposed_logits, transposed_matrix)
        return (permutations, n, self._kind, iterations, rank, eps, tolerance, scale, *flags)


@dataclass(frozen=True)
class Identity(Mixer):
    """`H = I`, without logits: streams are read and written, not mixed (hy_v4, qwen4_exp)."""

    _kind = 0

    def num_logits(self, n: int) -> int:
        return 0


@dataclass(frozen=True)
class Unconstrained(Mixer):
    """`H` is the logits: Hyper-Connections (arXiv 2409.19606). Products over depth may grow without bound.

    Args:
        transpose: `H` is the transpose of the logits.
    """

    transpose: bool = False
    _kind = 1

    def arguments(self, n: int, device: torch.device) -> MixerArguments:
        return self._arguments(n, transposed_matrix=self.transpose)


@dataclass(frozen=True)
class Sinkhorn(Mixer):
    """Doubly stochastic: mHC (arXiv 2512.24880). What `sinkhorn()` computes.

    Args:
        iters: iterations, each one division of the columns and one of the rows by their sums; 20 if tol is None too.
        tol: instead of iters: the exact doubly stochastic matrix, its columns' sums within tol of 1.
        order: "columns_first" is the paper's, whose rows are right and columns nearly; "rows_first" what DeepSeek and
            transformers ship: the transpose of the paper's matrix for transposed logits.
        eps: added to the entries after the first division and to every later sum; the shipped code has 1e-6.
        backward: "unrolled": the gradient of these iterations. "implicit": that of the limit, with the sums as they
            are. They differ as much as the iterations have not converged: by a median of 72 % at mHC-lite's
            initial logits. None: "unrolled" for iters, "implicit" for tol, which has no other.
        transpose: `H` is the transpose of that matrix.
    """

    iters: int | None = None
    tol: float | None = None
    order: Order = "columns_first"
    eps: float = 0.0
    backward: Backward | None = None
    transpose: bool = False

    def __post_init__(self) -> None:
        op = "sinkhorn"
        if self.iters is not None and self.tol is not None:
            raise ValueError(f"{op}: iters and tol are both given, must be one; leave out iters for the exact matrix")
        if self.iters is not None and not 1 <= self.iters <= 1000:
            raise ValueError(f"{op}: iters is {self.iters}, must be 1 to 1000; for a converged matrix give tol")
        if self.tol is not None and not 1e-12 <= self.tol < 1:
            raise ValueError(f"{op}: tol is {self.tol}, must be at least 1e-12 and less than 1; 1e-6 is usual")
        if self.eps != 0 and (self.tol is not None or not 1e-12 <= self.eps < 1):
            raise ValueError(f"{op}: eps is {self.eps}, must be 0, or with iters 1e-12 to below 1; leave it out")
        if self.order not in ("columns_first", "rows_first"):
            raise ValueError(f"{op}: order is {self.order!r}, must be 'columns_first' or 'rows_first'; name one")
        if self.backward not in (None, "unrolled", "implicit"):
            raise ValueError(f"{op}: backward is {self.backward!r}, must be 'unrolled' or 'implicit'; name one")
        if self.tol is not None and self.backward == "unrolled":
            raise ValueError(f"{op}: backward is 'unrolled', must be 'implicit' with tol; give iters to unroll them")

    @property
    def _kind(self) -> int:  # type: ignore[override]
        return 2 if self.tol is None else 3

    def arguments(self, n: int, device: torch.device) -> MixerArguments:
        rows_first = self.order == "rows_first"
        return self._arguments(
            n,
            iterations=20 if self.iters is None else self.iters,
            tolerance=0.0 if self.tol is None else self.tol,
            eps=self.eps,
            implicit_gradient=self.tol is not None or self.backward == "implicit",
            transposed_logits=rows_first,
            transposed_matrix=rows_first != self.transpose,
        )


@dataclass(frozen=True)
class PermutationMixture(Mixer):
    """`H = sum_k softmax(logits)_k P_k`: mHC-lite (arXiv 2601.05732). Doubly stochastic to rounding.

    Args:
        permutations: rows `(column of row 0's one, column of row 1's, ...)`. None: all n! in the order of
            `itertools.permutations`, for n <= 5. Fewer span a smaller polytope: not every doubly stochastic matrix
            can be reached. `cyclic_permutations(n)` is a small choice for n >= 6.
        transpose: `H` is the transpose of the mixture, as mHC-lite's release mixes.
    """

    permutations: tuple[tuple[int, ...], ...] | None = None
    transpose: bool = False
    _kind = 4

    def table(self, n: int) -> tuple[tuple[int, ...], ...]:
        """The permutations for n streams. Raises ValueError where there are none."""
        op = "permutation_mixture"
        if self.permutations is None:
            if n > _ALL_PERMUTATIONS_UP_TO:
                raise ValueError(
                    f"{op}: permutations is None, must be given for {n} streams, whose {n}! are too many; "
                    f"pass a subset such as cyclic_permutations({n})"
                )
            return tuple(itertools.permutations(range(n)))
        for row in self.permutations:
            if sorted(row) != list(range(n)):
                raise ValueError(f"{op}: permutations holds {row}, must hold orders of 0 to {n - 1}; mend that row")
        if not self.permutations:
            raise ValueError(f"{op}: permutations is empty, must hold one at least; pass None for all")
        return self.permutations

    def num_logits(self, n: int) -> int:
        return len(self.table(n))

    def arguments(self, n: int, device: torch.device) -> MixerArguments:
        # torch.compile looks through a cache and warns.
        table = _new_table if torch.compiler.is_compiling() else _kept_table
        return self._arguments(n, permutations=table(self.table(n), device), transposed_matrix=self.transpose)


def _new_table(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32, device=device)


_kept_table = cache(_new_table)


def cyclic_permutations(n: int) -> tuple[tuple[int, ...], ...]:
    """The rotations and reflections of n streams, the identity first: for `PermutationMixture` from n = 6 on."""
    check_num_streams("cyclic_permutations", n)
    turns = [tuple((i + k) % n for i in range(n)) for k in range(n)]
    return tuple(dict.fromkeys(turns + [tuple((k - i) % n for i in range(n)) for k in range(n)]))


@dataclass(frozen=True)
class Cayley(Mixer):
    """Orthogonal for any logits: the exact map `(I - B)^-1 (I + B)`, `B = scale / 2 (G - G^T)` (arXiv 2602.18308)."""

    scale: float = 0.1
    _kind = 5

    def arguments(self, n: int, device: torch.device) -> MixerArguments:
        return self._arguments(n, scale=self.scale)


@dataclass(frozen=True)
class TruncatedCayley(Mixer):
    """The iteration that JPmHC computes instead: orthogonal to 2e-3 at logits of size 1, diverging at 10.

    Args:
        scale: as for `Cayley`.
        iters: how often `Y <- I + B (I + Y)` after `Y = I + 2 B`.
    """

    scale: float = 0.1
    iters: int = 2
    _kind = 6

    def __post_init__(self) -> None:
        if not 1 <= self.iters <= 1000:
            raise ValueError(f"truncated_cayley: iters is {self.iters}, must be 1 to 1000; 2 is the paper's")

    def arguments(self, n: int, device: torch.device) -> MixerArguments:
        return self._arguments(n, scale=self.scale, iterations=self.iters)


@dataclass(frozen=True)
class Grassmann(Mixer):
    """The projector on the span of `rank` vectors, logits `[n, rank]` (arXiv 2602.18308).

    Args:
        rank: of the projector; None: n // 2.
    """

    rank: int | None = None
    _kind = 7

    def rank_of(self, n: int) -> int:
        """The rank for n streams. Raises ValueError where it does not fit."""
        rank = n // 2 if self.rank is None else self.rank
        if not 1 <= rank <= n:
            raise ValueError(f"grassmann: rank is {rank}, must be 1 to n={n}; n // 2 is usual")
        return rank

    def num_logits(self, n: int) -> int:
        return n * self.rank_of(n)

    def arguments(self, n: int, device: torch.device) -> MixerArguments:
        return self._arguments(n, rank=self.rank_of(n))
