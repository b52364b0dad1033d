"""Valid calls of every op of the temporal room: tests/test_every_op.py checks what torch asks of an op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

ops = torch.ops.anabranch


def samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Ops with arguments; the tensors that may get a gradient ask for one."""
    yield from ()
