"""Valid calls of every op of the index room: tests/test_every_op.py checks what torch asks of an op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from anabranch.index import bskiplist_empty

ops = torch.ops.anabranch


def samples(dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Ops with arguments; words are int64 whatever the dtype, and nothing has a gradient."""
    # The two dtypes that opcheck comes with stand for the two kinds of keys.
    key_words = 1 if dtype == torch.bfloat16 else 2
    shape = (40, 2)[:key_words]
    keys = torch.randint(-9, 9, shape)
    values = torch.arange(40)
    index = bskiplist_empty(64, key_words=key_words)
    ops.bskiplist_insert(*index, keys, values, False)
    strided = torch.stack((keys, keys + 1), -1)[..., 0]
    yield ops.bskiplist_init, (*bskiplist_empty(1), key_words)
    yield ops.bskiplist_insert, (*index, strided + 3, values, True)
    yield ops.bskiplist_erase, (*index, strided)
    yield ops.bskiplist_find, (*index, strided)
    yield ops.bskiplist_lower_bound, (*index, strided)
    yield ops.bskiplist_range_count, (*index, strided, keys + 4)
    yield ops.bskiplist_gather, (*index, keys, strided + 4, 50)
    yield ops.bskiplist_validate, index
    ordered = torch.arange(40 * key_words).view(shape)
    yield ops.bskiplist_bulk_load, (*bskiplist_empty(64, key_words=key_words), ordered, values)
