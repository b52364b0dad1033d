"""Mixers: what an `n x n` mixing matrix is made of. A mixer is a value that kernels, functions and modules take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

Backward: TypeAlias = Literal["unrolled", "implicit"]
Order: TypeAlias = Literal["columns_first", "rows_first"]
MixerArguments: TypeAlias = tuple[Tensor | None, int, int, int, int, float, float, float, bool, bool, bool]

MIN_STREAMS, MAX_STREAMS = 2, 8


def check_num_streams(op: str, n: int) -> None:
    """Raises ValueError unless there are 2 to 8 streams."""
    if not isinstance(n, (int, torch.SymInt)) or not MIN_STREAMS <= n <= MAX_STREAMS:
        raise ValueError(f"{op}: there are {n} streams, must be {MIN_STREAMS} to {MAX_STREAMS}; use another number")


def _check_iterations(op: str, iters: int, advice: str) -> None:
    # A bool is an int, and as a number of iterations a mistake.
    if isinstance(iters, bool) or not isinstance(iters, int) or not 1 <= iters <= 1000:
        raise ValueError(f"{op}: iters is {iters!r}, must be an integer from 1 to 1000; {advice}")


def _check_number(op: str, name: str, value: float, advice: str) -> None:
    # Not math.isfinite(), which torch.compile cannot follow.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -math.inf < value < math.inf:
        raise ValueError(f"{op}: {name} is {value!r}, must be a finite number; {advice}")


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


def check_mixer(op: str, mixer: Mixer) -> None:
    """Raises ValueError for what is none of this package's mixers."""
    if not isinstance(mixer, Mixer):
        raise ValueError(f"{op}: mixer is {mixer!r}, must be a Mixer; pass one such as Sinkhorn()")


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
        tol: instead of iters: the exact doubly stochastic matrix, its columns' sums within tol of 1 before rounding to
            the result's dtype.
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
        if self.iters is not None:
            _check_iterations(op, self.iters, "for a converged matrix give tol")
        if self.tol is not None:
            _check_number(op, "tol", self.tol, "1e-6 is usual")
        _check_number(op, "eps", self.eps, "leave it out")
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
class Cayley(Mixer):
    """Orthogonal: the map `(I - B)^-1 (I + B)`, `B = scale / 2 (G - G^T)` (arXiv 2602.18308). See `cayley`."""

    scale: float = 0.1
    _kind = 5

    def __post_init__(self) -> None:
        _check_number("cayley", "scale", self.scale, "0.1 is the paper's")

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
        _check_number("truncated_cayley", "scale", self.scale, "0.1 is the paper's")
        _check_iterations("truncated_cayley", self.iters, "2 is the paper's")

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

    def __post_init__(self) -> None:
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, (int, torch.SymInt))):
            raise ValueError(f"grassmann: rank is {self.rank!r}, must be an integer or None; n // 2 is usual")

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
