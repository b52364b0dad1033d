"""Valid calls of every op of the temporal room: tests/test_every_op.py checks what torch asks of an op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

ops = torch.ops.anabranch


def samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Ops with arguments; the tensors that may get a gradient ask for one."""
    yield from ()
    yield from ncache_samples(dtype)


def ncache_samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """A cache of 5 nodes with 1 + 3 + 2 slots that saw some events, and reads of all of it."""
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    nodes, slots, size = 5, [3, 2], 2
    keys, event_ids, times = (torch.full((nodes, 6), -1) for _ in range(3))
    states = torch.zeros(nodes, 6, size, dtype=dtype)
    cache = (keys, event_ids, times, states)
    src, dst, time, ids = torch.tensor([[0, 1, 2, 3], [1, 2, 0, 3], [3, 3, 8, 9], [0, 1, 2, 3]])
    for first in (0, 2):
        part = slice(first, first + 2)
        rows = ops.ncache_gather(*cache, torch.cat([src[part], dst[part]]))
        ops.ncache_update(*cache, src[part], dst[part], time[part], ids[part], *rows, slots, 0.9, 1)
    states.copy_(torch.randn(states.shape))
    batch = (src, dst, time + 9, ids + 4)
    rows = ops.ncache_gather(*cache, torch.cat([src, dst]))
    yield ops.ncache_update, (*(one.clone() for one in cache), *batch, *rows, slots, 0.9, 1)
    query = torch.tensor([4, 0, 3, 0])
    yield ops.ncache_gather, (*cache, query)
    for edge_width in (3, None):
        tables = [torch.randn(nodes, 2).to(dtype), None if edge_width is None else torch.randn(8, edge_width).to(dtype)]
        shapes = [(2,), (2,), (6, 4 + (edge_width or 0)), (6,), (6, size), (6,)]
        parameters = [torch.randn(shape, dtype=sums) for shape in shapes]
        floats = [states.clone(), *(one for one in tables if one is not None), *parameters]
        for one in floats:
            one.requires_grad_()
        arguments = (*cache[:3], floats[0], query, *tables, *parameters, 2, 0.5)
        yield ops.ncache_read, arguments
        z, *read = (one.detach() for one in ops.ncache_read(*arguments))
        dz = torch.randn(z.shape).to(dtype)
        fixed = [None if one is None else one.detach() for one in (*tables, *parameters)]
        yield ops.ncache_read_backward, (dz, query, *read, *fixed, 2, 0.5, 0b111111111)
