"""Which mixing matrices a forward used: every stream step adds its own, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from anabranch.mixers.connection import Connection

_matrices: ContextVar[list[Tensor] | None] = ContextVar("anabranch_mixing_matrices", default=None)


@contextmanager
def recording() -> Iterator[list[Tensor]]:
    """A list that the steps within fill with their H `[..., n, n]`, without gradient. Compiled code adds nothing."""
    matrices: list[Tensor] = []
    token = _matrices.set(matrices)
    try:
        yield matrices
    finally:
        _matrices.reset(token)


def record(step: Connection) -> None:
    """Adds the step's H to the list of the `recording` around it, if there is one."""
    if torch.compiler.is_compiling():
        return
    matrices = _matrices.get()
    if matrices is not None:
        matrices.append(step.mixing.detach().clone())
