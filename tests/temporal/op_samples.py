"""Valid calls of every op of the temporal room: tests/test_every_op.py checks what torch asks of an op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import anabranch.temporal  # noqa: F401  (registers the fakes and gradients)

ops = torch.ops.anabranch


def samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Ops with arguments; the tensors that may get a gradient ask for one."""
    yield from pair_samples(dtype)
    yield from row_set_samples(dtype)


def pair_samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Rows that share keys with each other and with themselves, an empty slot and an empty row."""
    keys = torch.tensor([[5, 7, 9, 5], [7, -1, 1 << 40, 9], [5, 5, 5, -1], [-1] * 4])
    codes = torch.tensor([1, 2, 2, 4], dtype=torch.int32)
    z = torch.randn(4, 4, 3).to(dtype).requires_grad_()
    left, right = torch.tensor([0, 0, 2, 3, 1]), torch.tensor([1, 2, 2, 0, 0])
    yield ops.pair_join, (keys, z, codes, left, right)
    dz_joined = torch.randn(5, 8, 3).to(dtype).requires_grad_()
    yield ops.pair_join_backward, (dz_joined, keys, codes, left, right)
    weight, table = torch.randn(5, 3).to(dtype).requires_grad_(), torch.randn(64, 5).to(dtype).requires_grad_()
    for activation in (0, 1):
        yield ops.pair_encode, (keys, z, codes, left, right, weight, table, activation)
        tensors = (torch.randn(5, 5).to(dtype), keys, z.detach(), codes, left, right, weight.detach(), table.detach())
        yield ops.pair_encode_backward, (*tensors, activation, 7)


def row_set_samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """A graph of five nodes, the last without neighbours; equal ends and a pair that is an edge."""
    graph = (torch.tensor([0, 4, 7, 9, 11, 11]), torch.tensor([0, 1, 2, 3, 0, 2, 3, 0, 1, 0, 1]))
    pairs = (torch.tensor([0, 1, 2, 0, 4]), torch.tensor([1, 1, 3, 2, 0]))
    for mode, exclude in ((0, False), (1, True), (2, False)):
        yield ops.row_set_sum, (torch.randn(5, 3).to(dtype).requires_grad_(), *graph, *pairs, mode, exclude)
        yield ops.row_set_sum_backward, (torch.randn(5, 3).to(dtype).requires_grad_(), *graph, *pairs, mode, exclude)
    if dtype != torch.float64:
        yield ops.row_set, (*graph, *pairs, 1, False, 2, 7)
