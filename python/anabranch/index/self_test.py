"""The index room's self-tests: an ordered map of some hundred keys beside sorted tensors."""

from __future__ import annotations

import torch

from anabranch.core.self_test import SelfTest, worst_error
from anabranch.index.module import BSkipListModule


def _edited() -> float:
    index, keys = BSkipListModule(512), torch.randperm(300) * 7
    index.insert(keys, keys + 1)
    index.erase(torch.arange(150) * 14)  # the even ones
    left = torch.arange(150) * 14 + 7
    values, found = index.find(keys)
    next_keys, _, _ = index.lower_bound(left - 1)
    first, last = torch.tensor([0, 100]), torch.tensor([700, 1500])
    offsets, range_keys, _ = index.gather(first, last, 160)
    inside = [left[(left >= a) & (left < b)] for a, b in ((0, 700), (100, 1500))]
    counts = torch.tensor([len(one) for one in inside])
    return worst_error(
        [
            values[found].sort().values,
            found,
            next_keys,
            index.range_count(first, last),
            offsets,
            range_keys[: sum(counts)],
        ],
        [left + 1, keys % 14 == 7, left, counts, torch.cat([torch.zeros(1), counts.cumsum(0)]), torch.cat(inside)],
    )


def _bulk_loaded() -> float:
    index, keys = BSkipListModule(512), torch.arange(300) * 3
    index.bulk_load(keys, keys + 1)
    index.validate()
    return worst_error(index.find(keys), [keys + 1, keys >= 0])


def self_tests() -> list[SelfTest]:
    """One case for edits and reads, one for what builds and checks a whole index."""
    edits = ("insert", "find", "lower_bound", "range_count", "gather", "erase")
    kernels = ("index/functions",)
    return [
        SelfTest(tuple(f"bskiplist_{name}" for name in edits), _edited, kernels, tolerance=0),
        SelfTest(
            ("bskiplist_bulk_load", "bskiplist_validate", "bskiplist_init"),
            _bulk_loaded,
            kernels,
            cpu_only=True,
            tolerance=0,
        ),
    ]
