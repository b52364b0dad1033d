"""`PermutationMixture`: the mixer whose matrices are mixtures of permutations, and small sets of these."""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from anabranch.mixers.mixer import Mixer, MixerArguments, check_num_streams

Permutations: TypeAlias = tuple[tuple[int, ...], ...]

_ALL_PERMUTATIONS_UP_TO = 5
_tables: dict[tuple[Permutations, torch.device], Tensor] = {}


@dataclass(frozen=True)
class PermutationMixture(Mixer):
    """`H = sum_k softmax(logits)_k P_k`: mHC-lite (arXiv 2601.05732). Doubly stochastic to rounding.

    Args:
        permutations: rows `(column of row 0's one, column of row 1's, ...)`, tuples or what becomes such. None: all n!
            in the order of `itertools.permutations`, for n <= 5. Fewer span a smaller polytope: not every doubly
            stochastic matrix can be reached. `cyclic_permutations(n)` is a small choice for n >= 6.
        transpose: `H` is the transpose of the mixture, as mHC-lite's release mixes.

    Raises:
        ValueError: permutations that are no rows of integers.
    """

    permutations: Permutations | None = None
    transpose: bool = False
    _kind = 4

    def __post_init__(self) -> None:
        if self.permutations is None:
            return
        given = self.permutations.tolist() if isinstance(self.permutations, Tensor) else self.permutations
        try:
            rows = tuple(tuple(operator.index(column) for column in row) for row in given)
        except TypeError:
            raise ValueError(
                f"permutation_mixture: permutations is {given!r}, must be rows of integers; "
                "pass them like ((0, 1), (1, 0))"
            ) from None
        object.__setattr__(self, "permutations", rows)

    def table(self, n: int) -> Permutations:
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
        # torch.compile looks through what is kept and warns.
        table = _new_table if torch.compiler.is_compiling() else _kept_table
        return self._arguments(n, permutations=table(self.table(n), device), transposed_matrix=self.transpose)


def _new_table(rows: Permutations, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _kept_table(rows: Permutations, device: torch.device) -> Tensor:
    # A fake tensor, or one of a subclass's mode, means nothing outside that mode, nor a real one inside.
    if type(torch.empty(0, device="cpu")) is not Tensor:
        return _new_table(rows, device)
    table = _tables.get((rows, device))
    if table is None:
        # An inference tensor could not be saved for a later backward.
        with torch.inference_mode(False):
            table = _tables[rows, device] = _new_table(rows, device)
    return table


def cyclic_permutations(n: int) -> Permutations:
    """The rotations and reflections of n streams, the identity first: for `PermutationMixture` from n = 6 on.

    Args:
        n: streams.

    Returns:
        Distinct tuples of n stream numbers, 2 n of them from n = 3 on.

    Raises:
        ValueError: n out of 2 to 8.

    Cost:
        O(n^2), in Python.
    """
    check_num_streams("cyclic_permutations", n)
    turns = [tuple((i + k) % n for i in range(n)) for k in range(n)]
    return tuple(dict.fromkeys(turns + [tuple((k - i) % n for i in range(n)) for k in range(n)]))
